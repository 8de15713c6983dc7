"""Limits on the memory of decoded frames, checked before anything of that size is allocated.

Contract: sizes in, nothing or a VideoError that names the limit and how to raise it out. A file of a few kilobytes can
declare frames of gigabytes. The limits are read from the environment at each check. Knows nothing of decoders.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from clipvid.errors import VideoError

PIXELS, CLIP_BYTES = "CLIPVID_MAX_PIXELS", "CLIPVID_MAX_CLIP_BYTES"
"""Environment variables that replace the limits."""
PIXEL_LIMIT = 8192 * 4608
"""Largest number of pixels per frame, enough for 8K video: 113 MB as RGB, three times as much while it is
decoded and converted."""
CLIP_LIMIT = 1 << 30
"""Number of bytes that the frames of one call may always take together, as they are after `fit`."""
RATIO = 1000
"""Number of bytes of frames per byte of a file that is allowed too: camera video has a few hundred."""


def pixel_limit() -> int:
    """Return the largest number of pixels per frame."""
    return _limit(PIXELS, PIXEL_LIMIT)


def padded_pixel_limit() -> int:
    """Return the limit for FFmpeg, which counts the pixels by which it pads frames as well."""
    return pixel_limit() * 5 // 4


def check_pixels(width: int, height: int, *, path: str | Path, backend: str) -> None:
    """Raise VideoError if a frame has more pixels than the limit."""
    if width * height > pixel_limit():
        reason = (
            f"frames of {width}x{height} exceed the limit of {pixel_limit()} pixels; scale them down, or raise the "
            f"limit with the environment variable {PIXELS}"
        )
        raise VideoError(path, reason, backend=backend)


def check_clip(picture: Tensor, *, frames: int, path: str | Path, backend: str) -> None:
    """Raise VideoError if `frames` pictures like this one have more bytes than the limit."""
    total, limit = picture.nbytes * frames, _limit(CLIP_BYTES, max(CLIP_LIMIT, RATIO * _size(path)))
    if total > limit:
        size = f"{picture.shape[-1]}x{picture.shape[-2]}"
        reason = (
            f"{frames} frames of {size} take {total} bytes, which exceeds the limit of {limit} bytes; read "
            "fewer frames, shrink each with fit=, use stream, or raise the limit with the environment variable "
            f"{CLIP_BYTES}"
        )
        raise VideoError(path, reason, backend=backend)


def _size(path: str | Path) -> int:
    """Return the bytes of a file; 0 for a folder of pictures, and for what is no file."""
    try:
        return os.path.getsize(path) if os.path.isfile(path) else 0
    except (OSError, ValueError):
        return 0


def _limit(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:30]) < 1 << 62:
        raise ValueError(f"{name} must be an integer from 1 to 2**62 - 1, got {text!r:.60}; correct or unset it")
    return int(text)
