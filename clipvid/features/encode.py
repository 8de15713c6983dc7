"""The live source of features: clips read as a data config says, and encoded by the frozen tower.

Contract: a model, a VideoDataset and a DataConfig in; decoded clips, or the features that the branch reads, out, in
order. Knows nothing of caches, losses or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from clipvid.config.data_config import DataConfig
from clipvid.data.batches.batch import Batch
from clipvid.data.batches.views import Pair, Views
from clipvid.data.dataset import ClipDataset
from clipvid.data.loader import batches_of
from clipvid.data.records import NO_PROTOCOL, ProtocolSpec, VideoDataset
from clipvid.errors import VideoError
from clipvid.features.augmented_views import AugmentedViews, augmented
from clipvid.features.source import FeatureBatch
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.models.encoder import Encoder
from clipvid.runtime.inference import inference
from clipvid.video.transforms import VideoTransform

Model = TypeVar("Model")


@runtime_checkable
class VideoEncoder(Protocol):
    """The interface that an index needs from a model; VideoCLIP has it."""

    @property
    def device(self) -> torch.device: ...
    @property
    def fingerprint(self) -> str: ...

    transform: VideoTransform

    def encode_video(self, video: Tensor, *, mask: Tensor | None = None) -> Tensor: ...
    def encode_text(self, texts: Sequence[str]) -> Tensor: ...


def checked_encoder(model: Model) -> Model:
    """Return the argument `model`; raise ValueError if it lacks a method of VideoEncoder."""
    lacking = [name for name in ("encode_video", "encode_text") if not hasattr(model, name)]
    if lacking:
        raise ValueError(
            f"model must be a VideoCLIP or have the methods of VideoEncoder, got {model!r:.80} without "
            f"{' and '.join(lacking)}; create one by clipvid.create_model or load"
        )
    return model


def clip_dataset(
    model: Encoder | VideoEncoder,
    data: VideoDataset,
    data_config: DataConfig,
    *,
    transform: VideoTransform | None = None,
    random: bool = False,
    pair: Pair | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> ClipDataset:
    """Return the clips of `data`, read as `data_config` says and fitted to the model's input.

    `random` samples one clip per video, or two as `pair` says; the data config's views are for evaluation. `seed` and
    `names` are those of ClipDataset.
    """
    # Training needs this check too: it would otherwise fail at its first validation.
    model.transform.check_crops(data_config.spatial_views)
    fixed = Views() if random else Views(data_config.temporal_views, data_config.spatial_views)
    return ClipDataset(
        data,
        frames=data_config.frames,
        transform=transform or model.transform,
        sampler=data_config.sampler,
        random=random,
        views=pair or fixed,
        backend=data_config.backend,
        time_limit=data_config.time_limit or None,
        unreadable=data_config.unreadable,
        seed=seed,
        names=names,
    )


class LiveSource:
    """FeatureSource that decodes its clips each time they are streamed, and encodes them.

    Args:
        model: encoder of the clips.
        data: records of the clips.
        data_config: settings for reading the clips; `spatial_views` and `temporal_views` make B·V rows of B clips.
        clips: the clips to decode; by default `clip_dataset` of `data`.
        read: the function that encodes a batch of decoded clips, under `inference` (`VideoCLIP.reads` for the model's
            branch, `VideoCLIP.taps` for complete taps); None streams the clips themselves, for a tower that runs in
            the training step and for an encoder without taps.
    """

    def __init__(
        self,
        model: Encoder | VideoEncoder,
        data: VideoDataset,
        data_config: DataConfig,
        *,
        clips: ClipDataset | None = None,
        read: Callable[..., Taps | Pixels] | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.data_config = data_config
        self.read = read
        self.clips: ClipDataset = clip_dataset(model, data, data_config) if clips is None else clips
        self._errors: dict[Path, VideoError] = {}

    @property
    def unreadable(self) -> tuple[VideoError, ...]:
        """Errors of the clips that could not be read so far, one for each file."""
        return tuple(self._errors.values())

    def at(self, epoch: int) -> LiveSource:
        """Return this source, its clips sampled and augmented as for this epoch."""
        self.clips.set_epoch(epoch)
        return self

    def stream(self, order: Sequence[Sequence[int]]) -> Generator[FeatureBatch, None, None]:
        """Yield the features of each batch of rows, or the decoded clips; B·V rows of features for V views."""
        workers, device = self.data_config.workers, self.model.device
        with closing(batches_of(self.clips, order, workers=workers, device=device)) as source:
            for batch in source:
                self._errors |= {error.path: error for error in batch.unreadable}
                yield self._encoded(batch)

    def _encoded(self, batch: Batch) -> FeatureBatch:
        rows, errors = batch.index.tolist(), batch.unreadable
        if not rows:
            return FeatureBatch(None, rows, batch.labels, unreadable=errors)
        unpadded = bool(batch.mask.all())  # computed on the CPU: a GPU would have to finish its queue first
        batch = batch.to(self.model.device, non_blocking=True)
        mask = None if unpadded else batch.mask
        if self.read is None:
            return FeatureBatch(batch.video, rows, batch.labels, mask, errors)
        with inference(self.model, self.data_config.precision):
            video, mask = flat_views(batch.video, mask)
            return FeatureBatch(self.read(video, mask=mask), rows, batch.labels, unreadable=errors)


def flat_views(video: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Flatten clips and mask with an axis of views to (B·V, T, ...) and (B·V, T); the first clip's views come first."""
    return video.flatten(0, -5), None if mask is None else mask.flatten(0, -2)


def clips_per_batch(data_config: DataConfig) -> int:
    """Return the number of clips whose views together make a batch."""
    return max(1, data_config.batch_size // data_config.views)


def trained_data_config(model: Encoder | VideoEncoder, protocol_spec: ProtocolSpec = NO_PROTOCOL) -> DataConfig:
    """Return the data config that the model was trained with, filled up from the data's protocol and the defaults.

    An encoder without a training record has the defaults alone.
    """
    protocol = {name: value for name in ("frames", "tokens") if (value := getattr(protocol_spec, name)) is not None}
    trained = (getattr(model, "training_record", None) or {}).get("data_config", {})
    return DataConfig(
        **protocol | {name: trained[name] for name in ("frames", "sampler", "tokens") if trained.get(name)}
    )


@dataclass(frozen=True)
class View:
    """One view of every clip of a data set; `keys` are their keys in a cache, None for a file that cannot be opened."""

    keys: Sequence[str | None]
    augmented_views: AugmentedViews | None = None
    number: int = 0

    def clips(self, model: Encoder, data: VideoDataset, data_config: DataConfig, rows: Sequence[int]) -> ClipDataset:
        """Return the clips of `data` at `rows`, to be decoded in this view."""
        selection = data.subset(rows)
        if self.augmented_views is None:
            return clip_dataset(model, selection, data_config)
        names = [str(self.keys[row]) for row in rows]
        transform = augmented(model.transform, self.augmented_views)
        clips = clip_dataset(model, selection, data_config, transform=transform, random=True, names=names)
        clips.set_epoch(self.number)
        return clips


def views_of(keys: Sequence[str | None], augmented_views: AugmentedViews | None) -> list[View]:
    """Return the views to cache of clips with these keys: one fixed view, or the augmented ones."""
    if augmented_views is None:
        return [View(keys)]
    keys_by_view = [
        [None if key is None else f"{key}:{number}" for key in keys] for number in range(augmented_views.views)
    ]
    return [View(view_keys, augmented_views, number) for number, view_keys in enumerate(keys_by_view)]
