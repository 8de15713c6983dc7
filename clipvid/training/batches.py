"""Training batches: clips decoded at every visit, or cached taps, with their captions and labels.

Contract: data and settings in, `TrainBatch`es out, in an order that (seed, epoch) decide; `start` skips the batches
that a resumed run has already used. Knows nothing of weights, optimizers or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from clipvid.config.settings import TrainConfig
from clipvid.data.batch import Batch
from clipvid.data.dataset import ClipDataset
from clipvid.data.loader import batches_of
from clipvid.data.records import VideoDataset
from clipvid.data.views import Pair
from clipvid.errors import DataError, VideoError
from clipvid.features.augmented_views import AugmentedViews, augmented
from clipvid.features.embed import embed_texts
from clipvid.features.encode import clip_dataset
from clipvid.features.memory import encode_dataset
from clipvid.features.source import TapStore, dataset_of
from clipvid.features.tap_cache import TapCache
from clipvid.features.text_cache import TextCache
from clipvid.models.backbone.taps import Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.profiling import awaited
from clipvid.training.train_batch import CachedClips, TrainBatch
from clipvid.video.augment import CONST_CL


def open_batches(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    config: TrainConfig,
    *,
    cache: TapCache | None = None,
    progress: bool,
) -> LiveBatches | CachedBatches:
    """Open `data` for training.

    Raises DataError where clips lack a caption or label that the task needs, before any clip is read.
    """
    if config.task == "selfsup":
        return open_pairs(model, data, config)
    dataset = dataset_of(data)
    needs = "caption" if config.task == "retrieval" else "label"
    without = [r.path for r in dataset if (not r.captions if needs == "caption" else r.label is None)]
    if without or len(dataset) < 2:
        raise DataError(
            f"{config.task} needs two or more clips with a {needs} each; {len(without)} of {len(dataset)} in "
            f"{dataset.name} have none"
            + (f", first {without[0]}" if without else "")
            + ("; they have classes: choose task recognition" if needs == "caption" and dataset.classes else "")
        )
    augmented_views = AugmentedViews.of(config)
    data = encode_taps(model, data, config, cache, augmented_views=augmented_views, progress=progress)
    if isinstance(data, TapStore):
        _check_augmented_views(data, config, augmented_views)
        return CachedBatches(model, data, config)
    if augmented_views is not None:
        raise ValueError(f"cache_views {augmented_views.views} needs cached taps; give a cache, or cache_taps, too")
    return LiveBatches(model, data, config)


def encode_taps(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    config: TrainConfig,
    cache: TapCache | None,
    *,
    augmented_views: AugmentedViews | None = None,
    progress: bool,
) -> VideoDataset | TapStore:
    """Return a store of the clips' taps, on disk with a cache, in memory with `cache_taps`; else the data unchanged."""
    if isinstance(data, TapStore) or not (config.cache_taps or cache is not None):
        return data
    if cache is not None:
        return cache.store(model, data, config.data_config, augmented_views=augmented_views, progress=progress)
    return encode_dataset(model, data, config.data_config, augmented_views=augmented_views, progress=progress)


def _check_augmented_views(store: TapStore, config: TrainConfig, augmented_views: AugmentedViews | None) -> None:
    """Raise ValueError for augmentations that the stored taps do not have."""
    if config.mixup:
        raise ValueError("mixup blends the pixels of two clips, and a TapStore has none; give the videos instead")
    if augmented_views is None and (asked := config.augmentations()):
        raise ValueError(
            f"{', '.join(asked)} change pixels, and a TapStore has none left; give the videos instead, or cache "
            "augmented views (cache_views)"
        )
    if store.augmented_views != augmented_views:
        raise ValueError(
            f"the store of {store.data.name} holds {_describe_views(store.augmented_views)}, "
            f"training asks for {_describe_views(augmented_views)}; "
            "make the store with AugmentedViews.of(config)"
        )


def _describe_views(augmented_views: AugmentedViews | None) -> str:
    return (
        "one fixed view" if augmented_views is None else f"{augmented_views.views} augmented views by {augmented_views}"
    )


def open_pairs(
    model: VideoCLIP, data: VideoDataset | TapStore, config: TrainConfig, *, use: str = "training"
) -> PairBatches:
    """Open pairs of clips for self-supervision; raise ValueError for taps, DataError for a single video."""
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
    return PairBatches(model, data, config)


