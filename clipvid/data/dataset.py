"""ClipDataset: the clips of a VideoDataset, decoded on demand, in one view or several.

Contract: an item is a pure function of (seed, epoch, index), or of a name instead of the index, so a resumed run,
another number of workers or another batch size gives the same pixels. An unreadable file raises or is reported in the
batch; it never becomes zeros or another clip. Pixels stay uint8, since the model scales them. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from copy import copy
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from clipvid.data.batches.batch import NO_LABEL, Clip, Durations
from clipvid.data.batches.interprocess import WorkerVideoError
from clipvid.data.batches.views import ONE_VIEW, Pair, Views
from clipvid.data.clips.arrays import ArrayClip
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import VideoError
from clipvid.registry import DECODERS
from clipvid.video.backends.base import stacked
from clipvid.video.decode import read_part
from clipvid.video.sampling import SAMPLERS, sample, sample_views, two_clips
from clipvid.video.transforms import INTERPOLATIONS, VideoTransform

UNREADABLE = ("raise", "skip")


class ClipDataset(Dataset[Clip | VideoError]):
    """The clips of `data`, decoded on access; use it with a DataLoader and `collate_fn=collate`.

    Args:
        frames: frames per clip; a shorter video repeats frames (uniform) or is padded and masked (linspace).
        random: sample frames at random within the sampler's rule, and augment if the transform has augmentations.
        views: Views() gives one clip (T, 3, S, S); several views (V, T, 3, S, S) are for evaluation and exclude
            `random`. Pair() gives two random clips (2, T, 3, S, S) for self-supervision; it needs `random`, has its own
            augmentation, and takes every `stride`-th frame instead of using the sampler. All are decoded in one pass.
        time_limit: seconds of decoding after which a video counts as unreadable.
        unreadable: "raise" stops at an unreadable file, "skip" gives its VideoError as the item.
        seed: determines all randomness, together with the epoch (`set_epoch`) and the index.
        names: one name per clip, used instead of its index, so that random views do not depend on the data's order.
    """

    def __init__(
        self,
        data: VideoDataset,
        *,
        frames: int,
        transform: VideoTransform,
        sampler: str = "uniform",
        random: bool = False,
        views: Views | Pair = ONE_VIEW,
        backend: str = "pyav",
        time_limit: int | float | None = None,
        unreadable: str = "raise",
        seed: int = 0,
        names: Sequence[str] | None = None,
    ) -> None:
        for name, value, allowed in (
            ("sampler", sampler, SAMPLERS),
            ("unreadable", unreadable, UNREADABLE),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        DECODERS.lookup(backend)  # raises for an unknown name
        if frames < 1:
            raise ValueError(f"frames must be an integer >= 1, got {frames}; it is the number of frames per clip")
        if names is not None and len(names) != len(data):
            raise ValueError(f"names must have one entry per clip, got {len(names)} for {len(data)} clips")
        _check_views(views, sampler=sampler, random=random, transform=transform)
        self.data = data
        self.frames = frames
        self.transform = transform
        self.views = views
        self.seed = seed
        self.sampler = sampler
        self.backend = backend
        self.random = random
        self.unreadable = unreadable
        self.time_limit = time_limit
        self.names = names
        # Shared memory lets workers that outlive an epoch (persistent_workers) see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._stopped: Callable[[], bool] = _never

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        mode = "random" if self.random else "fixed"
        views = "" if self.views == ONE_VIEW else f" in {self.views}"
        return f"ClipDataset({self.data!r}, {self.frames} {mode} frames{views}, {self.sampler}, {self.backend})"

    @property
    def epoch(self) -> int:
        """Epoch number, one of the inputs of all randomness."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of all later random choices; call it before iterating over the loader."""
        self._epoch.fill_(epoch)

    def stopping(self, stopped: Callable[[], bool]) -> ClipDataset:
        """Return the same clips; decoding them raises CancelledError between two frames once `stopped()` is true."""
        dataset = copy(self)
        dataset._stopped = stopped
        return dataset

    def __getitem__(self, index: int) -> Clip | VideoError:
        record = self.data[index]
        index = range(len(self))[index]  # -1 and len - 1 are the same clip and need the same random numbers
        watch = _Watch()
        try:
            video = self._read(record, index, watch)
        except VideoError as error:
            if self.unreadable == "skip":
                return error
            if get_worker_info() is None:
                raise
            raise WorkerVideoError(WorkerVideoError.printed(error)) from None
        padding = self.frames - video.shape[1]
        mask = (torch.arange(self.frames) < video.shape[1]).repeat(len(video), 1)
        if padding:
            video = torch.cat([video, video[:, -1:].expand(-1, padding, -1, -1, -1)], dim=1)  # (V, T, 3, S, S)
        if self.views.count == 1:
            video, mask = video[0], mask[0]
        label = NO_LABEL if record.label is None else record.label
        return Clip(video, mask, label, index, watch.durations)

    def _read(self, record: Record, index: int, watch: _Watch) -> UInt8[Tensor, "v t 3 h w"]:
        if isinstance(self.views, Pair):
            return self._pair(record, index, self.views, watch)
        return self._views(record, index, self.views, watch)

    def _views(self, record: Record, index: int, views: Views, watch: _Watch) -> UInt8[Tensor, "v t 3 h w"]:
        rng = self._draw("frames", index)

        def choose(total: int) -> list[int]:
            if self.random:
                return sample(self.sampler, total, self.frames, rng=rng)
            return list(chain(*sample_views(self.sampler, total, self.frames, views=views.temporal)))

        def fit(frame: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 h w"]:
            if self.random:  # a new, equal generator per frame gives all frames of a clip the same augmentation
                return self.transform.augment(frame, self._draw("augment", index))
            return torch.cat(list(self.transform.crops(frame, views.spatial)), dim=-1)

        frames = self._decoded(record, choose, fit, watch)
        return rearrange(frames, "(k t) c h (p w) -> (k p) t c h w", k=views.temporal, p=views.spatial)

    def _pair(self, record: Record, index: int, pair: Pair, watch: _Watch) -> UInt8[Tensor, "2 t 3 h w"]:
        options = {"size": self.transform.target, "interpolation": INTERPOLATIONS[self.transform.interpolation]}

        def choose(total: int) -> list[int]:
            return list(chain(*two_clips(total, self.frames, stride=pair.stride, rng=self._draw("frames", index))))

        def fit(frame: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 h w"]:
            # A frame may belong to either clip or to both, so it gets the crops of both.
            crops = [a.crop(frame, rng("crop", view), **options) for view, a in enumerate(pair.augmentations)]
            return torch.cat(crops, dim=-1)

        def rng(purpose: str, view: int) -> Random:
            return self._draw(f"{purpose} {view}", index)

        frames = self._decoded(record, choose, fit, watch)
        clips = rearrange(frames, "(k t) c h (p w) -> k p t c h w", k=2, p=2)
        return torch.stack([a.recolour(clips[v, v], rng("colour", v)) for v, a in enumerate(pair.augmentations)])

    def _decoded(
        self, record: Record, choose: Callable[[int], list[int]], fit: Callable[[Tensor], Tensor], watch: _Watch
    ) -> UInt8[Tensor, "_ 3 h _"]:
        """Return the chosen frames of all views, one view after another, from one pass over the file.

        `fit` gets one frame at a time, which bounds memory. A decoder stores one image per frame, so several crops
        of a frame lie side by side in that image.
        """

        def fitted(frame: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 h w"]:
            if self._stopped():
                raise CancelledError
            with watch.decoding(-1):
                return fit(frame)

        with watch.decoding():
            return read_record(record, choose, backend=self.backend, fit=fitted, time_limit=self.time_limit)

    def _draw(self, purpose: str, index: int) -> Random:
        """Return a separate generator per purpose, so that the numbers used for one do not shift those of another."""
        name = index if self.names is None else self.names[index]
        return Random(f"{self.seed} {self.epoch} {name} {purpose}")


def read_record(
    record: Record,
    choose: Callable[[int], Sequence[int]],
    *,
    backend: str = "pyav",
    fit: Callable[[Tensor], Tensor] | None = None,
    time_limit: int | float | None = None,
) -> UInt8[Tensor, "t 3 h w"]:
    """Return the frames of a record's file or array that `choose` selects by their number; raises as `read_part`."""
    if record.array is not None:
        return _read_array(record.array, choose, fit=fit, path=record.path)
    part = {"start": record.start, "end": record.end}
    return read_part(record.path, choose, **part, backend=backend, fit=fit, time_limit=time_limit)


def _read_array(
    clip: ArrayClip, choose: Callable[[int], Sequence[int]], *, fit: Callable[[Tensor], Tensor] | None, path: Path
) -> UInt8[Tensor, "t 3 h w"]:
    """Return the frames that `choose` selects, each fitted once as a decoder does it; `path` is for error messages."""
    indices = [int(index) for index in choose(len(clip))]
    pictures: dict[int, Tensor] = {}
    for index in sorted(set(indices)):
        # A copy is writable, as torch expects, and stored pixel by pixel, as decoders store frames.
        picture = torch.from_numpy(np.array(clip.frames[index], order="C")).permute(2, 0, 1)  # (3, H, W)
        pictures[index] = picture if fit is None else fit(picture)
    return stacked(pictures, indices, path=path, backend="array")


def _never() -> bool:
    return False


class _Watch:
    """Timer that divides the seconds of one clip, from its construction on, into decoding and transforms."""

    def __init__(self) -> None:
        self.start, self.decode = time.perf_counter(), 0.0

    @contextmanager
    def decoding(self, sign: int = 1) -> Iterator[None]:
        """Add the time of the block to decoding; with sign -1 subtract it, for transforms inside decoding."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.decode += sign * (time.perf_counter() - start)

    @property
    def durations(self) -> Durations:
        """Seconds so far of decoding and of everything else."""
        return Durations(self.decode, time.perf_counter() - self.start - self.decode)


def _check_views(views: Views | Pair, *, sampler: str, random: bool, transform: VideoTransform) -> None:
    """Raise ValueError for views that sampler, random sampling or transform exclude, before any file is opened."""
    if isinstance(views, Pair):
        if not random:
            raise ValueError("random must be True for a Pair, got False; pass random=True, or Views for fixed clips")
        if transform.crop_scale is not None or transform.flip or transform.rand_layers:
            raise ValueError(
                "transform must not augment a Pair, which augments clips; leave out crop_scale, flip and rand_layers"
            )
        return
    if random and views.count > 1:
        raise ValueError(
            f"views must be a single view if random, got {views}; pass random=False, or Pair for two clips"
        )
    sample_views(sampler, 1, 1, views=views.temporal)  # raises for every video, or for none
    transform.check_crops(views.spatial)
