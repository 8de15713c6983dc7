"""The second decoder, decord 0.6, whose development ended in 2021. No other file uses decord.

Contract: as pyav.py, whose listing of the file comes first. Only kinds of files that tests showed decord to read
correctly are accepted; others are refused by name, and so is any file of which decord counts other frames than the
listing. It never returns a frame that differs from PyAV's.
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
from clipvid.video.backends.judged import Judged
from clipvid.video.container import sniff
from clipvid.video.container.demux import Listing

BACKEND = "decord"
CONTAINERS = ("mov", "matroska", "avi", "flv", "ogg")
CODECS = ("h264", "hevc", "mpeg4", "h263", "mjpeg", "theora")
"""Codecs that decord reads like PyAV, frame by frame, in `CONTAINERS` and under the conditions of `objection`."""
SMALLEST = 16
"""Smallest side, in pixels, that decord decodes; it pads its frame buffers."""


def picture(path: str | Path, reader: Any, index: int) -> UInt8[Tensor, "3 h w"]:
    """Return one frame of an open video."""
    try:
        return torch.from_numpy(reader[index].asnumpy()).permute(2, 0, 1)  # (3, H, W)
    except Exception as error:  # decord's error types derive from Exception alone
        raise VideoError(path, f"frame {index} does not decode ({_cause(error)})", backend=BACKEND) from error


def objection(listing: Listing) -> str | None:
    """Return the kind of file that decord reads wrongly, if the file is one; each was observed in test files."""
    container, codec = listing.container.split(",")[0], listing.codec
    if codec in ("vp8", "vp9"):
        return f"{codec.upper()}, whose hidden frames it counts"
    if codec in ("av1", "gif"):
        return f"{codec.upper()}, which it cannot decode"
    if container not in CONTAINERS or codec not in CODECS:
        return f"{codec} in {container} faithfully: frames come shifted, or in the size of the first"
    if listing.streams > 1:
        return "files with several video streams, of which it selects another one"
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
    """Open a video with decord; raise VideoError if decord cannot."""
    del stream  # decord uses the first stream, and files with several are refused
    decord = require("decord", why="backend='decord'")
    decord.logging.set_level(decord.logging.QUIET)  # silences its bundled FFmpeg, used by nothing else
    try:
        return decord.VideoReader(
            sniff.checked(path, backend=BACKEND), ctx=decord.cpu(0), num_threads=decoder_threads()
        )
    except VideoError:
        raise
    except Exception as error:
        raise VideoError(path, f"cannot be opened ({_cause(error)}); try backend='pyav'", backend=BACKEND) from error


def _cause(error: Exception) -> str:
    """Return the first line of decord's message, without the source positions in front of the cause."""
    return re.sub(r"\[[\d:]+\] \S+: ", "", next(iter(str(error).splitlines()), type(error).__name__))


DECODER = Judged(BACKEND, objection=objection, opens=open_reader, picture=picture)
"""The decoder under its name in the registry."""
