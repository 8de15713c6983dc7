"""What a model's branch reads of the clips of a data set, batch by batch, as a reading says.

Contract: a model, a VideoDataset and a DataConfig in; decoded clips, or what the frozen tower says of them, out, in
order.
Knows nothing of what is kept, of losses or of metrics.
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
    """The clips of `data`, read as `data_config` says and fitted to the model's input.

    `random` draws one clip of a video, or two as `pair` says: the reading's several views are for evaluation. `seed`
    and `names` are those of ClipDataset.
    """
    model.transform.check_crops(
        data_config.spatial_views
    )  # also for training, which would fail at its first validation
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
    to_keep: bool = False,
    progress: bool = False,
    title: str = "encode",
    clips: ClipDataset | None = None,
) -> Generator[tuple[Taps | Pixels, Batch], None, None]:
    """What the branch reads of every clip in order, batch by batch; batches in which nothing could be read are empty.

    Each batch under `inference`. `to_keep` asks for whole taps, with frame embeddings that other branches may need;
    the rest is that of `stream_clips`.
    """
    read = model.taps if to_keep else model.reads
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

    The mask is None where every frame counts. Clips in V views are B·V rows, the views of the first clip first.
    `clips` are those of `data` where they are read otherwise than `clip_dataset` does. Close it where you leave it
    early.
    """
    from tqdm import tqdm

    plan = in_order(len(data), max(1, data_config.batch_size // data_config.views))
    clips = clip_dataset(model, data, data_config) if clips is None else clips
    source = batches_of(clips, plan, workers=data_config.workers, device=model.device)
    with closing(source), tqdm(total=len(data), desc=title, unit="clip", disable=not progress) as bar:
        for batch in source:
            video, mask = batch.video.flatten(0, -5), batch.mask.flatten(0, -2)  # (B·V, T, ...), (B·V, T)
            yield video.to(model.device, non_blocking=True), None if bool(mask.all()) else mask, batch
            bar.update(len(batch) + len(batch.unreadable))


def trained_data_config(model: VideoCLIP, protocol_spec: ProtocolSpec = NO_PROTOCOL) -> DataConfig:
    """How the model's training read its clips; for a model that was not trained as the data's protocol has it."""
    told = {name: value for name in ("frames", "tokens") if (value := getattr(protocol_spec, name)) is not None}
    trained = (model.training_record or {}).get("data_config", {})
    return DataConfig(**told | {name: trained[name] for name in ("frames", "sampler", "tokens") if trained.get(name)})


def _no_taps() -> Taps:
    return Taps((), (), (), torch.zeros(0, 0, 0))


@dataclass(frozen=True)
class View:
    """One view of every clip of a data set: `keys` are their names in a cache, None where a file cannot be opened."""

    keys: Sequence[str | None]
    augmented_views: AugmentedViews | None = None
    number: int = 0

    def clips(self, model: VideoCLIP, data: VideoDataset, data_config: DataConfig, rows: Sequence[int]) -> ClipDataset:
        """Some of the clips of `data`, to be decoded; fixed ones where nothing is drawn."""
        some = data.subset(rows)
        if self.augmented_views is None:
            return clip_dataset(model, some, data_config)
        names = [str(self.keys[row]) for row in rows]
        transform = augmented(model.transform, self.augmented_views)
        found = clip_dataset(model, some, data_config, transform=transform, random=True, names=names)
        found.set_epoch(self.number)
        return found


def views_of(keys: Sequence[str | None], augmented_views: AugmentedViews | None) -> list[View]:
    """The views to keep of clips with these keys: one, or those that are drawn."""
    if augmented_views is None:
        return [View(keys)]
    named = [[None if key is None else f"{key}:{number}" for key in keys] for number in range(augmented_views.views)]
    return [View(some, augmented_views, number) for number, some in enumerate(named)]
