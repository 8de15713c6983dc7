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


def missing_bytes(path: str) -> int:
    """Return how many bytes a Matroska or WebM file is shorter than its header declares; 0 for other formats."""
    with open(path, "rb") as file:
        if file.read(4) != b"\x1a\x45\xdf\xa3":
            return 0
        header = _ebml_size(file)
        if header is None:
            return 0
        file.seek(header, os.SEEK_CUR)
        if file.read(4) != b"\x18\x53\x80\x67":
            return 0
        declared = _ebml_size(file)  # None in a live recording, whose length was not known yet
        return max(0, file.tell() + declared - os.path.getsize(path)) if declared is not None else 0


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
