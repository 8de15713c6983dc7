"""ClipDataset: the clips of a VideoDataset, decoded on demand, in one view or several.

Contract: an item is a pure function of (seed, epoch, index), or of a name in place of the index, so a resumed run,
another number of workers or another batch size sees the same pixels. A file that cannot be read is an
error or is reported in the batch: it never becomes zeros or another clip. Pixels stay uint8; the model scales them.
Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from copy import copy
from itertools import chain
from random import Random

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from clipvid.data.batch import NO_LABEL, Clip, Spent
from clipvid.data.interprocess import WorkerVideoError
from clipvid.data.records import Record, VideoDataset
from clipvid.data.views import ONE_VIEW, Pair, Views
from clipvid.errors import VideoError
from clipvid.video.decode import BACKENDS, read_part
from clipvid.video.sampling import SAMPLERS, sample, sample_views, two_clips
from clipvid.video.transforms import INTERPOLATIONS, VideoTransform

UNREADABLE = ("raise", "skip")


class ClipDataset(Dataset[Clip | VideoError]):
    """The clips of `data`, decoded when asked for; use it with a DataLoader and `collate_fn=collate`.

    Args:
        frames: frames a clip; a video with fewer repeats frames (uniform) or is padded and masked (linspace).
        random: draw frames at random within the sampler's rule, and augment if the transform has augmentations.
        views: how many clips an item has. Views() one, as (T, 3, S, S); more are for evaluation and not with `random`.
            Pair() two random ones for self-supervision, as (2, T, 3, S, S); needs `random`, brings its own
            augmentation, and takes every `stride`-th frame in place of the sampler. Decoded in one pass either way.
        time_limit: seconds that a video may take to decode; one that takes longer cannot be read.
        unreadable: "raise" stops at a file that cannot be read, "skip" gives its VideoError as the item.
        seed: with the epoch (`set_epoch`) and the index it decides all that is random.
        names: what decides in place of the index, one a clip: draws that should outlive the order of the data.
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
            ("backend", backend, BACKENDS),
            ("unreadable", unreadable, UNREADABLE),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if frames < 1:
            raise ValueError(f"frames must be 1 or more, got {frames}")
        if names is not None and len(names) != len(data):
            raise ValueError(f"names has one for each clip, got {len(names)} for {len(data)} clips")
        _check_views(views, sampler=sampler, random=random, transform=transform)
        self.data, self.frames, self.transform, self.views, self.seed = data, frames, transform, views, seed
        self.sampler, self.backend, self.random, self.unreadable = sampler, backend, random, unreadable
        self.time_limit, self.names = time_limit, names
        # In shared memory: workers that outlive an epoch (persistent_workers) must see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._stopped: Callable[[], bool] = _never

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        how = "random" if self.random else "fixed"
        views = "" if self.views == ONE_VIEW else f" in {self.views}"
        return f"ClipDataset({self.data!r}, {self.frames} {how} frames{views}, {self.sampler}, {self.backend})"

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose what is drawn from now on; call it before the loader is iterated."""
        self._epoch.fill_(epoch)

    def stopping(self, stopped: Callable[[], bool]) -> ClipDataset:
        """The same clips, given up with CancelledError between two frames once `stopped()` is true."""
        twin = copy(self)
        twin._stopped = stopped
        return twin

    def __getitem__(self, index: int) -> Clip | VideoError:
        record = self.data[index]
        index = range(len(self))[index]  # -1 and len - 1 are one clip, and draw alike
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
        return Clip(video, mask, label, index, watch.spent)

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
            if self.random:  # equal draws give all frames of a clip the same augmentation
                return self.transform.augment(frame, self._draw("augment", index))
            return torch.cat(list(self.transform.crops(frame, views.spatial)), dim=-1)

        frames = self._decoded(record, choose, fit, watch)
        return rearrange(frames, "(k t) c h (p w) -> (k p) t c h w", k=views.temporal, p=views.spatial)

    def _pair(self, record: Record, index: int, pair: Pair, watch: _Watch) -> UInt8[Tensor, "2 t 3 h w"]:
        look = {"size": self.transform.target, "interpolation": INTERPOLATIONS[self.transform.interpolation]}

        def choose(total: int) -> list[int]:
            return list(chain(*two_clips(total, self.frames, stride=pair.stride, rng=self._draw("frames", index))))

        def fit(frame: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 h w"]:
            # the crops of both clips, since a frame does not know which of them it is for, and may be for both
            crops = [cache_key.crop(frame, draw("crop", view), **look) for view, cache_key in enumerate(pair.recipes)]
            return torch.cat(crops, dim=-1)

        def draw(purpose: str, view: int) -> Random:
            return self._draw(f"{purpose} {view}", index)

        frames = self._decoded(record, choose, fit, watch)
        clips = rearrange(frames, "(k t) c h (p w) -> k p t c h w", k=2, p=2)
        return torch.stack([r.recolour(clips[v, v], draw("colour", v)) for v, r in enumerate(pair.recipes)])

    def _decoded(
        self, record: Record, choose: Callable[[int], list[int]], fit: Callable[[Tensor], Tensor], watch: _Watch
    ) -> UInt8[Tensor, "_ 3 h _"]:
        """The chosen frames of all views, one after another, from one pass over the file.

        `fit` gets one frame at a time, so that large ones stay bounded. A decoder keeps one picture a frame: several
        crops of it lie side by side in that picture.
        """

        def fitted(frame: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 h w"]:
            if self._stopped():
                raise CancelledError
            with watch.decoding(-1):
                return fit(frame)

        part = {"start": record.start, "end": record.end}
        with watch.decoding():
            return read_part(record.path, choose, **part, backend=self.backend, fit=fitted, time_limit=self.time_limit)

    def _draw(self, purpose: str, index: int) -> Random:
        """A source of its own for each purpose: how many numbers one takes does not shift the others."""
        who = index if self.names is None else self.names[index]
        return Random(f"{self.seed} {self.epoch} {who} {purpose}")


def _never() -> bool:
    return False


class _Watch:
    """Where the seconds of one clip went, from when this is made."""

    def __init__(self) -> None:
        self.start, self.decode = time.perf_counter(), 0.0

    @contextmanager
    def decoding(self, sign: int = 1) -> Iterator[None]:
        """The block decodes; with -1 it is a part of such a block that does not."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.decode += sign * (time.perf_counter() - start)

    @property
    def spent(self) -> Spent:
        return Spent(self.decode, time.perf_counter() - self.start - self.decode)


def _check_views(views: Views | Pair, *, sampler: str, random: bool, transform: VideoTransform) -> None:
    """ValueError for views that sampler, chance or transform rule out, before any file is opened."""
    if isinstance(views, Pair):
        if not random:
            raise ValueError("a Pair is two random clips, got random=False; pass random=True, or Views for fixed ones")
        if transform.crop_scale is not None or transform.flip or transform.rand_layers:
            raise ValueError(
                "a Pair is augmented by its own recipes; leave crop_scale, flip and rand_layers out of the transform"
            )
        return
    if random and views.count > 1:
        raise ValueError(f"random draws one clip of a video, got {views}; pass random=False, or Pair for two")
    sample_views(sampler, 1, 1, views=views.temporal)  # what it refuses, it refuses of any video
    transform.check_crops(views.spatial)
