"""Taps of a whole data set: made once by the frozen tower, then read as often as training likes.

Contract: a model and a VideoDataset in, Taps by index out. Cached equals live for a model with the same tower, which a
store checks: frames are sampled without chance, or views are drawn once (`AugmentedViews`). Knows nothing of losses
or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from clipvid.config.data_config import DataConfig
from clipvid.data.batch import NO_LABEL
from clipvid.data.records import VideoDataset
from clipvid.errors import VideoError
from clipvid.features.augmented_views import AugmentedViews
from clipvid.features.cached_taps import FirstLayerTaps
from clipvid.features.text_cache import TextCache
from clipvid.features.transfer import sent
from clipvid.models.backbone.taps import Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.prefetch import prefetch

T = TypeVar("T")


@runtime_checkable
class Rows(Protocol):
    """Taps of clips by number: in memory (Taps), or on disk (clipvid.features.cached_taps)."""

    def select(self, levels: Sequence[int]) -> Rows: ...

    def part(self, rows: Sequence[int]) -> Rows: ...

    def gather(self, rows: Any) -> Taps: ...


@dataclass(frozen=True)
class TapStore:
    """The taps of a data set, clip i at row i; those that `encode` makes are in memory.

    `data` holds the records that were encoded, in order; `unreadable` what had to be left out, and why; `tower` is
    `Backbone.tower_fingerprint` of the model that encoded them.
    """

    taps: Rows
    data: VideoDataset
    data_config: DataConfig
    tower: str
    unreadable: tuple[VideoError, ...] = ()
    texts: TextCache | None = None
    """Where embeddings of its captions are kept too."""
    origin: str = "taps in memory"
    """What the taps are read from, in words: another cache may give other bits."""
    augmented_views: AugmentedViews | None = None
    """How chance drew what is kept; None for one fixed view of each clip."""
    others: tuple[Rows, ...] = ()
    """Views of the clips beside `taps`, where several were drawn."""

    def in_turn(self, jobs: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
        """Results of jobs that read these taps, in order: two ahead of their use, in a thread.

        Of a trunk, whose batches are computed, they are made here: torch remembers autocast's casts for all threads in
        one place, and a thread that leaves autocast would clear what a training step has there.
        """
        return (job() for job in jobs) if isinstance(self.taps, FirstLayerTaps) else prefetch(jobs)

    def __len__(self) -> int:
        return len(self.data)

    def read_by(self, model: VideoCLIP) -> TapStore:
        """What the model's branch reads of this store; copies nothing.

        Raises ValueError for a level that is not here, and for taps of another tower.
        """
        if (own := model.backbone.tower_fingerprint) != self.tower:
            raise ValueError(
                f"the taps of {self.data.name} were made by a tower with fingerprint {self.tower[:12]}, this model's "
                f"is {own[:12]}; encode the videos anew with this model"
            )
        return self._each(lambda view: view.select(model.branch.levels))

    def subset(self, rows: Sequence[int]) -> TapStore:
        """The store of these clips, in this order."""
        return replace(self._each(lambda view: view.part(rows)), data=self.data.subset(rows))

    def at(self, epoch: int) -> TapStore:
        """The view of every clip that this epoch of a training reads."""
        every = [self.taps, *self.others]
        return replace(self, taps=every[epoch % len(every)], others=())

    def _each(self, change: Callable[[Rows], Rows]) -> TapStore:
        return replace(self, taps=change(self.taps), others=tuple(map(change, self.others)))

    def batch(self, indices: Sequence[int]) -> Taps:
        """The taps of these clips, in this order."""
        return self.taps.gather(indices)

    def sent(self, indices: Sequence[int], device: torch.device) -> Callable[[], Taps]:
        """`batch`, on its way to a device; the call gives it there (`clipvid.features.transfer`)."""
        return sent(self.batch(indices), device)

    def reordered(self, frames: Tensor) -> TapStore:
        """The same clips with their frames in another order: `frames` (n, T) has the place each frame comes from.

        Of drawn views the first.
        """
        rows, everything = torch.arange(len(self))[:, None], self.batch(range(len(self)))
        taps = everything.map(lambda t: t[rows, frames])
        return replace(self, taps=taps if taps.mask is None else replace(taps, mask=taps.mask[rows, frames]), others=())

    @property
    def labels(self) -> Tensor:
        return torch.tensor([NO_LABEL if r.label is None else r.label for r in self.data])


def dataset_of(data: VideoDataset | TapStore) -> VideoDataset:
    """What is known about the clips, whether their taps are kept or not."""
    return data.data if isinstance(data, TapStore) else data


def check_storable(model: VideoCLIP, data_config: DataConfig) -> None:
    """ValueError for what has no taps to keep: several views, and branches that read pixels."""
    if data_config.views > 1:
        raise ValueError(
            f"a TapStore keeps no views for evaluation, got temporal_views={data_config.temporal_views} and "
            f"spatial_views={data_config.spatial_views}; leave them at 1, or evaluate the data without storing taps"
        )
    if model.branch.reads_pixels:
        raise ValueError(
            f"branch {model.branch.options.preset()} has a stem of its own and reads pixels, so it has no taps to "
            "keep; train it without cache_taps"
        )
