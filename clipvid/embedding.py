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
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvid.cache import TapStore, TextCache, records_of, stream_taps, trained_reading
from clipvid.config import Reading
from clipvid.data.loader import in_order
from clipvid.data.record import VideoData
from clipvid.errors import DataError, VideoError
from clipvid.matching import Frames
from clipvid.model import VideoCLIP
from clipvid.precision import autocast
from clipvid.profile import awaited, stage
from clipvid.taps import Pixels, Taps


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the clips that could be read, with the records they belong to; `views` is not normalised."""

    views: Float[Tensor, "n v e"]
    data: VideoData
    unreadable: tuple[VideoError, ...] = ()

    @property
    def video(self) -> Float[Tensor, "n e"]:
        """One embedding a clip: that of its only view, not normalised, or the mean of its views' normalised ones."""
        return self.views[:, 0] if self.views.shape[1] == 1 else F.normalize(self.views, dim=-1).mean(dim=1)


def embed_videos(
    model: VideoCLIP,
    data: VideoData | TapStore,
    reading: Reading | None = None,
    *,
    whole: bool = False,
    progress: bool = False,
) -> Embedded:
    """Embed every clip in all its views, decoding as it goes or reading taps that were kept.

    `whole` is for figures: DataError when a protocol's video cannot be read, unless it was opened with allow_missing.
    """
    rows, kept, lost = _encoded(
        model,
        data,
        reading_for(model, data, reading),
        lambda taps: model.encode_video(taps, normalize=False).float().cpu(),
        whole=whole,
        progress=progress,
    )
    return Embedded(torch.cat(rows).unflatten(0, (len(kept), -1)), kept, lost)  # (n, V, E)


def embed_frames(
    model: VideoCLIP, data: VideoData | TapStore, reading: Reading | None = None, *, progress: bool = False
) -> tuple[Frames, VideoData, tuple[VideoError, ...]]:
    """Frame embeddings of every clip, those of all its views side by side; the clips, and what could not be read."""

    def encode(taps: Taps | Pixels) -> tuple[Tensor, Tensor]:
        frames, mask = model.encode_clip(taps)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        return frames.float().cpu(), mask

    rows, kept, lost = _encoded(model, data, reading_for(model, data, reading), encode, whole=True, progress=progress)
    embeddings, masks = (torch.cat(part).unflatten(0, (len(kept), -1)) for part in zip(*rows, strict=True))
    return Frames(embeddings.flatten(1, 2), masks.flatten(1, 2)), kept, lost


def _encoded(
    model: VideoCLIP,
    data: VideoData | TapStore,
    reading: Reading,
    encode: Callable[[Taps | Pixels], Any],
    *,
    whole: bool,
    progress: bool,
) -> tuple[list[Any], VideoData, tuple[VideoError, ...]]:
    """What `encode` gives for each batch, in eval mode and without gradients; `whole` refuses to lose a video."""
    rows: list[Any] = []
    kept: list[int] = []
    lost: list[VideoError] = []
    facts = records_of(data)
    was_training = model.training
    model.eval()
    try:
        with closing(_taps(model, data, reading, progress=progress)) as stream:
            for taps, indices, unreadable in stream:
                lost.extend(unreadable)
                kept.extend(indices)
                if whole and unreadable:  # now, not after hours
                    require_whole(facts, len(facts) - len(lost))
                if indices:
                    with torch.no_grad(), autocast(reading.precision, model.device):
                        rows.append(encode(taps))
    finally:
        model.train(was_training)
    if not kept:
        raise ValueError("no video could be read" + (f"; first: {lost[0]}" if lost else "; the data set is empty"))
    known = data.unreadable if isinstance(data, TapStore) else ()
    return rows, facts.surviving(kept), (*known, *lost)


@torch.no_grad()
def embed_texts(
    model: VideoCLIP,
    texts: Sequence[str],
    *,
    precision: str = "auto",
    tokens: int | None = None,
    chunk: int = 256,
    kept: TextCache | None = None,
) -> Tensor:
    """Normalised embeddings (M, E) of texts; equal texts get equal embeddings, bit for bit.

    `tokens` cuts longer texts to so many (`Reading.tokens`). `kept` is where embeddings are looked up, and put.
    """

    def embed(ids: Tensor) -> Tensor:
        with autocast(precision, model.device):
            found = model.encode_text(ids, normalize=False).float()
        return F.normalize(found, dim=-1).cpu()

    known = embed if kept is None else partial(kept.embedded, kept.recipe(model, precision), embed=embed)
    distinct = {text: place for place, text in enumerate(sorted(set(texts)))}
    parts = []
    for start in range(0, len(distinct), chunk):
        with stage("text"):
            ids = model.backbone.tokenize(list(distinct)[start : start + chunk], longest=tokens)
            parts.append(known(ids))
    return torch.cat(parts)[[distinct[text] for text in texts]]


def reading_for(model: VideoCLIP, data: VideoData | TapStore, reading: Reading | None) -> Reading:
    """As asked, else as the model was trained; captions are cut as the protocol says where nothing else does.

    Stored taps know how they were read: batch size, precision and what becomes of captions remain.
    """
    if isinstance(data, TapStore):
        if data.draws is not None:
            raise ValueError(
                f"the store of {data.data.name} keeps views that were drawn by chance, for training; evaluate the "
                "videos, or a store without draws"
            )
        told, terms = reading or data.reading, data.data.terms
        reading = replace(data.reading, batch_size=told.batch_size, precision=told.precision, tokens=told.tokens)
    else:
        terms = data.terms
        reading = reading or trained_reading(model, terms)
    return reading if reading.tokens is not None else replace(reading, tokens=terms.tokens)


def require_whole(data: VideoData, found: int) -> None:
    """DataError if `found` videos are fewer than the data's protocol has and nobody said that this is all right."""
    terms = data.terms
    if terms.videos is None or found >= terms.videos or terms.fewer:
        return
    advice = "mend the others (clipvid data check says what is wrong)"
    here = f"{found} are here"
    if terms.listed is not None and terms.listed < terms.videos:
        here = f"the list names {terms.listed}, of which {found} are here"
        advice = "leave out the list (annotations) to take the protocol's own"
    raise DataError(
        f"{data.name}: the protocol has {terms.videos} videos and {here}, so the figures would be over an easier "
        f"gallery; {advice}, or allow it with allow_missing"
    )


def _taps(
    model: VideoCLIP, data: VideoData | TapStore, reading: Reading, *, progress: bool
) -> Generator[tuple[Taps | Pixels, list[int], tuple[VideoError, ...]], None, None]:
    if isinstance(data, TapStore):
        plan = in_order(len(data), reading.batch_size)
        store = data.read_by(model)
        jobs = (partial(store.sent, rows, model.device) for rows in plan)
        with closing(awaited(store.in_turn(jobs))) as source:
            for rows, taps in zip(plan, source, strict=True):
                yield taps(), list(rows), ()
        return
    title = f"embed {data.name}"
    with closing(stream_taps(model, data, reading, progress=progress, title=title)) as stream:
        for taps, batch in stream:
            yield taps, batch.index.tolist(), batch.unreadable
