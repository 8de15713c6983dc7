"""Types and functions shared by the decoders: video metadata, the choice of frames, stacking of frames.

Contract: `Choice` selects frames, and every decoder's `read(path, choice, fit=...)` returns the selected frames as
uint8 (T, 3, H, W). Knows nothing of any particular decoder.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.video.container.times import FrameTimes

Fit = Callable[[UInt8[Tensor, "3 height width"]], UInt8[Tensor, "3 h w"]]
"""Function applied to each frame as soon as it is decoded, such as a resize."""

Keep = Callable[[int, float | None], bool]
"""Predicate that selects a frame by its index and its time in seconds from the first (None if times are unknown)."""


class Shown(NamedTuple):
    """One frame of a streamed video."""

    index: int
    time: float | None
    """Seconds from the first frame; None for pictures, which have no times."""
    picture: UInt8[Tensor, "3 h w"]


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of one video, measured on its decoded frames instead of read from its header."""

    path: Path
    frames: int
    """Number of shown frames; hidden frames and frames removed by an edit list are not counted."""
    fps: float
    """Average frames per second; 0 for a single frame without a declared rate."""
    duration: float
    """Seconds from the start of the first frame to the end of the last (`FrameTimes.end`)."""
    height: int
    width: int
    """Width in pixels. Height and width are those of the upright picture."""
    codec: str
    rotation: int
    """Counter-clockwise rotation in degrees that turns the stored picture upright, from FFmpeg (-180 to 180)."""
    times: tuple[float, ...]
    """Frame times in seconds from the first frame, in non-decreasing order."""


@dataclass(frozen=True)
class Choice:
    """Selection of frames: fixed indices, a rule applied to the times of all frames, or (without both) every frame."""

    indices: tuple[int, ...] | None = None
    rule: Callable[[FrameTimes], Sequence[int]] | None = None
    by_time: bool = False
    """True if the rule depends on the times themselves, not only on their number."""
    until: float = math.inf
    """Time in seconds from which on the rule selects no frame, so that decoding may stop there."""
    time_limit: float | None = None
    """Longest time in seconds that reading may take; None for no limit."""

    def of(self, shown: FrameTimes) -> list[int]:
        """Return the selected indices for a video with these times, not yet checked against its length.

        Raise ValueError if the rule selects no frame.
        """
        if self.indices is not None:
            return list(self.indices)
        chosen = [int(i) for i in self.rule(shown)] if self.rule else list(range(len(shown.times)))
        if not chosen:
            raise ValueError(
                f"the rule must select at least one frame, got none of {len(shown.times)}; return one index or more"
            )
        return chosen


class Clock:
    """Time limit for decoding one file; `check` raises VideoError once it has passed."""

    def __init__(self, path: str | Path, limit: float | None, *, backend: str) -> None:
        self.path = path
        self.limit = limit
        self.backend = backend
        self.end: float = math.inf if limit is None else time.monotonic() + limit

    def check(self) -> None:
        """Raise VideoError if the time limit has passed."""
        if time.monotonic() > self.end:
            reason = f"took more than {self.limit:g} s to decode; allow more with time_limit, or cut the video"
            raise VideoError(self.path, reason, backend=self.backend)


_thread_settings = threading.local()


def decode_in_one_thread() -> None:
    """Use one decoder thread for everything that the calling thread decodes from now on.

    Meant for pools of decoding threads, which share the cores already.
    """
    _thread_settings.threads = 1


def decoder_threads() -> int:
    """Return the number of threads a decoder may use; 1 in a loader worker, because the workers share the cores."""
    return getattr(_thread_settings, "threads", None) or min(torch.get_num_threads(), 8)


def in_range(indices: Sequence[int], *, path: str | Path, frames: int, backend: str) -> None:
    """Raise VideoError unless every index is a frame of the video."""
    if out_of_range := sorted({i for i in indices if not 0 <= i < frames}):
        raise VideoError(
            path, f"frame {out_of_range[0]} was requested, it has frames 0 to {frames - 1}", backend=backend
        )


def stacked(
    pictures: dict[int, Tensor], indices: Sequence[int], *, path: str | Path, backend: str
) -> UInt8[Tensor, "t 3 h w"]:
    """Return the pictures of `indices` as one tensor (T, 3, H, W); raise VideoError if their sizes differ.

    Empties `pictures` while it copies them, so that the clip is in memory once, not twice.
    """
    sizes = {tuple(pictures[i].shape[1:]) for i in indices}
    if len(sizes) > 1:
        size_names = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise VideoError(
            path, f"its frames differ in size ({size_names}); pass fit= to bring them to one", backend=backend
        )
    if any(pictures[i].dtype != torch.uint8 or pictures[i].device.type != "cpu" for i in indices):
        return torch.stack([pictures[i] for i in indices]).contiguous()
    frames = torch.empty((len(indices), *pictures[indices[0]].shape), dtype=torch.uint8)
    last_use = {index: position for position, index in enumerate(indices)}
    for position, index in enumerate(indices):
        picture = pictures.pop(index) if last_use[index] == position else pictures[index]
        np.copyto(frames[position].numpy(), picture.numpy())  # numpy copies channels-last pictures 5 times faster.
    return frames
