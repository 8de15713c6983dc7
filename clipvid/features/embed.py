"""Embeddings of a data set: of its clips in all their views, of their frames, and of captions.

Contract: model and data in; rows in the order of the records out, with the clips that they belong to and the errors of
unreadable ones. Clips are encoded live or read from cached taps. Also resolves the data config, and checks that enough
videos were readable. Knows nothing of metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from clipvid.config import checks
from clipvid.config.data_config import DataConfig, checked_data_config
from clipvid.data.probing.equal_clips import first_of_equals
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError, NoVideoError, VideoError
from clipvid.features.encode import (
    LiveSource,
    VideoEncoder,
    checked_encoder,
    clips_per_batch,
    flat_views,
    trained_data_config,
)
from clipvid.features.source import FeatureSource, stream_in_order
from clipvid.features.taps.tap_store import TapStore, dataset_of
from clipvid.features.text_cache import TextCache
from clipvid.features.token_wise import Frames
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.models.video_clip import VideoCLIP, require_video_clip
from clipvid.runtime.inference import inference
from clipvid.runtime.profiling import stage


@dataclass(frozen=True)
class VideoEmbeddings:
    """Embeddings of the readable clips, with the records they belong to; `views` is not normalised."""

    views: Float[Tensor, "n v e"]
    data: VideoDataset
    unreadable: tuple[VideoError, ...] = ()

    @property
    def video(self) -> Float[Tensor, "n e"]:
        """One embedding per clip: that of its only view, not normalised, or the mean of its views' normalised ones."""
        return self.views[:, 0] if self.views.shape[1] == 1 else F.normalize(self.views, dim=-1).mean(dim=1)


def embed_videos(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig | None = None,
    *,
    complete: bool = False,
    progress: bool = False,
) -> VideoEmbeddings:
    """Embed every clip in all its views, decoding as it goes or reading cached taps.

    Clips of equal content get the embedding of the first, bit for bit: what is computed for a clip depends on the other
    clips of its batch in the last digits, and would break ties by accident.

    `complete` is for metrics: raise DataError if a protocol's video cannot be read, unless it was opened with
    allow_missing.
    """
    batches, clips, unreadable = _encode_clips(
        model,
        data,
        resolve_data_config(model, data, data_config),
        _video_encoder(model),
        complete=complete,
        progress=progress,
    )
    views = torch.cat(batches).unflatten(0, (len(clips), -1))  # (n, V, E)
    first = first_of_equals(clips.records)
    return VideoEmbeddings(views if first is None else views[first], clips, unreadable)


def embed_frames(
    model: VideoCLIP, data: VideoDataset | TapStore, data_config: DataConfig | None = None, *, progress: bool = False
) -> tuple[Frames, VideoDataset, tuple[VideoError, ...]]:
    """Return the frame embeddings of every readable clip, all its views concatenated; the clips; and the errors."""

    def encode(features: Taps | Pixels, _: Tensor | None) -> tuple[Tensor, Tensor]:
        frames, mask = model.encode_clip(features)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        return frames.float().cpu(), mask

    batches, clips, unreadable = _encode_clips(
        model, data, resolve_data_config(model, data, data_config), encode, complete=True, progress=progress
    )
    embeddings, masks = (torch.cat(part).unflatten(0, (len(clips), -1)) for part in zip(*batches, strict=True))
    if (first := first_of_equals(clips.records)) is not None:
        embeddings, masks = embeddings[first], masks[first]
    return Frames(embeddings.flatten(1, 2), masks.flatten(1, 2)), clips, unreadable


