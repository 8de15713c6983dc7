"""The second decoder, decord 0.6, frozen since 2021. The only file that knows it.

Contract: as _pyav, whose listing says first what a file holds. Only kinds of files that decord was seen to read right
are accepted; the others are refused by name, and so is any file where it counts other frames than the listing. Never
a frame that differs from PyAV's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.runtime.optional import require
from clipvid.video.backends.base import decoder_threads
from clipvid.video.container import sniff
from clipvid.video.container.demux import Listing

BACKEND = "decord"
CONTAINERS = ("mov", "matroska", "avi", "flv", "ogg")
CODECS = ("h264", "hevc", "mpeg4", "h263", "mjpeg", "theora")
"""What decord was seen to read like PyAV, frame by frame, under the conditions of `objection`."""
SMALLEST = 16
"""Sides below this fail in decord (its frame buffers are padded)."""


def picture(path: str | Path, reader: Any, index: int) -> UInt8[Tensor, "3 h w"]:
    try:
        return torch.from_numpy(reader[index].asnumpy()).permute(2, 0, 1)  # (3, H, W)
    except Exception as error:  # decord raises its own kinds, all of them plain Exceptions
        raise VideoError(path, f"frame {index} does not decode ({_cause(error)})", backend=BACKEND) from error


def objection(listing: Listing) -> str | None:
    """The kind of file that decord gets wrong and this one is, if any; each was seen with files of known content."""
    container, codec = listing.container.split(",")[0], listing.codec
    if codec in ("vp8", "vp9"):
        return f"{codec.upper()}, whose hidden frames it counts"
    if codec in ("av1", "gif"):
        return f"{codec.upper()}, which it cannot decode"
    if container not in CONTAINERS or codec not in CODECS:
        return f"{codec} in {container} faithfully: frames come shifted, or in the size of the first"
    if listing.streams > 1:
        return "files with several video streams, of which it takes another one"
    if listing.hidden:
        return "edit lists, whose cut frames it shows"
    if listing.leading:
        return "open groups of pictures (frames shown before their key frame), which it shifts"
    if container == "avi" and listing.reordered:
        return "B-frames in AVI, which it shifts"
    if listing.deep:
        return f"more than 8 bits per value ({listing.pixels}), whose colours it changes"
    if min(listing.width, listing.height) < SMALLEST:
        return f"frames with a side below {SMALLEST} pixels"
    return None


def open_reader(path: str | Path, stream: int) -> Any:
    del stream  # decord takes the first, and files with several are refused
    decord = require("decord", why="backend='decord'")
    decord.logging.set_level(decord.logging.QUIET)  # its own FFmpeg would write to the terminal; nothing else uses it
    try:
        return decord.VideoReader(
            sniff.checked(path, backend=BACKEND), ctx=decord.cpu(0), num_threads=decoder_threads()
        )
    except VideoError:
        raise
    except Exception as error:
        raise VideoError(path, f"cannot be opened ({_cause(error)}); try backend='pyav'", backend=BACKEND) from error


def _cause(error: Exception) -> str:
    """The first line of decord's message, without the source lines that it names before the cause."""
    return re.sub(r"\[[\d:]+\] \S+: ", "", next(iter(str(error).splitlines()), type(error).__name__))
