"""The third decoder, torchcodec: an extra for machines with FFmpeg's libraries. No other file uses torchcodec.

Contract: as pyav.py, whose listing of the file comes first. Kinds of files for which tests showed that torchcodec
returns other frames or colours are refused by name, and so is any file of which it counts other frames.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import MissingExtraError, VideoError
from clipvid.runtime.optional import require
from clipvid.video.backends.base import decoder_threads
from clipvid.video.backends.judged import Judged
from clipvid.video.container import sniff
from clipvid.video.container.demux import Listing

BACKEND = "torchcodec"


def objection(listing: Listing) -> str | None:
    """Return the kind of file that torchcodec reads wrongly, if the file is one."""
    if listing.container in ("mpeg", "mpegts"):
        return "MPEG streams, where frames come shifted, or in the size of the first"
    if listing.container == "avi" and listing.reordered:
        return "B-frames in AVI, which it shifts"
    if listing.codec in ("vp8", "vp9"):
        return f"{listing.codec.upper()}, whose hidden frames it counts"
    if listing.deep:
        return f"more than 8 bits per value ({listing.pixels}), whose colours it changes"
    if listing.width % 2 or listing.height % 2:
        return f"frames with an odd side ({listing.width}x{listing.height}), whose colours it changes"
    return None


def _decoders() -> ModuleType:
    """Return torchcodec's decoders module; raise MissingExtraError if it or FFmpeg is missing."""
    try:
        return require("torchcodec.decoders", extra="torchcodec", why="backend='torchcodec'")
    except (RuntimeError, OSError) as error:  # torchcodec is installed but finds no FFmpeg to load
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise MissingExtraError(
            f"backend='torchcodec' needs FFmpeg's shared libraries on this machine ({cause}); install FFmpeg, for "
            "example with the system's package manager, or use backend='pyav', which brings its own"
        ) from error


def open_reader(path: str | Path, stream: int) -> Any:
    """Open a decoder in exact mode, which scans the packets instead of trusting the header's frame rate."""
    decoders = _decoders()
    try:
        return decoders.VideoDecoder(
            sniff.checked(path, backend=BACKEND),
            stream_index=stream,
            seek_mode="exact",
            num_ffmpeg_threads=decoder_threads(),
        )
    except (RuntimeError, ValueError) as error:
        raise VideoError(path, f"cannot be opened ({error}); try backend='pyav'", backend=BACKEND) from error


def picture(path: str | Path, decoder: Any, index: int) -> UInt8[Tensor, "3 h w"]:
    """Return one frame of an open video."""
    try:
        return decoder.get_frame_at(index).data
    except (RuntimeError, IndexError) as error:
        raise VideoError(path, f"frame {index} does not decode ({error})", backend=BACKEND) from error


DECODER = Judged(BACKEND, objection=objection, opens=open_reader, picture=picture)
"""The decoder under its name in the registry."""
