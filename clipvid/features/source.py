"""Sources of a data set's features: one protocol for the live tower, taps in memory and taps on disk.

Contract: batches of rows in, their features out, in that order. `features.encode` has the live source and
`features.tap_store` the one of taps that are computed already. Knows nothing of losses or metrics.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from clipvid.data.batches.batch import in_order
from clipvid.data.records import VideoDataset
from clipvid.errors import VideoError
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.runtime.display.progress import progress_bar


@runtime_checkable
class TapReader(Protocol):
    """The interface of a store that reads the taps of clips by row."""

    def batch(self, indices: Sequence[int]) -> Taps: ...


class CachedClips:
    """Clips whose taps are read from a store on demand, so that a large batch need not fit in memory."""

    def __init__(self, store: TapReader, rows: Sequence[int], device: torch.device) -> None:
        self.store = store
        self.rows = rows
        self.device = device

    def gather(self, indices: Sequence[int] | Tensor) -> Taps:
        """Return the taps of the clips at these indices into `rows`, on the device."""
        chosen = indices.tolist() if isinstance(indices, Tensor) else indices
        return self.store.batch([self.rows[index] for index in chosen]).to(self.device)


@dataclass(frozen=True)
class FeatureBatch:
    """Features of one batch of clips, on the model's device, and the errors of the clips that could not be read."""

    features: Tensor | Taps | Pixels | CachedClips | None
    """Taps or pixels for the branch; decoded clips (B, T, 3, S, S), more axes for several views, for a source that
    encodes nothing; None for a batch without a readable clip."""
    rows: list[int]
    """Indices into the source's data of the clips that were read."""
    labels: Int[Tensor, " b"]
    """Class indices of the clips that were read, on the model's device."""
    mask: Bool[Tensor, "... t"] | None = None
    """Mask of decoded clips, False for frames that pad a shorter clip; None without padding, and for features."""
    unreadable: tuple[VideoError, ...] = ()


@runtime_checkable
class FeatureSource(Protocol):
    """The interface of a data set's features from any source: the live tower, memory or disk."""

    @property
    def data(self) -> VideoDataset: ...

    @property
    def unreadable(self) -> tuple[VideoError, ...]: ...

    def at(self, epoch: int) -> FeatureSource:
        """Return the source of the clips' view in this epoch of a training run."""
        ...

    def stream(self, order: Sequence[Sequence[int]]) -> Generator[FeatureBatch, None, None]:
        """Yield the features of each batch of rows, in this order; close the generator to stop early."""
        ...


def stream_in_order(
    source: FeatureSource, batch_size: int, *, progress: bool = False, title: str = "encode"
) -> Generator[FeatureBatch, None, None]:
    """Yield the features of every clip of a source once, in the order of its data, with a progress bar on request."""
    total = len(source.data)
    batches = source.stream(in_order(total, batch_size))
    with closing(batches), progress_bar(total, title, unit="clip", shown=progress) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.rows) + len(batch.unreadable))
