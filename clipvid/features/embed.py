"""Embeddings of a data set: of its clips in all their views, of their frames, of captions.

Contract: model and data in; rows in the order of the records out, with the clips that they belong to and those that
could not be read. Live or from kept taps alike. Also what decides how data are read, and whether enough of them could
be. Knows nothing of what is scored.
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
    """Embeddings of the clips that could be read, with the records they belong to; `views` is not normalised."""

    views: Float[Tensor, "n v e"]
    data: VideoDataset
    unreadable: tuple[VideoError, ...] = ()

    @property
    def video(self) -> Float[Tensor, "n e"]:
        """One embedding a clip: that of its only view, not normalised, or the mean of its views' normalised ones."""
        return self.views[:, 0] if self.views.shape[1] == 1 else F.normalize(self.views, dim=-1).mean(dim=1)


def embed_videos(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig | None = None,
    *,
    whole: bool = False,
    progress: bool = False,
) -> VideoEmbeddings:
    """Embed every clip in all its views, decoding as it goes or reading taps that were kept.

    `whole` is for figures: DataError when a protocol's video cannot be read, unless it was opened with allow_missing.
    """
    rows, kept, lost = _encoded(
        model,
        data,
        resolve_data_config(model, data, data_config),
        _video_encoder(model),
        whole=whole,
        progress=progress,
    )
    return VideoEmbeddings(torch.cat(rows).unflatten(0, (len(kept), -1)), kept, lost)  # (n, V, E)


def embed_frames(
    model: VideoCLIP, data: VideoDataset | TapStore, data_config: DataConfig | None = None, *, progress: bool = False
) -> tuple[Frames, VideoDataset, tuple[VideoError, ...]]:
    """Frame embeddings of every clip, those of all its views side by side; the clips, and what could not be read."""

    def encode(taps: Taps | Pixels) -> tuple[Tensor, Tensor]:
        frames, mask = model.encode_clip(taps)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        return frames.float().cpu(), mask

    rows, kept, lost = _encoded(
        model, data, resolve_data_config(model, data, data_config), encode, whole=True, progress=progress
    )
    embeddings, masks = (torch.cat(part).unflatten(0, (len(kept), -1)) for part in zip(*rows, strict=True))
    return Frames(embeddings.flatten(1, 2), masks.flatten(1, 2)), kept, lost


def _encoded(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    encode: Callable[[Any], Any],
    *,
    whole: bool,
    progress: bool,
) -> tuple[list[Any], VideoDataset, tuple[VideoError, ...]]:
    """Return the result of `encode` for each batch, the clips that were read, and the errors of the others.

    `whole` refuses to lose a video.
    """
    rows: list[Any] = []
    kept: list[int] = []
    lost: list[VideoError] = []
    facts = dataset_of(data)
    with closing(_steps(model, data, data_config, encode, progress=progress)) as steps:
        for encoded, indices, unreadable in steps:
            lost.extend(unreadable)
            kept.extend(indices)
            if whole and unreadable:  # now, not after hours
                require_whole(facts, len(facts) - len(lost))
            if indices:
                rows.append(encoded)
    if not kept:
        raise ValueError("no video could be read" + (f"; first: {lost[0]}" if lost else "; the data set is empty"))
    known = data.unreadable if isinstance(data, TapStore) else ()
    return rows, facts.surviving(kept), (*known, *lost)


def embed_batches(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset,
    data_config: DataConfig,
    *,
    progress: bool = False,
    title: str | None = None,
) -> Generator[tuple[Tensor | None, list[int], tuple[VideoError, ...]], None, None]:
    """Embed a data set batch by batch, with any encoder of videos, as `embed_videos` does.

    Yields the embeddings (B·V, E) in float32 on the CPU, not normalised unless the encoder does it, and None for a
    batch in which nothing could be read; the places of the batch's clips in `data`; and the errors of the others.
    """
    return _steps(model, data, data_config, _video_encoder(model), progress=progress, title=title)


def _video_encoder(model: VideoCLIP | VideoEncoder) -> Callable[[Any], Tensor]:
    """Return the function that embeds what `_sources` yields for this model."""
    if has_taps(model):
        return lambda taps: model.encode_video(taps, normalize=False).float().cpu()
    return lambda clips: model.encode_video(clips[0], mask=clips[1]).float().cpu()


def has_taps(model: VideoCLIP | VideoEncoder) -> TypeGuard[VideoCLIP]:
    """Return True for a VideoCLIP, or what wraps one; False for another encoder, which takes clips and sentences."""
    return hasattr(model, "reads")