def _encode_clips(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    encode: Callable[[Any, Tensor | None], Any],
    *,
    complete: bool,
    progress: bool,
) -> tuple[list[Any], VideoDataset, tuple[VideoError, ...]]:
    """Return the result of `encode` for each batch, the clips that were read, and the errors of the others.

    With `complete`, raise DataError at the first unreadable video that the protocol does not allow to be missing.
    """
    batches: list[Any] = []
    readable: list[int] = []
    errors: list[VideoError] = []
    dataset = dataset_of(data)
    with closing(_encode_batches(model, data, data_config, encode, progress=progress)) as stream:
        for encoded, indices, unreadable in stream:
            errors.extend(unreadable)
            readable.extend(indices)
            if complete and unreadable:  # fail now rather than after hours
                require_all_videos(dataset, len(dataset) - len(errors))
            if indices:
                batches.append(encoded)
    if not readable:
        reason = f"check the files with clipvid data check; first: {errors[0]}" if errors else "the data set is empty"
        raise NoVideoError(f"none of the {len(dataset)} videos of {dataset.name} could be read; {reason}")
    earlier_errors = data.unreadable if isinstance(data, TapStore) else ()
    return batches, dataset.surviving(readable), (*earlier_errors, *errors)


def embed_batches(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset,
    data_config: DataConfig | None = None,
    *,
    progress: bool = False,
    title: str | None = None,
) -> Generator[tuple[Tensor | None, list[int], tuple[VideoError, ...]], None, None]:
    """Embed a data set batch by batch, with any encoder of videos, as `embed_videos` does.

    The data config defaults to that of the model's training. Yields the embeddings (B·V, E) in float32 on the CPU, not
    normalised unless the encoder does it, or None for a batch without a readable clip; the indices of the batch's clips
    in `data`; and the errors of the others.
    """
    data_config = data_config or trained_data_config(model, data.protocol_spec)
    return _encode_batches(model, data, data_config, _video_encoder(model), progress=progress, title=title)


def _video_encoder(model: VideoCLIP | VideoEncoder) -> Callable[[Any, Tensor | None], Tensor]:
    """Return the function that embeds a batch of features, or for an encoder without taps of clips and their mask."""
    if has_taps(model):
        return lambda features, _: model.encode_video(features, normalize=False).float().cpu()

    def encode(clips: Tensor, mask: Tensor | None) -> Tensor:
        mask = torch.ones(clips.shape[:-3], dtype=torch.bool, device=clips.device) if mask is None else mask
        video, mask = flat_views(clips, mask)
        return model.encode_video(video, mask=mask).float().cpu()

    return encode


def has_taps(model: VideoCLIP | VideoEncoder) -> TypeGuard[VideoCLIP]:
    """Return True for a VideoCLIP or a wrapper of one, False for another encoder, which takes clips and sentences."""
    return hasattr(model, "reads")


def _encode_batches(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    encode: Callable[[Any, Tensor | None], Any],
    *,
    progress: bool,
    title: str | None = None,
) -> Generator[tuple[Any, list[int], tuple[VideoError, ...]], None, None]:
    """Yield the result of `encode` for each batch under `inference`, the indices of its clips, and the errors."""
    source, size = _open_source(model, data, data_config), clips_per_batch(data_config)
    title = title or f"embed {source.data.name}"
    with closing(stream_in_order(source, size, progress=progress, title=title)) as stream:
        for batch in stream:
            encoded = None
            if batch.features is not None:
                with inference(model, data_config.precision):
                    encoded = encode(batch.features, batch.mask)
            yield encoded, batch.rows, batch.unreadable


