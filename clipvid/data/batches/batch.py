"""Decoded clips and batches of them.

Contract: plain tensors and numbers. An unreadable clip is reported as a VideoError; it never becomes zeros or another
clip. Knows nothing of files, decoders or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.runtime.display.names import show
from clipvid.runtime.text import pluralize

NO_LABEL = -1


class Durations(NamedTuple):
    """Seconds spent on decoding and on transforms, summed over threads and processes."""

    decode: float
    transform: float


NO_TIME = Durations(0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded clip, or several views of it (V, T, ...).

    `mask` is False for padding: copies of the last frame, where the video has too few frames.
    """

    video: UInt8[Tensor, "*v t 3 h w"]
    mask: Bool[Tensor, "*v t"]
    label: int
    """Class index, or NO_LABEL (-1) if the record has none."""
    index: int
    durations: Durations = NO_TIME


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """Stacked clips; `index` holds the position of each in the data set.

    `video` and `mask` have an axis V after B if clips have several views.
    """

    video: UInt8[Tensor, "b *v t 3 h w"]
    labels: Int64[Tensor, " b"]
    index: Int64[Tensor, " b"]
    mask: Bool[Tensor, "b *v t"]
    unreadable: tuple[VideoError, ...] = ()
    """Errors of the clips left out because they could not be read (only with `unreadable="skip"`)."""
    durations: Durations = NO_TIME
    """Seconds spent on all clips together."""

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        suffix = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        return f"Batch(video {tuple(self.video.shape)}{suffix})"

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on `device`."""
        return replace(self, **{name: t.to(device, non_blocking=non_blocking) for name, t in self._tensors().items()})

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; DataLoader(pin_memory=True) calls it."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@runtime_checkable
class ClipSource(Protocol):
    """The interface that a loader needs from a data set of clips."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Clip | VideoError: ...
    def stopping(self, stopped: Callable[[], bool]) -> ClipSource: ...


def collate(items: Sequence[Clip | VideoError]) -> Batch:
    """Stack items into a Batch, with VideoErrors in `unreadable`; B, T and S are 0 if no clip is readable."""
    clips = [item for item in items if isinstance(item, Clip)]
    return Batch(
        video=torch.stack([clip.video for clip in clips]) if clips else torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8),
        labels=torch.tensor([clip.label for clip in clips], dtype=torch.int64),
        index=torch.tensor([clip.index for clip in clips], dtype=torch.int64),
        mask=torch.stack([clip.mask for clip in clips]) if clips else torch.empty(0, 0, dtype=torch.bool),
        unreadable=tuple(item for item in items if isinstance(item, VideoError)),
        durations=Durations(
            *(float(sum(seconds)) for seconds in zip(NO_TIME, *(clip.durations for clip in clips), strict=True))
        ),
    )


def describe_unreadable(errors: Sequence[VideoError]) -> str:
    """Return the number of skipped files and the reason for each, one per line; "" if there are none."""
    if not errors:
        return ""
    count = pluralize(len(errors), "video")
    return "\n".join([f"{count} could not be read (left out):", *(f"  {show(str(error))}" for error in errors)])


def in_order(n: int, size: int) -> list[range]:
    """Return the batch order of `n` clips in their original order, `size` clips per batch."""
    return [range(first, min(first + size, n)) for first in range(0, n, size)]
