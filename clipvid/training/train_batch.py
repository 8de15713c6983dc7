"""One batch of training: clips or their taps, captions, labels.

Contract: plain data, passed from batches.py to the objectives. Knows nothing of data sets, caches, losses or models.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Int
from torch import Tensor

from clipvid.data.records import VideoDataset
from clipvid.features.source import CachedClips
from clipvid.models.backbone.taps import Taps


class TrainBatch:
    """Clips or taps, captions and labels of one batch; a plain object, which Fabric passes on unchanged.

    Args:
        index: position in the epoch's batch order; positions without a readable clip are left out.
        video: clips (B, T, 3, S, S), pairs of clips (B, 2, T, 3, S, S), taps, or with gradient caching clips whose
            taps are read on demand.
        mask: False for frames that pad a shorter clip; None without padding.
        text: embeddings (M, E) of the captions, or token ids (M, ctx) for a text tower that trains.
        video_index: (M,), the row of the clip that each caption describes.
        labels: (B,), class indices.
    """

    def __init__(
        self,
        index: int,
        video: Tensor | Taps | CachedClips,
        *,
        mask: Tensor | None,
        text: Tensor,
        video_index: Tensor,
        labels: Tensor,
    ) -> None:
        self.index = index
        self.video = video
        self.mask = mask
        self.text = text
        self.video_index = video_index
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def clips(self, rows: Int[Tensor, " n"]) -> tuple[Tensor | Taps, Bool[Tensor, "n t"] | None]:
        """Return the clips of these rows and the mask of their frames."""
        video = self.video[rows] if isinstance(self.video, Tensor) else self.video.gather(rows)
        return video, None if self.mask is None else self.mask[rows]


@runtime_checkable
class BatchSource(Protocol):
    """The interface of a data set that is read in training batches."""

    @property
    def data(self) -> VideoDataset: ...

    def batches(self, epoch: int, *, start: int) -> Generator[TrainBatch, None, None]: ...
