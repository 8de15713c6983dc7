"""What the decoders share: the facts of a video, the rule of choosing frames, and stacking them.

Contract: `Choice` says which frames; every decoder's `read(path, choice, fit=...)` returns uint8 (T, 3, H, W) by it.
Knows nothing of a decoder.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError

PIXEL_LIMIT = 16384 * 16384
"""Most pixels a frame may have; a header that claims more is damaged or malicious, and would exhaust memory."""

Fit = Callable[[UInt8[Tensor, "3 height width"]], UInt8[Tensor, "3 h w"]]


Keep = Callable[[int, float | None], bool]
"""Whether a frame is wanted, from its number and its time in seconds from the first (None where nothing tells)."""


class Shown(NamedTuple):
    """A frame of a video that is read from one end to the other."""

    index: int
    time: float | None
    """Seconds from the first frame; None for pictures, whose times nothing tells."""
    picture: UInt8[Tensor, "3 h w"]


@dataclass(frozen=True)
class VideoInfo:
    """The facts of one video, measured on its frames rather than read from its header."""

    path: Path
    frames: int
    """How many frames it shows: those an edit list cuts away and hidden ones are not counted."""
    fps: float
    """Average frames per second; 0 for a single frame without any rate."""
    duration: float
    """Seconds from the start of the first frame to the end of the last."""
    height: int
    width: int
    """Size of the upright picture."""
    codec: str
    rotation: int
    """Degrees counter-clockwise that the stored picture is turned by to stand upright, as FFmpeg says (-180 to 180)."""
    times: tuple[float, ...]
    """Seconds of each frame, relative to the first, never falling."""


@dataclass(frozen=True)
class Choice:
    """Which frames to read: fixed indices, a rule on the times of all frames, or (neither) every frame."""

    indices: tuple[int, ...] | None = None
    rule: Callable[[Sequence[float]], Sequence[int]] | None = None
    by_time: bool = False
    """Whether the rule looks at the times themselves, not only at how many there are."""
    until: float = math.inf
    """The rule takes nothing from this second on, so decoding may stop there."""
    time_limit: float | None = None
    """Seconds that reading may take."""

    def of(self, times: Sequence[float]) -> list[int]:
        """The indices for a video with these times; not yet checked against its length."""
        if self.indices is not None:
            return list(self.indices)
        chosen = [int(i) for i in self.rule(times)] if self.rule else list(range(len(times)))
        if not chosen:
            raise ValueError(f"no frame was chosen out of {len(times)}; choose one or more")
        return chosen


class Clock:
    """A limit on the time that one file may take: VideoError from the first check after it."""

    def __init__(self, path: str | Path, limit: float | None, *, backend: str) -> None:
        self.path, self.limit, self.backend = path, limit, backend
        self.end = math.inf if limit is None else time.monotonic() + limit

    def check(self) -> None:
        if time.monotonic() > self.end:
            reason = f"took more than {self.limit:g} s to decode; allow more with time_limit, or cut the video"
            raise VideoError(self.path, reason, backend=self.backend)


_here = threading.local()


def decode_in_one_thread() -> None:
    """Have what the calling thread decodes from now on decoded by it alone: several such threads share the cores."""
    _here.threads = 1


def decoder_threads() -> int:
    """How many threads a decoder may use; 1 in a loader worker, where the processes share the cores."""
    return getattr(_here, "threads", None) or min(torch.get_num_threads(), 8)


def in_range(indices: Sequence[int], *, path: str | Path, frames: int, backend: str) -> None:
    """VideoError unless every index is a frame of the video."""
    if wrong := sorted({i for i in indices if not 0 <= i < frames}):
        raise VideoError(path, f"frame {wrong[0]} was asked for, it has frames 0 to {frames - 1}", backend=backend)


def stacked(
    pictures: Mapping[int, Tensor], indices: Sequence[int], *, path: str | Path, backend: str
) -> UInt8[Tensor, "t 3 h w"]:
    """The pictures of `indices` as one tensor; VideoError if their sizes differ."""
    sizes = {tuple(pictures[i].shape[1:]) for i in indices}
    if len(sizes) > 1:
        named = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise VideoError(path, f"its frames differ in size ({named}); pass fit= to bring them to one", backend=backend)
    chosen = [pictures[i] for i in indices]
    if any(picture.dtype != torch.uint8 or picture.device.type != "cpu" for picture in chosen):
        return torch.stack(chosen).contiguous()
    frames = torch.empty((len(chosen), *chosen[0].shape), dtype=torch.uint8)
    for frame, picture in zip(frames, chosen, strict=True):  # numpy copies channels-last pictures about 5 times faster
        np.copyto(frame.numpy(), picture.numpy())
    return frames


def check_pixels(width: int, height: int, *, path: str | Path, backend: str) -> None:
    """VideoError for a frame beyond PIXEL_LIMIT."""
    if width * height > PIXEL_LIMIT:
        raise VideoError(path, f"frames of {width}x{height} exceed the limit of {PIXEL_LIMIT} pixels", backend=backend)


def settled(stamps: Sequence[float | None], *, rate: float) -> tuple[float, ...]:
    """Time stamps of frames in presentation order as seconds relative to the first, never falling.

    Some containers (AVI with B-frames) stamp frames in coding order: the k-th frame then takes the k-th smallest
    stamp. Where a stamp is missing (raw streams), all are taken from the frame rate.
    """
    if not stamps or any(stamp is None for stamp in stamps):
        return tuple(i / rate for i in range(len(stamps)))
    known = sorted(stamp for stamp in stamps if stamp is not None)
    return tuple(stamp - known[0] for stamp in known)
