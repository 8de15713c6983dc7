"""Taps of a whole data set: made once by the frozen tower, then read as often as training likes.

Contract: a model and a VideoData in, Taps by index out. Cached equals live for a model with the same tower, which a
store checks, since frames are sampled without chance. Knows nothing of losses or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from clipvid._ahead import ahead
from clipvid.branches import preset_of
from clipvid.cache.kept import KeptTrunk
from clipvid.cache.stream import stream_taps, trained_reading
from clipvid.cache.texts import TextCache
from clipvid.config import Reading
from clipvid.data.dataset import NO_LABEL
from clipvid.data.record import VideoData
from clipvid.errors import VideoError
from clipvid.model import VideoCLIP
from clipvid.taps import Taps

T = TypeVar("T")


@runtime_checkable
class Rows(Protocol):
    """Taps of clips by number: in memory (Taps), or on disk (clipvid.cache.kept)."""

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
    data: VideoData
    reading: Reading
    tower: str
    unreadable: tuple[VideoError, ...] = ()
    texts: TextCache | None = None
    """Where embeddings of its captions are kept too."""
    origin: str = "taps in memory"
    """What the taps are read from, in words: another cache may give other bits."""

    def in_turn(self, jobs: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
        """Results of jobs that read these taps, in order: two ahead of their use, in a thread.

        Of a trunk, whose batches are computed, they are made here: torch remembers autocast's casts for all threads in
        one place, and a thread that leaves autocast would clear what a training step has there.
        """
        return (job() for job in jobs) if isinstance(self.taps, KeptTrunk) else ahead(jobs)

    @classmethod
    def encode(
        cls, model: VideoCLIP, data: VideoData, reading: Reading | None = None, *, progress: bool = False
    ) -> TapStore:
        """Decode every clip once and keep what the frozen tower says. Memory: `taps.nbytes`."""
        reading = reading or trained_reading(model, data.terms)
        check_storable(model, reading)
        parts: list[Taps] = []
        kept: list[int] = []
        lost: list[VideoError] = []
        title = f"encode {data.name}"
        with closing(stream_taps(model, data, reading, to_keep=True, progress=progress, title=title)) as stream:
            for taps, batch in stream:
                lost.extend(batch.unreadable)
                if len(batch) and isinstance(taps, Taps):
                    parts.append(taps.to("cpu"))
                    kept.extend(batch.index.tolist())
        if not parts:
            raise ValueError(
                f"none of the {len(data)} videos of {data.name} could be read" + (f"; first: {lost[0]}" if lost else "")
            )
        taps = _concatenated(parts)
        return cls(taps, data.surviving(kept), reading, model.backbone.tower_fingerprint, tuple(lost))

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
        return replace(self, taps=self.taps.select(model.branch.levels))

    def subset(self, rows: Sequence[int]) -> TapStore:
        """The store of these clips, in this order."""
        return replace(self, taps=self.taps.part(rows), data=self.data.subset(rows))

    def batch(self, indices: Sequence[int]) -> Taps:
        """The taps of these clips, in this order."""
        return self.taps.gather(indices)

    def reordered(self, frames: Tensor) -> TapStore:
        """The same clips with their frames in another order: `frames` (n, T) has the place each frame comes from."""
        rows, everything = torch.arange(len(self))[:, None], self.batch(range(len(self)))
        taps = everything.map(lambda t: t[rows, frames])
        return replace(self, taps=taps if taps.mask is None else replace(taps, mask=taps.mask[rows, frames]))

    @property
    def labels(self) -> Tensor:
        return torch.tensor([NO_LABEL if r.label is None else r.label for r in self.data])


def records_of(data: VideoData | TapStore) -> VideoData:
    """What is known about the clips, whether their taps are kept or not."""
    return data.data if isinstance(data, TapStore) else data


def check_storable(model: VideoCLIP, reading: Reading) -> None:
    """ValueError for what has no taps to keep: several views, and branches that read pixels."""
    if reading.views > 1:
        raise ValueError(
            f"a TapStore keeps one view of each clip, got temporal_views={reading.temporal_views} and "
            f"spatial_views={reading.spatial_views}; leave them at 1, or evaluate the data without storing taps"
        )
    if model.branch.reads_pixels:
        raise ValueError(
            f"branch {preset_of(model.branch.options)} has a stem of its own and reads pixels, so it has no taps to "
            "keep; train it without cache_taps"
        )


def _concatenated(parts: Sequence[Taps]) -> Taps:
    levels = range(len(parts[0].levels))
    masks = None
    if any(p.mask is not None for p in parts):
        masks = torch.cat(
            [torch.ones(p.frames.shape[:2], dtype=torch.bool) if p.mask is None else p.mask for p in parts]
        )
    return Taps(
        parts[0].levels,
        tuple(torch.cat([p.patches[k] for p in parts]) for k in levels),
        tuple(torch.cat([p.cls[k] for p in parts]) for k in levels) if parts[0].cls else (),
        torch.cat([p.frames for p in parts]),
        masks,
    )