def embed_texts(
    model: VideoCLIP | VideoEncoder,
    texts: Sequence[str],
    *,
    precision: str = "auto",
    tokens: int | None = None,
    batch_size: int = 256,
    cache: TextCache | None = None,
) -> Tensor:
    """Return normalised embeddings (M, E) of texts; equal texts get equal embeddings, bit for bit.

    `tokens` is the maximum length of a text (`DataConfig.tokens`). Embeddings are looked up in `cache`, and new ones
    are stored there. Both are for a VideoCLIP only: another encoder gets the strings as they are.
    """
    model = checked_encoder(model)
    texts = checks.texts("texts", texts, advice="give a list of captions")

    def embed(part: Any) -> Tensor:
        with inference(model, precision):
            embedding = model.encode_text(part, normalize=False) if has_taps(model) else model.encode_text(part)
            return F.normalize(embedding.float(), dim=-1).cpu()

    embed_or_load: Callable[[Any], Tensor] = embed
    if cache is not None:
        assert has_taps(model), "the text cache is for a VideoCLIP only"
        embed_or_load = partial(cache.embedded, cache.cache_key(model.backbone, precision), embed=embed)
    distinct = {text: index for index, text in enumerate(sorted(set(texts)))}
    parts = []
    for start in range(0, len(distinct), batch_size):
        with stage("text"):
            part: Any = list(distinct)[start : start + batch_size]
            part = model.backbone.tokenize(part, longest=tokens) if has_taps(model) else part
            parts.append(embed_or_load(part))
    return torch.cat(parts)[[distinct[text] for text in texts]]


def resolve_data_config(model: VideoCLIP, data: VideoDataset | TapStore, data_config: DataConfig | None) -> DataConfig:
    """Return the given data config, by default that of the model's training; `tokens` defaults to the protocol's.

    Stored taps fix how clips were read: only batch size, precision and `tokens` are taken from `data_config`. Raises
    ValueError for a store of augmented views.
    """
    require_video_clip(model)
    protocol_spec, data_config = dataset_of(data).protocol_spec, checked_data_config(data_config)
    if isinstance(data, TapStore):
        if data.augmented_views is not None:
            raise ValueError(
                f"the store of {data.data.name} holds augmented views, which are for training; evaluate the videos, or "
                "a store of one fixed view"
            )
        requested = data_config or data.data_config
        data_config = replace(
            data.data_config, batch_size=requested.batch_size, precision=requested.precision, tokens=requested.tokens
        )
    else:
        data_config = data_config or trained_data_config(model, protocol_spec)
    return data_config if data_config.tokens is not None else replace(data_config, tokens=protocol_spec.tokens)


def require_all_videos(data: VideoDataset, n_videos: int) -> None:
    """Raise DataError if `n_videos` is less than the protocol's number, unless the data allow missing videos."""
    protocol_spec = data.protocol_spec
    if protocol_spec.videos is None or n_videos >= protocol_spec.videos or protocol_spec.fewer:
        return
    advice = "repair the others (clipvid data check lists their errors)"
    count = f"{n_videos} are available"
    if protocol_spec.listed is not None and protocol_spec.listed < protocol_spec.videos:
        count = f"the list names {protocol_spec.listed}, of which {n_videos} are available"
        advice = "leave out the list (annotations) to take the protocol's own"
    raise DataError(
        f"{data.name}: the protocol has {protocol_spec.videos} videos and {count}, so the metrics would be over an "
        f"easier gallery; {advice}, or allow it with allow_missing"
    )


def unit_rows(embeddings: Float[Tensor, "rows e"], *, views: int = 1) -> Float32[ndarray, "b e"]:
    """Return float32 rows of length 1, as stores expect them: each the mean of a video's normalised views."""
    units = F.normalize(embeddings.detach().float(), dim=-1)
    if views > 1:
        units = F.normalize(units.unflatten(0, (-1, views)).mean(dim=1), dim=-1)  # (B, E)
    return units.cpu().contiguous().numpy()


def _open_source(
    model: VideoCLIP | VideoEncoder, data: VideoDataset | TapStore, data_config: DataConfig
) -> FeatureSource:
    """Return the source of the model's inputs: its branch's features, or for an encoder without taps decoded clips."""
    if not has_taps(model):
        assert isinstance(data, VideoDataset), "stored taps are for a VideoCLIP"
        return LiveSource(model, data, data_config)
    return data.read_by(model) if isinstance(data, TapStore) else LiveSource(model, data, data_config, read=model.reads)
