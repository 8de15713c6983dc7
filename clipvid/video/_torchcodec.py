"""The third decoder, torchcodec: an extra, for machines with FFmpeg's libraries. The only file that knows it.

Contract: as _pyav, whose listing says first what a file holds. The kinds of files where torchcodec was seen to give
other frames or other colours are refused by name, and so is any file where it counts other frames.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from clipvid._optional import require
from clipvid.errors import MissingExtraError, VideoError
from clipvid.video import _files, _pyav
from clipvid.video._frames import Choice, Clock, Fit, VideoInfo, decoder_threads, in_range, stacked
from clipvid.video._packets import Listing
from clipvid.video._packets import listing as listing_of

BACKEND = "torchcodec"


def probe(path: str | Path) -> VideoInfo:
    """PyAV's facts, where torchcodec agrees with them."""
    info = _pyav.probe(path)
    decoder = _opened(path, _accepted(path))
    if len(decoder) != info.frames:
        raise VideoError(path, _counts(len(decoder), info.frames), backend=BACKEND)
    return info


def read(path: str | Path, choice: Choice, *, fit: Fit | None = None) -> UInt8[Tensor, "t 3 h w"]:
    """The chosen frames, upright."""
    clock = Clock(path, choice.time_limit, backend=BACKEND)
    listing = _accepted(path)
    decoder = _opened(path, listing)
    wanted = choice.of(listing.times)
    in_range(wanted, path=path, frames=len(listing.times), backend=BACKEND)
    pictures = {}
    for index in sorted(set(wanted)):
        clock.check()
        picture = _frame(path, decoder, index)
        pictures[index] = picture if fit is None else fit(picture)
    return stacked(pictures, wanted, path=path, backend=BACKEND)


def _accepted(path: str | Path) -> Listing:
    """The listing of a file whose frames torchcodec finds, else VideoError with the kind it gets wrong."""
    listing, wrong = listing_of(path), None
    if listing.container in ("mpeg", "mpegts"):
        wrong = "MPEG streams, where frames come shifted, or in the size of the first"
    elif listing.container == "avi" and listing.reordered:
        wrong = "B-frames in AVI, which it shifts"
    elif listing.codec in ("vp8", "vp9"):
        wrong = f"{listing.codec.upper()}, whose hidden frames it counts"
    elif listing.deep:
        wrong = f"more than 8 bits per value ({listing.pixels}), whose colours it changes"
    elif listing.width % 2 or listing.height % 2:
        wrong = f"frames with an odd side ({listing.width}x{listing.height}), whose colours it changes"
    if wrong:
        raise VideoError(path, f"torchcodec does not read {wrong}; use backend='pyav'", backend=BACKEND)
    return listing


def _decoders() -> ModuleType:
    try:
        return require("torchcodec.decoders", extra="torchcodec", why="backend='torchcodec'")
    except (RuntimeError, OSError) as error:  # it is installed, and finds no FFmpeg that it can load
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise MissingExtraError(
            f"backend='torchcodec' needs FFmpeg's shared libraries on this machine ({cause}); install FFmpeg, for "
            "example with the system's package manager, or use backend='pyav', which brings its own"
        ) from error


def _opened(path: str | Path, listing: Listing) -> Any:
    """A decoder in exact mode, which scans the packets instead of trusting the header's frame rate."""
    decoders = _decoders()
    try:
        decoder = decoders.VideoDecoder(
            _files.checked(path, backend=BACKEND),
            stream_index=listing.stream,
            seek_mode="exact",
            num_ffmpeg_threads=decoder_threads(),
        )
    except (RuntimeError, ValueError) as error:
        raise VideoError(path, f"cannot be opened ({error}); try backend='pyav'", backend=BACKEND) from error
    if len(decoder) != len(listing.times):
        raise VideoError(path, _counts(len(decoder), len(listing.times)), backend=BACKEND)
    if not _pyav.same_first_frame(path, _frame(path, decoder, 0)):
        raise VideoError(path, "torchcodec shows another first frame than PyAV; use backend='pyav'", backend=BACKEND)
    return decoder


def _frame(path: str | Path, decoder: Any, index: int) -> UInt8[Tensor, "3 h w"]:
    try:
        return decoder.get_frame_at(index).data
    except (RuntimeError, IndexError) as error:
        raise VideoError(path, f"frame {index} does not decode ({error})", backend=BACKEND) from error


def _counts(found: int, expected: int) -> str:
    return f"torchcodec finds {found} frames where there are {expected}; use backend='pyav'"
