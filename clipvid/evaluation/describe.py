"""Metadata of an evaluation, and the check that every video has a caption or label.

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
    model: VideoCLIP, data: VideoDataset, unreadable: tuple[VideoError, ...], data_config: DataConfig
) -> EvaluationMetadata:
    """Return the metadata of an evaluation of `model` on `data`, whose unreadable videos are left out already."""
    return EvaluationMetadata(
        model.describe(),
        data.name,
        len(data),
        data.protocol_spec.videos,
        data_hash(data),
        data_config,
        resolve(data_config.precision, model.device),
        tuple(str(path) for path in data.missing),
        unreadable,
        listed=data.protocol_spec.listed,
    )


def require_each(data: VideoDataset, annotation: str, has: Sequence[bool]) -> None:
    """Raise DataError with the first video that lacks an annotation ("caption"); `has` is one flag per video."""
    without = [record.path for record, ok in zip(data, has, strict=True) if not ok]
    if without:
        raise DataError(
            f"{len(without)} of {len(data)} videos of {data.name} have no {annotation}, first {without[0]}; add it, or "
            "leave these videos out of the data"
        )