def _steps(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    encode: Callable[[Any], Any],
    *,
    progress: bool,
    title: str | None = None,
) -> Generator[tuple[Any, list[int], tuple[VideoError, ...]], None, None]:
    """Yield the result of `encode` for each batch under `inference`, the places of its clips, and the errors."""
    with closing(_sources(model, data, data_config, progress=progress, title=title)) as stream:
        for source, indices, unreadable in stream:
            encoded = None
            if indices:
                with inference(model, data_config.precision):
                    encoded = encode(source)
            yield encoded, indices, unreadable


def embed_texts(
    model: VideoCLIP | VideoEncoder,
    texts: Sequence[str],
    *,
    precision: str = "auto",
    tokens: int | None = None,
    batch_size: int = 256,
    kept: TextCache | None = None,
) -> Tensor:
    """Normalised embeddings (M, E) of texts; equal texts get equal embeddings, bit for bit.

    `tokens` cuts longer texts to so many (`DataConfig.tokens`). `kept` is where embeddings are looked up, and put. Both
    are for a VideoCLIP: another encoder embeds the strings by itself.
    """

    def embed(part: Any) -> Tensor:
        with inference(model, precision):
            embedding = model.encode_text(part, normalize=False) if has_taps(model) else model.encode_text(part)
            return F.normalize(embedding.float(), dim=-1).cpu()

    cached: Callable[[Any], Tensor] = embed
    if kept is not None:
        assert has_taps(model), "cached embeddings are those of a VideoCLIP"
        cached = partial(kept.embedded, kept.cache_key(model.backbone, precision), embed=embed)
    distinct = {text: place for place, text in enumerate(sorted(set(texts)))}
    parts = []
    for start in range(0, len(distinct), batch_size):
        with stage("text"):
            part: Any = list(distinct)[start : start + batch_size]
            part = model.backbone.tokenize(part, longest=tokens) if has_taps(model) else part
            parts.append(cached(part))
    return torch.cat(parts)[[distinct[text] for text in texts]]


def resolve_data_config(model: VideoCLIP, data: VideoDataset | TapStore, data_config: DataConfig | None) -> DataConfig:
    """As asked, else as the model was trained; captions are cut as the protocol says where nothing else does.

    Stored taps know how they were read: batch size, precision and what becomes of captions remain.
    """
    if isinstance(data, TapStore):
        if data.augmented_views is not None:
            raise ValueError(
                f"the store of {data.data.name} keeps views that were drawn by chance, for training; evaluate the "
                "videos, or a store without draws"
            )
        told, protocol_spec = data_config or data.data_config, data.data.protocol_spec
        data_config = replace(
            data.data_config, batch_size=told.batch_size, precision=told.precision, tokens=told.tokens
        )
    else:
        protocol_spec = data.protocol_spec
        data_config = data_config or trained_data_config(model, protocol_spec)
    return data_config if data_config.tokens is not None else replace(data_config, tokens=protocol_spec.tokens)


def require_whole(data: VideoDataset, found: int) -> None:
    """DataError if `found` videos are fewer than the data's protocol has and nobody said that this is all right."""
    protocol_spec = data.protocol_spec
    if protocol_spec.videos is None or found >= protocol_spec.videos or protocol_spec.fewer:
        return
    advice = "mend the others (clipvid data check says what is wrong)"
    here = f"{found} are here"
    if protocol_spec.listed is not None and protocol_spec.listed < protocol_spec.videos:
        here = f"the list names {protocol_spec.listed}, of which {found} are here"
        advice = "leave out the list (annotations) to take the protocol's own"
    raise DataError(
        f"{data.name}: the protocol has {protocol_spec.videos} videos and {here}, so the figures would be over an "
        "easier "
        f"gallery; {advice}, or allow it with allow_missing"
    )


def _sources(
    model: VideoCLIP | VideoEncoder,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    *,
    progress: bool,
    title: str | None,
) -> Generator[tuple[Any, list[int], tuple[VideoError, ...]], None, None]:
    """Yield what the model encodes of each batch: taps or pixels, or for an encoder without them clips and a mask."""
    title = title or f"embed {dataset_of(data).name}"
    if not has_taps(model):
        assert isinstance(data, VideoDataset), "stored taps are for a VideoCLIP"
        with closing(stream_clips(model, data, data_config, progress=progress, title=title)) as stream:
            for video, _, batch in stream:
                yield (video, batch.mask.flatten(0, -2).to(model.device)), batch.index.tolist(), batch.unreadable
        return
    if isinstance(data, TapStore):
        plan = in_order(len(data), data_config.batch_size)
        store = data.read_by(model)
        jobs = (partial(store.sent, rows, model.device) for rows in plan)
        with closing(awaited(store.in_turn(jobs))) as source:
            for rows, taps in zip(plan, source, strict=True):
                yield taps(), list(rows), ()
        return
    with closing(stream_taps(model, data, data_config, progress=progress, title=title)) as stream:
        for taps, batch in stream:
            yield taps, batch.index.tolist(), batch.unreadable
