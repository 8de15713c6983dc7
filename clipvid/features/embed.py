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
from jaxtyping import Float
from torch import Tensor

from clipvid.config.data_config import DataConfig
from clipvid.data.loader import in_order
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError, VideoError
from clipvid.features.encode import VideoEncoder, stream_clips, stream_taps, trained_data_config
from clipvid.features.source import TapStore, dataset_of
from clipvid.features.text_cache import TextCache
from clipvid.features.token_wise import Frames
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.inference import inference
from clipvid.runtime.profiling import awaited, stage


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
    return VideoEmbeddings(torch.cat(batches).unflatten(0, (len(clips), -1)), clips, unreadable)  # (n, V, E)


def embed_frames(
    model: VideoCLIP, data: VideoDataset | TapStore, data_config: DataConfig | None = None, *, progress: bool = False
) -> tuple[Frames, VideoDataset, tuple[VideoError, ...]]:
    """Return the frame embeddings of every readable clip, all its views concatenated; the clips; and the errors."""

    def encode(taps: Taps | Pixels) -> tuple[Tensor, Tensor]:
        frames, mask = model.encode_clip(taps)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        return frames.float().cpu(), mask

    batches, clips, unreadable = _encode_clips(
        model, data, resolve_data_config(model, data, data_config), encode, complete=True, progress=progress
    )
    embeddings, masks = (torch.cat(part).unflatten(0, (len(clips), -1)) for part in zip(*batches, strict=True))
    return Frames(embeddings.flatten(1, 2), masks.flatten(1, 2)), clips, unreadable


def _encode_clips(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    encode: Callable[[Any], Any],
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
                require_whole(dataset, len(dataset) - len(errors))
            if indices:
                batches.append(encoded)
    if not readable:
        raise ValueError("no video could be read" + (f"; first: {errors[0]}" if errors else "; the data set is empty"))
    earlier_errors = data.unreadable if isinstance(data, TapStore) else ()
    return batches, dataset.surviving(readable), (*earlier_errors, *errors)


def embed_batches(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset,
    data_config: DataConfig,
    *,
    progress: bool = False,
    title: str | None = None,
) -> Generator[tuple[Tensor | None, list[int], tuple[VideoError, ...]], None, None]:
    """Embed a data set batch by batch, with any encoder of videos, as `embed_videos` does.

    Yields the embeddings (B·V, E) in float32 on the CPU, not normalised unless the encoder does it, or None for a batch
    without a readable clip; the indices of the batch's clips in `data`; and the errors of the others.
    """
    return _encode_batches(model, data, data_config, _video_encoder(model), progress=progress, title=title)


def _video_encoder(model: VideoCLIP | VideoEncoder) -> Callable[[Any], Tensor]:
    """Return the function that embeds the inputs that `_inputs` yields for this model."""
    if has_taps(model):
        return lambda taps: model.encode_video(taps, normalize=False).float().cpu()
    return lambda clips: model.encode_video(clips[0], mask=clips[1]).float().cpu()


def has_taps(model: VideoCLIP | VideoEncoder) -> TypeGuard[VideoCLIP]:
    """Return True for a VideoCLIP or a wrapper of one, False for another encoder, which takes clips and sentences."""
    return hasattr(model, "reads")


def _encode_batches(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    encode: Callable[[Any], Any],
    *,
    progress: bool,
    title: str | None = None,
) -> Generator[tuple[Any, list[int], tuple[VideoError, ...]], None, None]:
    """Yield the result of `encode` for each batch under `inference`, the indices of its clips, and the errors."""
    with closing(_inputs(model, data, data_config, progress=progress, title=title)) as stream:
        for inputs, indices, unreadable in stream:
            encoded = None
            if indices:
                with inference(model, data_config.precision):
                    encoded = encode(inputs)
            yield encoded, indices, unreadable


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
    if isinstance(data, TapStore):
        if data.augmented_views is not None:
            raise ValueError(
                f"the store of {data.data.name} holds augmented views, which are for training; evaluate the videos, or "
                "a store of one fixed view"
            )
        requested, protocol_spec = data_config or data.data_config, data.data.protocol_spec
        data_config = replace(
            data.data_config, batch_size=requested.batch_size, precision=requested.precision, tokens=requested.tokens
        )
    else:
        protocol_spec = data.protocol_spec
        data_config = data_config or trained_data_config(model, protocol_spec)
    return data_config if data_config.tokens is not None else replace(data_config, tokens=protocol_spec.tokens)


def require_whole(data: VideoDataset, n_videos: int) -> None:
    """Raise DataError if `n_videos` is less than the protocol's number, unless the data allow missing videos."""
    protocol_spec = data.protocol_spec
    if protocol_spec.videos is None or n_videos >= protocol_spec.videos or protocol_spec.fewer:
        return
    advice = "repair the others (clipvid data check lists their errors)"
    count = f"{n_videos} are here"
    if protocol_spec.listed is not None and protocol_spec.listed < protocol_spec.videos:
        count = f"the list names {protocol_spec.listed}, of which {n_videos} are here"
        advice = "leave out the list (annotations) to take the protocol's own"
    raise DataError(
        f"{data.name}: the protocol has {protocol_spec.videos} videos and {count}, so the metrics would be over an "
        f"easier gallery; {advice}, or allow it with allow_missing"
    )


def _inputs(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    *,
    progress: bool,
    title: str | None,
) -> Generator[tuple[Any, list[int], tuple[VideoError, ...]], None, None]:
    """Yield the model's input for each batch: taps or pixels, or for an encoder without them clips and a mask."""
    title = title or f"embed {dataset_of(data).name}"
    if not has_taps(model):
        assert isinstance(data, VideoDataset), "stored taps are for a VideoCLIP"
        with closing(stream_clips(model, data, data_config, progress=progress, title=title)) as stream:
            for video, _, batch in stream:
                yield (video, batch.mask.flatten(0, -2).to(model.device)), batch.index.tolist(), batch.unreadable
        return
    if isinstance(data, TapStore):
        order = in_order(len(data), data_config.batch_size)
        store = data.read_by(model)
        jobs = (partial(store.sent, rows, model.device) for rows in order)
        with closing(awaited(store.in_turn(jobs))) as source:
            for rows, taps in zip(order, source, strict=True):
                yield taps(), list(rows), ()
        return
    with closing(stream_taps(model, data, data_config, progress=progress, title=title)) as stream:
        for taps, batch in stream:
            yield taps, batch.index.tolist(), batch.unreadable
