"""Taps of a data set: computed once by the frozen tower, then read in every epoch.

Contract: a FeatureSource of taps in memory or on disk, by row. Cached taps equal live ones for a model with the same
tower, which a store checks: frames are sampled deterministically, or augmented views once (`AugmentedViews`). Knows
nothing of losses or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from clipvid.config import checks
from clipvid.config.data_config import DataConfig
from clipvid.data.batches.batch import NO_LABEL
from clipvid.data.records import VideoDataset
from clipvid.errors import VideoError
from clipvid.features.augmented_views import AugmentedViews
from clipvid.features.source import CachedClips, FeatureBatch
from clipvid.features.taps.cached_taps import FirstLayerTaps
from clipvid.features.taps.transfer import start_transfer
from clipvid.features.text_cache import TextCache
from clipvid.models.backbone.taps import Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.prefetch import prefetch
from clipvid.runtime.profiling import awaited

T = TypeVar("T")
CPU = torch.device("cpu")


@runtime_checkable
class Rows(Protocol):
    """Taps of clips by index: in memory (Taps), or on disk (clipvid.features.taps.cached_taps)."""

    def select(self, levels: Sequence[int]) -> Rows: ...

    def part(self, rows: Sequence[int]) -> Rows: ...

    def gather(self, rows: Any) -> Taps: ...


@dataclass(frozen=True)
class TapStore:
    """Taps of a data set, clip i at row i, in memory or on disk: a FeatureSource.

    `data` holds the records that were encoded, in order; `unreadable` the errors of those that were left out;
    `tower_fingerprint` is that of the model that encoded them (`Backbone.tower_fingerprint`).
    """

    taps: Rows
    data: VideoDataset
    data_config: DataConfig
    tower_fingerprint: str
    unreadable: tuple[VideoError, ...] = ()
    texts: TextCache | None = None
    """Cache of the captions' embeddings, if there is one."""
    origin: str = "taps in memory"
    """Description of the source of the taps; taps from another source may differ."""
    augmented_views: AugmentedViews | None = None
    """Settings of the augmented views; None for one fixed view per clip."""
    others: tuple[Rows, ...] = ()
    """Further augmented views of the clips; `taps` is the first."""
    device: torch.device = CPU
    """Device of the streamed features: that of the model after `read_by`."""
    on_demand: bool = False
    """True if `stream` yields `CachedClips`, whose taps are read when they are needed (gradient caching)."""

    def stream(self, order: Sequence[Sequence[int]]) -> Generator[FeatureBatch, None, None]:
        """Yield the taps of each batch of rows on the store's device, read ahead of their use."""
        labels = self.labels
        jobs = (partial(self._read, rows) for rows in order)
        with closing(awaited(self._in_turn(jobs))) as source:
            for rows, taps in zip(order, source, strict=True):
                yield FeatureBatch(taps(), list(rows), labels[list(rows)].to(self.device))

    def _read(self, rows: Sequence[int]) -> Callable[[], Taps | CachedClips]:
        """Start to read a batch, unless it is read on demand, and return the function that returns its taps."""
        if self.on_demand:
            return partial(CachedClips, self, rows, self.device)
        return start_transfer(self.batch(rows), self.device)

    def _in_turn(self, jobs: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
        """Yield the results of jobs that read these taps, in order: two ahead of their use, in a thread.

        Jobs on `FirstLayerTaps`, which computes its batches, run in the caller's thread: torch caches autocast's casts
        for all threads in one place, and a thread that leaves autocast would clear those of a training step.
        """
        return (job() for job in jobs) if isinstance(self.taps, FirstLayerTaps) else prefetch(jobs)

    def __len__(self) -> int:
        return len(self.data)

    def read_by(self, model: VideoCLIP) -> TapStore:
        """Return a store of the levels that the model's branch reads, streamed to its device; copies nothing.

        Raises ValueError for a level that is not stored, and for taps of another tower.
        """
        if (fingerprint := model.backbone.tower_fingerprint) != self.tower_fingerprint:
            raise ValueError(
                f"the taps of {self.data.name} were made by a tower with fingerprint {self.tower_fingerprint[:12]}, "
                f"this model's is {fingerprint[:12]}; encode the videos again with this model"
            )
        return replace(self._each(lambda view: view.select(model.branch.levels)), device=model.device)

    def subset(self, rows: Sequence[int]) -> TapStore:
        """Return a store of these clips, in this order."""
        return replace(self._each(lambda view: view.part(rows)), data=self.data.subset(rows))

    def at(self, epoch: int) -> TapStore:
        """Return a store of the view that this epoch of a training run reads."""
        views = [self.taps, *self.others]
        return replace(self, taps=views[epoch % len(views)], others=())

    def _each(self, change: Callable[[Rows], Rows]) -> TapStore:
        return replace(self, taps=change(self.taps), others=tuple(map(change, self.others)))

    def batch(self, indices: Sequence[int]) -> Taps:
        """Return the taps of these clips, in this order."""
        return self.taps.gather(indices)

    def reordered(self, frames: Tensor) -> TapStore:
        """Return a store of the clips with their frames in another order; `frames` (n, T) are indices of source frames.

        Only the first of several augmented views is returned.
        """
        rows, taps_of_all = torch.arange(len(self))[:, None], self.batch(range(len(self)))
        taps = taps_of_all.map(lambda t: t[rows, frames])
        return replace(self, taps=taps if taps.mask is None else replace(taps, mask=taps.mask[rows, frames]), others=())

    @property
    def labels(self) -> Tensor:
        """Class indices (n,) of the clips; NO_LABEL for a clip without one."""
        return torch.tensor([NO_LABEL if r.label is None else r.label for r in self.data])


def dataset_of(data: VideoDataset | TapStore) -> VideoDataset:
    """Return the data set itself, or the one whose taps a store holds."""
    advice = "open one by clipvid.open_dataset, or build it by VideoDataset.from_arrays"
    checks.of_type("data", data, (VideoDataset, TapStore), must="a VideoDataset", advice=advice)
    return data.data if isinstance(data, TapStore) else data


def check_storable(model: VideoCLIP, data_config: DataConfig) -> None:
    """Raise ValueError for several evaluation views, and for a branch that reads pixels: they have no taps to cache."""
    if data_config.views > 1:
        raise ValueError(
            f"a TapStore holds no views for evaluation, got temporal_views={data_config.temporal_views} and "
            f"spatial_views={data_config.spatial_views}; leave them at 1, or evaluate the data without storing taps"
        )
    if model.branch.reads_pixels:
        raise ValueError(
            f"branch {model.branch.options.preset()} has its own stem and reads pixels, so it has no taps to "
            "cache; train it without cache_taps"
        )
