"""Where training batches come from: clips decoded at every visit, or taps that were kept.

Contract: data and settings in, batches in an order that (seed, epoch) decide; `start` skips what a run has already
seen. Knows nothing of weights, optimisers or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from clipvid.config.settings import TrainConfig
from clipvid.data.dataset import Batch, ClipDataset, Pair
from clipvid.data.loader import batches_of
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError, VideoError
from clipvid.features.augmented_views import AugmentedViews, augmented
from clipvid.features.embed import embed_texts
from clipvid.features.encode import clip_dataset
from clipvid.features.source import TapStore, dataset_of
from clipvid.features.tap_cache import TapCache
from clipvid.features.text_cache import TextCache
from clipvid.models.backbone.taps import Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.profiling import awaited
from clipvid.video.augment import CONST_CL


def open_feed(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    config: TrainConfig,
    *,
    cache: TapCache | None = None,
    progress: bool,
) -> LiveFeed | StoredFeed:
    """The feed for `data`; DataError where clips lack what the task needs, before any is read."""
    if config.task == "selfsup":
        return open_pairs(model, data, config)
    facts = dataset_of(data)
    needs = "caption" if config.task == "retrieval" else "label"
    without = [r.path for r in facts if (not r.captions if needs == "caption" else r.label is None)]
    if without or len(facts) < 2:
        raise DataError(
            f"{config.task} needs two or more clips with a {needs} each; {len(without)} of {len(facts)} in "
            f"{facts.name} have none"
            + (f", first {without[0]}" if without else "")
            + ("; they have classes: choose task recognition" if needs == "caption" and facts.classes else "")
        )
    augmented_views = AugmentedViews.of(config)
    data = keep_taps(model, data, config, cache, augmented_views=augmented_views, progress=progress)
    if isinstance(data, TapStore):
        _check_drawn(data, config, augmented_views)
        return StoredFeed(model, data, config)
    if augmented_views is not None:
        raise ValueError(
            f"cache_views {augmented_views.views} is for taps that are kept; give a cache, or cache_taps, too"
        )
    return LiveFeed(model, data, config)


def keep_taps(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    config: TrainConfig,
    cache: TapCache | None,
    *,
    augmented_views: AugmentedViews | None = None,
    progress: bool,
) -> VideoDataset | TapStore:
    """A store of the clips' taps, on the disk with a cache, in memory with `cache_taps`; else the clips as they are."""
    if isinstance(data, TapStore) or not (config.cache_taps or cache is not None):
        return data
    if cache is not None:
        return cache.store(model, data, config.data_config, augmented_views=augmented_views, progress=progress)
    return TapStore.encode(model, data, config.data_config, augmented_views=augmented_views, progress=progress)


def _check_drawn(store: TapStore, config: TrainConfig, augmented_views: AugmentedViews | None) -> None:
    """ValueError for augmentations that a store does not have."""
    if config.mixup:
        raise ValueError("mixup blends the pixels of two clips, and a TapStore has none; give the videos instead")
    if augmented_views is None and (asked := config.augmentations()):
        raise ValueError(
            f"{', '.join(asked)} change pixels, and a TapStore has none left; give the videos instead, or keep views "
            "that are drawn so (cache_views)"
        )
    if store.augmented_views != augmented_views:
        raise ValueError(
            f"the store of {store.data.name} keeps {_in_words(store.augmented_views)}, "
            f"training asks for {_in_words(augmented_views)}; "
            "make the store with Draws.of(config)"
        )


def _in_words(augmented_views: AugmentedViews | None) -> str:
    return "one fixed view" if augmented_views is None else f"{augmented_views.views} views drawn by {augmented_views}"


def open_pairs(
    model: VideoCLIP, data: VideoDataset | TapStore, config: TrainConfig, *, use: str = "training"
) -> PairFeed:
    """The feed for self-supervision; ValueError for taps, DataError for a single video."""
    if isinstance(data, TapStore):
        raise ValueError(
            "selfsup cuts two random clips of a video at each visit, and a TapStore keeps the taps of one; give the "
            f"videos of {data.data.name} themselves"
        )
    if len(data) < 2:
        raise DataError(
            f"selfsup takes its negatives from other videos, and {data.name} has {len(data)} for {use}; give two or "
            "more"
        )
    return PairFeed(model, data, config)


