"""What a file is before a decoder sees it: whether it can be opened, and why it may not be a video.

Contract: a path in, an absolute path or words for an error out. Reads at most the first bytes and box headers, never
decodes. Knows nothing of any decoder.
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
    """The absolute path of a readable regular file, else VideoError.

    Absolute because FFmpeg reads a relative name like `concat:a` or `-i` as a protocol or an option.
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
        raise VideoError(path, f"no such file{remote}", backend=backend) from error
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in the name
        raise VideoError(
            path, f"cannot be opened: {getattr(error, 'strerror', None) or error}", backend=backend
        ) from error
    if empty:
        raise VideoError(path, "an empty file (0 bytes)", backend=backend)
    return absolute


def why_not_a_video(path: str) -> str | None:
    """The likely reason why no decoder understands the file, from its first bytes; None if they say nothing."""
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
    """How many bytes a Matroska or WebM file lacks of the length its header declares; 0 for other files."""
    with open(path, "rb") as file:
        if file.read(4) != b"\x1a\x45\xdf\xa3":
            return 0
        header = _ebml_size(file)
        if header is None:
            return 0
        file.seek(header, os.SEEK_CUR)
        if file.read(4) != b"\x18\x53\x80\x67":
            return 0
        declared = _ebml_size(file)  # None while recording: the length is not known yet
        return max(0, file.tell() + declared - os.path.getsize(path)) if declared is not None else 0


def gif_ends_inside(path: str) -> bool:
    """Whether a GIF ends in the middle of a picture, of which FFmpeg would show the part that is there."""
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
                whole = bool(file.read(1)) and _skip_blocks(file)  # the code size, then the pixels
            else:
                whole = bool(file.read(1)) and _skip_blocks(file)  # an extension: its label, then its data
            if not whole:
                return True
        return False


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), os.SEEK_CUR)


def _skip_blocks(file: BinaryIO) -> bool:
    """Skip blocks of up to 255 bytes to the empty one that ends them; False where the file ends before."""
    while size := file.read(1):
        if size == b"\0":
            return True
        if len(file.read(size[0])) < size[0]:
            return False
    return False


def _ebml_size(file: BinaryIO) -> int | None:
    """The size field of an EBML element; None for "unknown", which is all ones."""
    first = file.read(1)
    if not first or first == b"\0":
        return None
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
    return None if value == (1 << 7 * width) - 1 else value


def _boxes(file: BinaryIO) -> set[bytes]:
    """Names of the top-level boxes of an MP4 file, as far as they are whole."""
    end = file.seek(0, os.SEEK_END)
    names, at = set(), 0
    while at + 8 <= end:
        file.seek(at)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8 or at + size > end:  # 0 means "to the end"; smaller is nonsense
            break
        names.add(header[4:8])
        at += size
    return names
