"""Training batches: clips decoded in every epoch, or cached taps, with their captions and labels.

Contract: data and settings in, `TrainBatch`es out, in an order that (seed, epoch) decide; `start` skips the batches
that a resumed run has already used. Knows nothing of weights, optimizers or losses.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from clipvid.config.settings import TrainConfig
from clipvid.data.batches.views import Pair
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError, VideoError
from clipvid.features.augmented_views import AugmentedViews, augmented
from clipvid.features.embed import embed_texts
from clipvid.features.encode import LiveSource, clip_dataset
from clipvid.features.source import FeatureBatch, FeatureSource
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore, dataset_of
from clipvid.features.text_cache import TextCache
from clipvid.models.backbone.taps import Pixels
from clipvid.models.video_clip import VideoCLIP
from clipvid.training.tasks import needs_of
from clipvid.training.train_batch import TrainBatch
from clipvid.video.augment import CONST_CL


def open_batches(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    config: TrainConfig,
    *,
    cache: TapCache | None = None,
    progress: bool,
) -> TrainBatches:
    """Open `data` for training.

    Raises DataError where clips lack a caption or label that the task needs, before any clip is read.
    """
    needs = needs_of(config.task)
    if needs == "pairs":
        return open_pairs(model, data, config)
    dataset = dataset_of(data)
    lacks = {"caption": lambda r: not r.captions, "label": lambda r: r.label is None, "clips": lambda r: False}[needs]
    without = [record.path for record in dataset if lacks(record)]
    if without or len(dataset) < 2:
        raise DataError(
            f"{config.task} needs two or more clips{'' if needs == 'clips' else f' with a {needs} each'}; "
            f"{len(without)} of {len(dataset)} in {dataset.name} have none"
            + (f", first {without[0]}" if without else "")
            + ("; for their classes, set task to recognition" if needs == "caption" and dataset.classes else "")
        )
    augmented_views = AugmentedViews.of(config)
    data = encode_taps(model, data, config, cache, augmented_views=augmented_views, progress=progress)
    if isinstance(data, TapStore):
        _check_augmented_views(data, config, augmented_views)
        store = replace(data.read_by(model), on_demand=config.micro_batch_size > 0)
        return TrainBatches(store, _Captions(model, store.data, config, cache=store.texts), config)
    if augmented_views is not None:
        raise ValueError(f"cache_views {augmented_views.views} needs cached taps; give a cache, or cache_taps, too")
    transform = augmented(model.transform, config)
    clips = clip_dataset(model, data, config.data_config, transform=transform, random=True, seed=config.seed)
    source = LiveSource(model, data, config.data_config, clips=clips)
    return TrainBatches(source, _Captions(model, data, config), config)


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
    if augmented_views is None and (augmentations := config.augmentations()):
        raise ValueError(
            f"{', '.join(augmentations)} change pixels, and a TapStore has none; give the videos instead, or cache "
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
) -> TrainBatches:
    """Open pairs of clips for self-supervision; raise ValueError for taps, DataError for a single video."""
    if isinstance(data, TapStore):
        raise ValueError(
            "selfsup samples two random clips per video and epoch, and a TapStore holds the taps of one; give the "
            f"videos of {data.data.name} instead"
        )
    if len(data) < 2:
        raise DataError(
            f"selfsup takes its negatives from other videos, and {data.name} has {len(data)} for {use}; give two or "
            "more"
        )
    first, second = (replace(view, flip=config.selfsup.flip) for view in CONST_CL)
    pair = Pair(config.selfsup.stride, (first, second))
    clips = clip_dataset(model, data, config.data_config, random=True, pair=pair, seed=config.seed)
    source = LiveSource(model, data, config.data_config, clips=clips)
    return TrainBatches(source, _Captions(model, data, config), config, min_clips=2)


class TrainBatches:
    """Training batches of a source of features: clips that the tower encodes in the training step, or cached taps.

    `min_clips` is the fewest clips of a batch: 2 for pairs of clips, whose negatives are the batch's other videos.
    """

    def __init__(self, source: FeatureSource, texts: _Captions, config: TrainConfig, *, min_clips: int = 1) -> None:
        self.source = source
        self.texts = texts
        self.config = config
        self.min_clips = min_clips

    @property
    def data(self) -> VideoDataset:
        """Records of the clips."""
        return self.source.data

    @property
    def unreadable(self) -> tuple[VideoError, ...]:
        """Errors of the clips that could not be read so far."""
        return self.source.unreadable

    def order(self, epoch: int) -> list[list[int]]:
        """Return the rows of each batch of an epoch, without batches of fewer than `min_clips` clips."""
        order = batch_order(len(self.data), self.config, epoch=epoch)
        return [rows for rows in order if len(rows) >= self.min_clips]

    def batches(self, epoch: int, *, start: int) -> Generator[TrainBatch, None, None]:
        """Yield the batches of an epoch from position `start` on, without those of too few readable clips."""
        with closing(self.source.at(epoch).stream(self.order(epoch)[start:])) as stream:
            for index, batch in enumerate(stream, start=start):
                if len(batch.rows) >= self.min_clips:
                    yield self._train_batch(index, batch, epoch)

    def _train_batch(self, index: int, batch: FeatureBatch, epoch: int) -> TrainBatch:
        text, video_index = self.texts.draw(batch.rows, epoch)
        targets = {"text": text, "video_index": video_index, "labels": batch.labels}
        assert not isinstance(batch.features, Pixels | None)
        return TrainBatch(index, batch.features, mask=batch.mask, **targets)


class _Captions:
    """Embeddings of all training captions, computed once if the text tower is frozen; else their token ids."""

    def __init__(
        self, model: VideoCLIP, data: VideoDataset, config: TrainConfig, *, cache: TextCache | None = None
    ) -> None:
        self.seed: int = config.seed
        self.count: int = config.captions_per_video
        self.device: torch.device = model.device
        self.rows: list[list[int]] = []
        captions: list[str] = []
        for record in data:
            self.rows.append(list(range(len(captions), len(captions) + len(record.captions))))
            captions.extend(record.captions)
        needed = needs_of(config.task) == "caption"
        tokens = config.data_config.tokens  # captions are cut as in evaluation
        tokens = data.protocol_spec.tokens if tokens is None else tokens
        self.table: Tensor = torch.zeros(0, 1)
        if needed and (model.backbone.text_trains or model.matcher is not None):
            self.table = model.backbone.tokenize(captions, longest=tokens)  # the text tower runs in every step
        elif needed:
            self.table = embed_texts(
                model, captions, precision=config.data_config.precision, tokens=tokens, cache=cache
            )

    def draw(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return captions of these clips and their video indices; the choice is a function of (seed, epoch, clip)."""
        table_rows: list[int] = []
        video_index: list[int] = []
        for position, index in enumerate(indices) if len(self.table) else ():
            rows = self.rows[index]
            if 0 < self.count < len(rows):
                rows = Random(f"{self.seed} {epoch} {index}").sample(rows, self.count)
            table_rows += rows
            video_index += [position] * len(rows)
        return self.table[table_rows].to(self.device), torch.tensor(video_index, dtype=torch.long, device=self.device)


def batch_order(n: int, config: TrainConfig, *, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch over n clips: groups of `keep_together` neighbours, the groups in random order.

    A last batch of less than half the size is dropped if there are others: a contrastive loss over two clips is noise.
    """
    keep, size = config.keep_together, config.batch_size
    groups = [range(first, min(first + keep, n)) for first in range(0, n, keep)]
    Random(f"{config.seed} {epoch}").shuffle(groups)
    order = [i for group in groups for i in group]
    batches = [order[first : first + size] for first in range(0, n, size)]
    if len(batches) > 1 and 2 * len(batches[-1]) < size:
        batches.pop()
    return batches