class LiveBatches:
    """Batches of clips that are decoded and augmented at every visit; the tower runs in the training step."""

    min_clips = 1
    """Fewest clips of a batch."""

    def __init__(self, model: VideoCLIP, data: VideoDataset, config: TrainConfig) -> None:
        self.model, self.data, self.config = model, data, config
        self.texts = _Captions(model, data, config)
        self.unreadable: tuple[VideoError, ...] = ()
        self.dataset = self._dataset()
        self._errors: dict[Path, VideoError] = {}

    def order(self, epoch: int) -> list[list[int]]:
        """Return the rows of each batch of an epoch."""
        return batch_order(len(self.data), self.config, epoch=epoch)

    def batches(self, epoch: int, *, start: int) -> Generator[TrainBatch, None, None]:
        self.dataset.set_epoch(epoch)
        workers, device = self.config.data_config.workers, self.model.device
        with closing(batches_of(self.dataset, self.order(epoch)[start:], workers=workers, device=device)) as source:
            for index, batch in enumerate(source, start=start):
                self._errors |= {error.path: error for error in batch.unreadable}
                self.unreadable = tuple(self._errors.values())
                if len(batch) >= self.min_clips:
                    yield self._train_batch(index, batch, epoch)

    def _train_batch(self, index: int, batch: Batch, epoch: int) -> TrainBatch:
        text, video_index = self.texts.draw(batch.index.tolist(), epoch)
        unpadded = bool(batch.mask.all())  # computed on the CPU: a GPU would have to finish its queue first
        batch = batch.to(self.model.device, non_blocking=True)
        mask = None if unpadded else batch.mask
        return TrainBatch(index, batch.video, mask=mask, text=text, video_index=video_index, labels=batch.labels)

    def _dataset(self) -> ClipDataset:
        c = self.config
        transform = augmented(self.model.transform, c)
        return clip_dataset(self.model, self.data, c.data_config, transform=transform, random=True, seed=c.seed)


class PairBatches(LiveBatches):
    """Pairs of clips of each video, sampled and augmented separately: `video` is (B, 2, T, 3, S, S); no captions."""

    min_clips = 2  # a video's negatives are the other videos of its batch

    def order(self, epoch: int) -> list[list[int]]:
        """Return the rows of each batch of an epoch, without batches of a single video."""
        return [rows for rows in super().order(epoch) if len(rows) >= self.min_clips]

    def _dataset(self) -> ClipDataset:
        c = self.config
        first, second = (replace(view, flip=c.selfsup.flip) for view in CONST_CL)
        pair = Pair(c.selfsup.stride, (first, second))
        return clip_dataset(self.model, self.data, c.data_config, random=True, pair=pair, seed=c.seed)


class CachedBatches:
    """Batches of cached taps, in memory or on disk; augmented views take turns, one per epoch."""

    def __init__(self, model: VideoCLIP, store: TapStore, config: TrainConfig) -> None:
        self.model, self.store, self.config = model, store.read_by(model), config
        self.data = store.data
        self.texts = _Captions(model, store.data, config, cache=store.texts)
        self.unreadable = store.unreadable

    def order(self, epoch: int) -> list[list[int]]:
        """Return the rows of each batch of an epoch."""
        return batch_order(len(self.store), self.config, epoch=epoch)

    def batches(self, epoch: int, *, start: int) -> Generator[TrainBatch, None, None]:
        labels, order, device = self.store.labels, self.order(epoch)[start:], self.model.device
        store = self.store.at(epoch)
        jobs = (partial(self._video, store, rows) for rows in order)
        with closing(awaited(store.in_turn(jobs))) as source:
            for index, (rows, video) in enumerate(zip(order, source, strict=True), start=start):
                text, video_index = self.texts.draw(rows, epoch)
                targets = {"text": text, "video_index": video_index, "labels": labels[rows].to(device)}
                yield TrainBatch(index, video(), mask=None, **targets)

    def _video(self, store: TapStore, rows: Sequence[int]) -> Callable[[], Taps | CachedClips]:
        """Read the taps of a batch ahead of its use; with gradient caching only name them, to be read on demand."""
        if self.config.micro_batch_size:
            return partial(CachedClips, store, rows, self.model.device)
        return store.sent(rows, self.model.device)


class _Captions:
    """Embeddings of every training caption, made once where the text tower is frozen; else their token ids."""

    def __init__(
        self, model: VideoCLIP, data: VideoDataset, config: TrainConfig, *, cache: TextCache | None = None
    ) -> None:
        self.seed, self.count, self.device = config.seed, config.captions_per_video, model.device
        self.rows: list[list[int]] = []
        captions: list[str] = []
        for record in data:
            self.rows.append(list(range(len(captions), len(captions) + len(record.captions))))
            captions.extend(record.captions)
        needed = config.task == "retrieval"
        tokens = config.data_config.tokens  # captions are cut as in evaluation
        tokens = data.protocol_spec.tokens if tokens is None else tokens
        self.table = torch.zeros(0, 1)
        if needed and (model.backbone.text_trains or model.matcher is not None):
            self.table = model.backbone.tokenize(captions, longest=tokens)  # the text tower runs at every visit
        elif needed:
            self.table = embed_texts(
                model, captions, precision=config.data_config.precision, tokens=tokens, cache=cache
            )

    def draw(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return captions of these clips and their video indices; the choice is a function of (seed, epoch, clip)."""
        picked: list[int] = []
        video_index: list[int] = []
        for position, index in enumerate(indices) if len(self.table) else ():
            rows = self.rows[index]
            if 0 < self.count < len(rows):
                rows = Random(f"{self.seed} {epoch} {index}").sample(rows, self.count)
            picked += rows
            video_index += [position] * len(rows)
        return self.table[picked].to(self.device), torch.tensor(video_index, dtype=torch.long, device=self.device)


def batch_order(n: int, config: TrainConfig, *, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch over n clips: groups of `keep_together` neighbours, the groups in random order.

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
