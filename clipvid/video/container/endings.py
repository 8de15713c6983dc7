"""Files that end too early, recognised by their bytes: sizes, pages and flags that a complete file would have.

Contract: a path in, the evidence of a cut out. Formats whose files may end anywhere (MPEG program streams, raw streams,
and all others at the border of two packets) cannot be judged. Never decodes, and knows nothing of FFmpeg.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

CHUNK = 1 << 20
"""Bytes that are read at a time."""
PACKETS = {188: 0, 192: 4, 204: 0}
"""Sizes of the packets of an MPEG transport stream, with the position of the byte 0x47 in each."""
OGG_VIDEO = (b"\x80theora", b"OVP80", b"\x01video", b"BBCD")
"""First bytes of video streams in Ogg: Theora, VP8, OGM, Dirac."""
LEVEL_1 = {"114d9b74", "1549a966", "1f43b675", "1654ae6b", "1c53bb6b", "1941a469", "1043a770", "1254c367", "ec", "bf"}
"""Identifiers of the elements of a Matroska segment."""
IN_CLUSTER = {"e7", "a7", "ab", "a3", "a0", "af", "5854", "ec", "bf"}
"""Identifiers of the elements of a Matroska cluster."""


def missing_bytes(path: str) -> int | None:
    """Return how many bytes a Matroska, WebM or FLV file is shorter than its header declares; None if it does not."""
    with open(path, "rb") as file:
        head = file.read(1 << 13)
        if head[:3] == b"FLV":
            declared = _flv_size(head)
        else:
            file.seek(0)
            segment = _segment(file)
            declared = None if segment is None or segment[1] is None else segment[0] + segment[1]
    return None if declared is None else max(0, declared - os.path.getsize(path))


def _segment(file: BinaryIO) -> tuple[int, int | None] | None:
    """Return the start and the declared length of a Matroska segment; None for other files."""
    if file.read(4) != b"\x1a\x45\xdf\xa3":
        return None
    header = _ebml_size(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    length = _ebml_size(file)  # None in a live recording, whose length was not known yet
    return file.tell(), length


def _flv_size(head: bytes) -> int | None:
    """Return the number of bytes that the metadata of an FLV file declare; None if they declare none."""
    mark = head.find(b"\x00\x08filesize\x00")
    if mark < 0 or len(head) < mark + 19:
        return None
    size = struct.unpack(">d", head[mark + 11 : mark + 19])[0]
    return int(size) if 0 < size < 2**62 else None


def is_intact(path: str) -> bool:
    """Return True if a Matroska or FLV file consists of valid elements up to the end that its header declares."""
    if missing_bytes(path) != 0:
        return False
    with open(path, "rb") as file:
        if file.read(3) == b"FLV":
            return _tags_reach_the_end(file, os.path.getsize(path))
        file.seek(0)
        segment = _segment(file)
        return segment is not None and segment[1] is not None and _elements_reach(file, segment[0] + segment[1])


def _tags_reach_the_end(file: BinaryIO, size: int) -> bool:
    file.seek(5)
    offset = int.from_bytes(file.read(4), "big") + 4
    while offset < size:
        file.seek(offset)
        tag = file.read(11)
        length = 11 + int.from_bytes(tag[1:4], "big")
        file.seek(offset + length)
        if len(tag) < 11 or tag[0] not in (8, 9, 18) or int.from_bytes(file.read(4), "big") != length:
            return False
        offset += length + 4
    return offset == size


def _elements_reach(file: BinaryIO, end: int) -> bool:
    allowed = LEVEL_1 | IN_CLUSTER
    while file.tell() < end:
        first = file.read(1)
        name = (first + file.read(8 - first[0].bit_length() if first and first[0] > 15 else 0)).hex()
        length = _ebml_size(file)
        if name not in allowed or length is None:
            return False
        if name != "1f43b675":  # The elements inside a cluster are read one by one.
            file.seek(length, os.SEEK_CUR)
    return file.tell() == end


def transport_stream_ends_inside(path: str) -> bool:
    """Return True if an MPEG transport stream ends in the middle of a packet."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    for start in range(max(PACKETS)):
        for size, sync in PACKETS.items():
            marks = head[start + sync :: size][:8]
            if len(marks) > 2 and not marks.strip(b"\x47"):
                return (os.path.getsize(path) - start) % size != 0
    return False


def y4m_ends_inside(path: str, frame: int) -> bool:
    """Return True if a YUV4MPEG2 file ends in the middle of a picture of `frame` bytes, or of the line before it."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.readline(1 << 12)
        while line := file.readline(1 << 12):
            if not line.endswith(b"\n") or file.tell() + frame > size:
                return True
            file.seek(frame, os.SEEK_CUR)
    return False


def ogg_ends_inside(path: str) -> bool:
    """Return True if an Ogg file lacks the last page of a video stream, or ends in the middle of it.

    The last page of a stream has a flag (RFC 3533, section 6). Files without a known video codec are not judged.
    """
    with open(path, "rb") as file:
        serials = _ogg_videos(file.read(1 << 16))
        end = position = os.path.getsize(path)
        tail = b""
        while serials and position:
            start = max(0, position - CHUNK)
            file.seek(start)
            tail = file.read(position - start) + tail[:300]
            for offset, page in _pages(tail):
                length = 27 + page[26] + sum(page[27 : 27 + page[26]])
                complete = len(page) >= 27 + page[26] and start + offset + length <= end
                if page[5] & 4 and complete:
                    serials.discard(page[14:18])
            position = start
    return bool(serials)


def _pages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the position of each Ogg page, and its first bytes: its header and a little of its content."""
    start = data.find(b"OggS\0")
    while 0 <= start <= len(data) - 27:
        yield start, data[start : start + 300]
        start = data.find(b"OggS\0", start + 1)


def _ogg_videos(head: bytes) -> set[bytes]:
    """Return the serial numbers of the video streams that the first pages announce."""
    first_pages = [page for _, page in _pages(head) if page[5] & 2]
    return {page[14:18] for page in first_pages if page[27 + page[26] :].startswith(OGG_VIDEO)}


def gif_ends_inside(path: str) -> bool:
    """Return True if a GIF ends in the middle of a picture; FFmpeg would show the incomplete picture."""
    with open(path, "rb") as file:
        head = file.read(13)
        if head[:4] != b"GIF8" or len(head) < 13:
            return False
        _skip_colours(file, head[10])
        while kind := file.read(1):
            if kind == b"\x3b":
                return False
            if kind == b"\x2c":
                picture = file.read(9)
                if len(picture) < 9:
                    return True
                _skip_colours(file, picture[8])
                complete = bool(file.read(1)) and _skip_blocks(file)  # code size, then pixels
            else:
                complete = bool(file.read(1)) and _skip_blocks(file)  # extension: label, then data
            if not complete:
                return True
        return False


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), os.SEEK_CUR)


def _skip_blocks(file: BinaryIO) -> bool:
    """Skip blocks of up to 255 bytes up to and including the empty one; return False if the file ends before it."""
    while size := file.read(1):
        if size == b"\0":
            return True
        if len(file.read(size[0])) < size[0]:
            return False
    return False


def _ebml_size(file: BinaryIO) -> int | None:
    """Return the size field of an EBML element; None if all its bits are ones (size unknown)."""
    first = file.read(1)
    if not first or first == b"\0":
        return None
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
    return None if value == (1 << 7 * width) - 1 else value
