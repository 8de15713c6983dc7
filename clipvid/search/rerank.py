"""Reranking of the best hits by the model's token-wise similarity.

Contract: hits in, the same hits in a new order and with new scores out. Decodes the videos again. Knows nothing of
stores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipvid.config.data_config import DataConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import NoVideoError
from clipvid.features.embed import embed_frames, has_taps
from clipvid.features.encode import VideoEncoder
from clipvid.features.token_wise import match_all
from clipvid.search.folder.catalog import GONE, UNREADABLE
from clipvid.search.hits import Hit


def reranked(text: str, hits: Sequence[Hit], model: VideoEncoder, config: DataConfig) -> list[Hit]:
    """Return the hits sorted and scored by the model's token-wise similarity to the sentence.

    Hits whose file is gone or unreadable come last, in their order and with their scores, and say so. Raises
    ValueError for hits that are arrays, which are not in the index.
    """
    if arrays := [hit.path for hit in hits if not hit.path.is_absolute()]:
        raise ValueError(
            f"rerank must be 0 for arrays, which are not in the index, got hit {str(arrays[0])!r}; leave rerank out"
        )
    present = {hit.path: hit for hit in hits if os.path.exists(hit.path)}
    scores = _scores(text, list(present), model, config) if present else {}
    best = sorted(scores, key=lambda path: -scores[path])
    ordered = [replace(present[path], score=scores[path]) for path in best]
    left = [hit for hit in hits if hit.path not in scores]
    ordered += [replace(hit, outdated=hit.outdated or (UNREADABLE if hit.path in present else GONE)) for hit in left]
    return [replace(hit, rank=rank) for rank, hit in enumerate(ordered, start=1)]


def _scores(text: str, paths: Sequence[Path], model: VideoEncoder, config: DataConfig) -> dict[Path, float]:
    """Return the token-wise similarity of the videos that can be read, in their order."""
    assert has_taps(model), "only a VideoCLIP has token-wise similarity"
    clips = VideoDataset(tuple(Record(path) for path in paths))
    try:
        frames, readable, _ = embed_frames(model, clips, replace(config, unreadable="skip"))
    except NoVideoError:
        return {}
    scores = match_all(model, [text], frames, precision=config.precision, tokens=config.tokens)[0].tolist()
    return dict(zip((record.path for record in readable), scores, strict=True))