class StoredClips:
    """Clips of a store whose taps are read when they are asked for: those of a large batch need not fit in memory."""

    def __init__(self, store: TapStore, rows: Sequence[int], device: torch.device) -> None:
        self.store, self.rows, self.device = store, rows, device

    def gather(self, places: Sequence[int] | Tensor) -> Taps:
        """The taps of the clips at these places of `rows`, on the device."""
        chosen = places.tolist() if isinstance(places, Tensor) else places
        return self.store.batch([self.rows[place] for place in chosen]).to(self.device)


class Work:
    """One batch on its way to the loss; a plain object, which Fabric hands on without looking inside.

    `place` is where it stands in the epoch's plan: places are left out where no clip could be read. `video` are its
    clips; where `config.chunk` splits the batch, those of a store are still to be read. `text` holds embeddings (M, E),
    or token ids (M, ctx) for the text tower to embed.
    """

    def __init__(
        self,
        place: int,
        video: Tensor | Taps | StoredClips,
        *,
        mask: Tensor | None,
        text: Tensor,
        video_index: Tensor,
        labels: Tensor,
    ) -> None:
        self.place, self.video, self.mask = place, video, mask
        self.text, self.video_index, self.labels = text, video_index, labels

    def __len__(self) -> int:
        return len(self.labels)

    def clips(self, places: Int[Tensor, " n"]) -> tuple[Tensor | Taps, Bool[Tensor, "n t"] | None]:
        """Some of its clips and the mask of their frames."""
        video = self.video[places] if isinstance(self.video, Tensor) else self.video.gather(places)
        return video, None if self.mask is None else self.mask[places]


class LiveFeed:
    """Clips decoded, augmented and passed through the tower at every visit."""

    least = 1
    """Fewest clips that make a batch."""

    def __init__(self, model: VideoCLIP, data: VideoDataset, config: TrainConfig) -> None:
        self.model, self.data, self.config = model, data, config
        self.texts = _Texts(model, data, config)
        self.unreadable: tuple[VideoError, ...] = ()
        self.dataset = self._dataset()
        self._lost: dict[Path, VideoError] = {}

    def plan(self, epoch: int) -> list[list[int]]:
        return plan(len(self.data), self.config, epoch=epoch)

    def batches(self, epoch: int, *, start: int) -> Generator[Work, None, None]:
        self.dataset.set_epoch(epoch)
        workers, device = self.config.data_config.workers, self.model.device
        with closing(batches_of(self.dataset, self.plan(epoch)[start:], workers=workers, device=device)) as source:
            for place, batch in enumerate(source, start=start):
                self._lost |= {error.path: error for error in batch.unreadable}
                self.unreadable = tuple(self._lost.values())
                if len(batch) >= self.least:
                    yield self._work(place, batch, epoch)

    def _work(self, place: int, batch: Batch, epoch: int) -> Work:
        text, video_index = self.texts.draw(batch.index.tolist(), epoch)
        whole = bool(batch.mask.all())  # asked of the CPU: a GPU would have to finish its queue first
        batch = batch.to(self.model.device, non_blocking=True)
        mask = None if whole else batch.mask
        return Work(place, batch.video, mask=mask, text=text, video_index=video_index, labels=batch.labels)

    def _dataset(self) -> ClipDataset:
        c = self.config
        transform = augmented(self.model.transform, c)
        return clip_dataset(self.model, self.data, c.data_config, transform=transform, random=True, seed=c.seed)


class PairFeed(LiveFeed):
    """Two clips of each video, drawn and augmented apart: `video` is (B, 2, T, 3, S, S). Captions are left aside."""

    least = 2  # a video's negatives are the others of its batch

    def plan(self, epoch: int) -> list[list[int]]:
        return [rows for rows in super().plan(epoch) if len(rows) >= self.least]

    def _dataset(self) -> ClipDataset:
        c = self.config
        first, second = (replace(cache_key, flip=c.selfsup.flip) for cache_key in CONST_CL)
        pair = Pair(c.selfsup.stride, (first, second))
        return clip_dataset(self.model, self.data, c.data_config, random=True, pair=pair, seed=c.seed)


