"""Streams of a data set's clips, decoded or encoded by the frozen tower, batch by batch, read as a data config says.

Contract: a model, a VideoDataset and a DataConfig in; decoded clips, or the taps that the branch reads, out, in order.
Knows nothing of caches, losses or metrics.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from clipvid.config.data_config import DataConfig
from clipvid.data.batch import Batch
from clipvid.data.dataset import ClipDataset
from clipvid.data.loader import batches_of, in_order
from clipvid.data.records import NO_PROTOCOL, ProtocolSpec, VideoDataset
from clipvid.data.views import Pair, Views
from clipvid.features.augmented_views import AugmentedViews, augmented
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.inference import inference
from clipvid.video.transforms import VideoTransform


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


def clip_dataset(
    model: VideoCLIP | VideoEncoder,
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
    # also for training, which otherwise fails at its first validation
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


def stream_taps(
    model: VideoCLIP,
    data: VideoDataset,
    data_config: DataConfig,
    *,
    for_cache: bool = False,
    progress: bool = False,
    title: str = "encode",
    clips: ClipDataset | None = None,
) -> Generator[tuple[Taps | Pixels, Batch], None, None]:
    """Yield the features that the branch reads, batch by batch in order; empty ones if no clip of a batch was readable.

    Each batch is encoded under `inference`. `for_cache` asks for complete taps, with the frame embeddings that other
    branches may need; the other arguments are those of `stream_clips`.
    """
    read = model.taps if for_cache else model.reads
    with closing(stream_clips(model, data, data_config, progress=progress, title=title, clips=clips)) as stream:
        for video, mask, batch in stream:
            if not len(batch):
                yield _no_taps(), batch
                continue
            with inference(model, data_config.precision):
                taps = read(video, mask=mask)
            yield taps, batch


def stream_clips(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset,
    data_config: DataConfig,
    *,
    progress: bool = False,
    title: str = "encode",
    clips: ClipDataset | None = None,
) -> Generator[tuple[Tensor, Tensor | None, Batch], None, None]:
    """Yield the decoded clips of each batch in order, on the model's device, with their mask and the batch itself.

    The mask is None if every frame counts. Clips in V views are B·V rows, the views of the first clip first. `clips`
    replaces the default, `clip_dataset` of `data`. Close the generator if you leave it early.
    """
    from tqdm import tqdm

    order = in_order(len(data), max(1, data_config.batch_size // data_config.views))
    clips = clip_dataset(model, data, data_config) if clips is None else clips
    source = batches_of(clips, order, workers=data_config.workers, device=model.device)
    with closing(source), tqdm(total=len(data), desc=title, unit="clip", disable=not progress) as bar:
        for batch in source:
            video, mask = batch.video.flatten(0, -5), batch.mask.flatten(0, -2)  # (B·V, T, ...), (B·V, T)
            yield video.to(model.device, non_blocking=True), None if bool(mask.all()) else mask, batch
            bar.update(len(batch) + len(batch.unreadable))


def trained_data_config(model: VideoCLIP, protocol_spec: ProtocolSpec = NO_PROTOCOL) -> DataConfig:
    """Return the data config that the model was trained with, filled up from the data's protocol and the defaults."""
    protocol = {name: value for name in ("frames", "tokens") if (value := getattr(protocol_spec, name)) is not None}
    trained = (model.training_record or {}).get("data_config", {})
    return DataConfig(
        **protocol | {name: trained[name] for name in ("frames", "sampler", "tokens") if trained.get(name)}
    )


def _no_taps() -> Taps:
    return Taps((), (), (), torch.zeros(0, 0, 0))


@dataclass(frozen=True)
class View:
    """One view of every clip of a data set; `keys` are their keys in a cache, None for a file that cannot be opened."""

    keys: Sequence[str | None]
    augmented_views: AugmentedViews | None = None
    number: int = 0

    def clips(self, model: VideoCLIP, data: VideoDataset, data_config: DataConfig, rows: Sequence[int]) -> ClipDataset:
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
