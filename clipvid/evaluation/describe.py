"""Metadata of an evaluation, and the check that every video has what is scored.

Contract: a model, data and settings in, plain metadata out. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipvid.config.data_config import DataConfig
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError, VideoError
from clipvid.evaluation.results import EvaluationMetadata, data_hash
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.precision import resolve


def describe_evaluation(
    model: VideoCLIP, kept: VideoDataset, lost: tuple[VideoError, ...], data_config: DataConfig
) -> EvaluationMetadata:
    return EvaluationMetadata(
        model.describe(),
        kept.name,
        len(kept),
        kept.protocol_spec.videos,
        data_hash(kept),
        data_config,
        resolve(data_config.precision, model.device),
        tuple(str(path) for path in kept.missing),
        lost,
        listed=kept.protocol_spec.listed,
    )


def require_each(data: VideoDataset, what: str, has: Sequence[bool]) -> None:
    without = [record.path for record, ok in zip(data, has, strict=True) if not ok]
    if without:
        raise DataError(
            f"{len(without)} of {len(data)} videos of {data.name} have no {what}, first {without[0]}; give it one, or "
            "leave them out of the data"
        )