class StoredFeed:
    """Taps in memory or on disk: the tower does not run, or of a trunk its last blocks. Drawn views take turns."""

    def __init__(self, model: VideoCLIP, store: TapStore, config: TrainConfig) -> None:
        self.model, self.store, self.config = model, store.read_by(model), config
        self.data = store.data
        self.texts = _Texts(model, store.data, config, kept=store.texts)
        self.unreadable = store.unreadable

    def plan(self, epoch: int) -> list[list[int]]:
        return plan(len(self.store), self.config, epoch=epoch)

    def batches(self, epoch: int, *, start: int) -> Generator[Work, None, None]:
        labels, plan, device = self.store.labels, self.plan(epoch)[start:], self.model.device
        store = self.store.at(epoch)
        jobs = (partial(self._video, store, rows) for rows in plan)
        with closing(awaited(store.in_turn(jobs))) as source:
            for place, (rows, video) in enumerate(zip(plan, source, strict=True), start=start):
                text, video_index = self.texts.draw(rows, epoch)
                work = {"mask": None, "text": text, "video_index": video_index, "labels": labels[rows].to(device)}
                yield Work(place, video(), **work)

    def _video(self, store: TapStore, rows: Sequence[int]) -> Callable[[], Taps | StoredClips]:
        """Taps, read and put together beside the branch; with chunks only named, and read as they are asked for."""
        if self.config.chunk:
            return partial(StoredClips, store, rows, self.model.device)
        return store.sent(rows, self.model.device)


class _Texts:
    """Embeddings of every training caption, made once where the text tower is frozen; else their token ids."""

    def __init__(
        self, model: VideoCLIP, data: VideoDataset, config: TrainConfig, *, kept: TextCache | None = None
    ) -> None:
        self.seed, self.count, self.device = config.seed, config.captions_per_video, model.device
        self.rows: list[list[int]] = []
        captions: list[str] = []
        for record in data:
            self.rows.append(list(range(len(captions), len(captions) + len(record.captions))))
            captions.extend(record.captions)
        needed = config.task == "retrieval"
        tokens = (
            config.data_config.tokens if config.data_config.tokens is not None else data.protocol_spec.tokens
        )  # as evaluation does
        self.table = torch.zeros(0, 1)
        if needed and (model.backbone.text_trains or model.matcher is not None):
            self.table = model.backbone.tokenize(captions, longest=tokens)  # the text tower runs at every visit
        elif needed:
            self.table = embed_texts(model, captions, precision=config.data_config.precision, tokens=tokens, kept=kept)

    def draw(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Captions of these clips and their owners; which captions is a function of (seed, epoch, clip)."""
        picked: list[int] = []
        video_index: list[int] = []
        for place, index in enumerate(indices) if len(self.table) else ():
            rows = self.rows[index]
            if 0 < self.count < len(rows):
                rows = Random(f"{self.seed} {epoch} {index}").sample(rows, self.count)
            picked += rows
            video_index += [place] * len(rows)
        return self.table[picked].to(self.device), torch.tensor(video_index, dtype=torch.long, device=self.device)


def plan(n: int, config: TrainConfig, *, epoch: int) -> list[list[int]]:
    """Batches of an epoch over n clips: groups of `keep_together` neighbours, the groups in random order.

    A last batch smaller than half is dropped when there are others: a contrastive loss over two clips is noise.
    """
    keep, size = config.keep_together, config.batch_size
    groups = [range(first, min(first + keep, n)) for first in range(0, n, keep)]
    Random(f"{config.seed} {epoch}").shuffle(groups)
    order = [i for group in groups for i in group]
    batches = [order[first : first + size] for first in range(0, n, size)]
    if len(batches) > 1 and 2 * len(batches[-1]) < size:
        batches.pop()
    return batches
