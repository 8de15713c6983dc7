"""Decoded clips and batches of them.

Contract: plain tensors and numbers. A clip that could not be read is a VideoError beside the others; it never becomes
zeros or another clip. Knows nothing of files, decoders or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.runtime.text import pluralize

NO_LABEL = -1


class Spent(NamedTuple):
    """Seconds that making something took, wherever it was made."""

    decode: float
    transform: float


NO_TIME = Spent(0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded clip, or several views of it (V, T, ...).

    `mask` is False for frames that repeat the last one because the video has fewer.
    """

    video: UInt8[Tensor, "*v t 3 h w"]
    mask: Bool[Tensor, "*v t"]
    label: int
    """NO_LABEL (-1) where the record has none."""
    index: int
    spent: Spent = NO_TIME


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """Clips side by side; `index` is the place of each in the data set.

    `video` and `mask` have an axis V behind B where a clip has several views.
    """

    video: UInt8[Tensor, "b *v t 3 h w"]
    labels: Int64[Tensor, " b"]
    index: Int64[Tensor, " b"]
    mask: Bool[Tensor, "b *v t"]
    unreadable: tuple[VideoError, ...] = ()
    """Why the clips that are not here could not be read (only with `unreadable="skip"`)."""
    spent: Spent = NO_TIME
    """On all clips together."""

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        lost = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        return f"Batch(video {tuple(self.video.shape)}{lost})"

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on `device`."""
        return replace(self, **{name: t.to(device, non_blocking=non_blocking) for name, t in self._tensors().items()})

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; DataLoader(pin_memory=True) calls it."""
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
    """Put items into a Batch. The unreadable ones go to its `unreadable`; if there is no other, B, T and S are 0."""
    clips = [item for item in items if isinstance(item, Clip)]
    return Batch(
        video=torch.stack([clip.video for clip in clips]) if clips else torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8),
        labels=torch.tensor([clip.label for clip in clips], dtype=torch.int64),
        index=torch.tensor([clip.index for clip in clips], dtype=torch.int64),
        mask=torch.stack([clip.mask for clip in clips]) if clips else torch.empty(0, 0, dtype=torch.bool),
        unreadable=tuple(item for item in items if isinstance(item, VideoError)),
        spent=Spent(*(float(sum(seconds)) for seconds in zip(NO_TIME, *(clip.spent for clip in clips), strict=True))),
    )


def describe_unreadable(errors: Sequence[VideoError]) -> str:
    """What a report says of skipped files: how many, and the reason of each; "" when there are none."""
    if not errors:
        return ""
    count = pluralize(len(errors), "video")
    return "\n".join([f"{count} could not be read and took no part:", *(f"  {error}" for error in errors)])
