"""Reranking of the best hits by the model's token-wise similarity.

Contract: hits in, the same hits in a new order and with new scores out. Decodes the videos again. Knows nothing of
stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clipvid.config.data_config import DataConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.features.embed import embed_frames, has_taps
from clipvid.features.encode import VideoEncoder
from clipvid.features.token_wise import match_all
from clipvid.search.hits import Hit


def reranked(text: str, hits: Sequence[Hit], model: VideoEncoder, config: DataConfig) -> list[Hit]:
    """Return the hits sorted and scored by the model's token-wise similarity to the sentence.

    Raises ValueError for hits that are arrays, which are not in the index, and VideoError for an unreadable video.
    """
    if not hits:
        return []
    if arrays := [hit.path for hit in hits if not hit.path.is_absolute()]:
        raise ValueError(
            f"rerank must be 0 for arrays, which are not in the index, got hit {str(arrays[0])!r}; leave rerank out"
        )
    assert has_taps(model), "only a VideoCLIP has token-wise similarity"
    clips = VideoDataset(tuple(Record(hit.path) for hit in hits))
    frames, _, _ = embed_frames(model, clips, replace(config, unreadable="raise"))
    scores = match_all(model, [text], frames, precision=config.precision, tokens=config.tokens)[0].tolist()
    order = sorted(range(len(hits)), key=lambda position: -scores[position])
    return [Hit(hits[position].path, scores[position], rank) for rank, position in enumerate(order, start=1)]
