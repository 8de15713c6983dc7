"""Checks of a file before it is decoded: that it can be opened, and the likely reason why it is not a video.

Contract: a path in, an absolute path or the text of an error out. Reads the first bytes and the structure of the
container, never decodes. Knows nothing of any decoder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

from clipvid.errors import VideoError

ENCRYPTED = "encrypted (DRM); its frames cannot be decoded without the key"
PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}

# fmt: off
CONTAINERS = (
    b"\x1aE\xdf\xa3", b"FLV\1", b"OggS", b"GIF8", b"YUV4MPEG2", b"\0\0\1\xba", b"\0\0\1\xb3",
    b"0&\xb2u\x8ef\xcf\x11", b"\x06\x0e+4\x02\x05\x01\x01",
)
# fmt: on
"""First bytes of Matroska, FLV, Ogg, GIF, YUV4MPEG2, MPEG (program and elementary streams), ASF and MXF."""


def checked(path: str | Path, *, backend: str) -> str:
    """Return the absolute path of a readable, non-empty regular file; raise VideoError for anything else.

    The path is absolute because FFmpeg takes a relative name like `concat:a` or `-i` for a protocol or an option.
    """
    try:
        absolute = os.path.abspath(os.fspath(path))
        if os.path.isdir(absolute):
            raise VideoError(path, "a directory, not a video file", backend=backend)
        if os.path.exists(absolute) and not os.path.isfile(absolute):
            raise VideoError(path, "not a regular file (a pipe or a device)", backend=backend)
        with open(absolute, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        remote = " (clipvid reads files; download the address first)" if re.match(r"\w+:/", str(path)) else ""
        if re.search(r"[*?]", os.path.basename(path)):
            remote = '; one path is one video: for several give a list, such as sorted(Path(folder).glob("*.mp4"))'
        raise VideoError(path, f"no such file{remote}", backend=backend) from error
    except (OSError, ValueError) as error:  # A permission is missing, the name is too long or contains a NUL.
        raise VideoError(
            path, f"cannot be opened: {getattr(error, 'strerror', None) or error}", backend=backend
        ) from error
    if empty:
        raise VideoError(path, "an empty file (0 bytes)", backend=backend)
    return absolute


def why_not_a_video(path: str) -> str | None:
    """Return the likely reason why no decoder can read the file, judged by its first bytes; None if unclear."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
        boxes = _boxes(file) if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") else None
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the video itself; fetch it with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "a web page (HTML or XML), not a video; the download probably failed"
    for magic, name in PICTURES.items():
        if head.startswith(magic):
            return f"a still picture ({name}), not a video; its name must end like a picture's to be read as one frame"
    if boxes is not None and b"encv" in head:
        return ENCRYPTED
    if boxes is not None and b"moov" not in boxes:
        return "cut off: the index (moov box) is missing, the file is incomplete"
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "plain text, not a video"
    return None


def begins_like_video(path: str | Path) -> bool:
    """Return True for a readable file whose first bytes are those of a container, as of a video without a suffix."""
    try:
        with open(path, "rb") as file:
            head = file.read(189)
    except OSError:
        return False
    is_avi = head[:4] == b"RIFF" and head[8:11] == b"AVI"
    is_mp4 = head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    is_ts = head[:1] == b"G" and head[188:189] == b"G"  # packets of 188 bytes
    return is_avi or is_mp4 or is_ts or head.startswith(CONTAINERS)


def gif_size(path: str) -> tuple[int, int] | None:
    """Return the width and height that the header of a GIF declares, None for other formats.

    FFmpeg refuses the largest sizes without saying why, and reports none.
    """
    with open(path, "rb") as file:
        head = file.read(10)
    if head[:4] != b"GIF8" or len(head) < 10:
        return None
    return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")


def _boxes(file: BinaryIO) -> set[bytes]:
    """Return the names of the complete top-level boxes of an MP4 file."""
    end = file.seek(0, os.SEEK_END)
    names, offset = set(), 0
    while offset + 8 <= end:
        file.seek(offset)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8 or offset + size > end:  # Size 0 means "to the end of the file"; 1 to 7 are invalid.
            break
        names.add(header[4:8])
        offset += size
    return names
