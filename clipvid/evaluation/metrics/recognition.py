"""Recognition metrics: top-k and mean class accuracy, and the confusion matrix.

Contract: class scores and labels in, numbers out. Classes that tie for the best score share the credit equally. Knows
nothing of models or videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from clipvid.evaluation.metrics.bootstrap import (
    Interval,
    cell,
    class_mean,
    class_mean_interval,
    percent,
    share_interval,
)
from clipvid.evaluation.metrics.ranking import count_placement, hits, rounded
from clipvid.evaluation.metrics.scores import Matrix, Rows, as_array, blocks
from clipvid.runtime.text import pluralize


class ClassResult(NamedTuple):
    """Recognition of one class."""

    videos: int
    """Number of videos of the class."""
    top1: float | None
    """Top-1 accuracy in percent; None for a class without videos."""
    mistaken_for: int | None
    """Label of the other class predicted most often; None if no other class is predicted."""
    mistaken: float
    """Percentage of the videos for which `mistaken_for` is predicted."""


@dataclass(frozen=True, eq=False, repr=False)
class RecognitionMetrics:
    """Classification accuracy in percent; `values` has top-1, top-5 (top-C where C < 5) and the mean over classes."""

    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    n: int
    n_classes: int
    confusion: Float64[ndarray, "c c"]
    """Clips by true class (row) and predicted class (column); a clip whose best classes tie is split equally."""
    each: Mapping[str, Float64[ndarray, " n"]]
    """Hits per clip by metric, within [0, 1]."""

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def by_class(self) -> list[ClassResult]:
        """Return the result of each class, in label order."""
        results: list[ClassResult] = []
        for label, row in enumerate(self.confusion):
            clips, others = float(row.sum()), np.where(np.arange(len(row)) == label, 0, row)
            mistaken = int(others.argmax()) if others.max() > 0 else None
            top1 = 100 * float(row[label]) / clips if clips else None
            results.append(
                ClassResult(round(clips), top1, mistaken, float(others.max() / clips * 100) if clips else 0.0)
            )
        return results

    def to_dict(self, *, each: bool = True) -> dict[str, object]:
        """Return metrics ready for JSON without the confusion matrix; `each` adds hits per clip under that name."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        counts = {"videos": self.n, "classes": self.n_classes}
        return {**self.values, "intervals": intervals, **counts, **(rounded(self.each) if each else {})}

    def __repr__(self) -> str:
        cells = ", ".join(f"{name} {value:.1f}" for name, value in self.values.items())
        return f"RecognitionMetrics({cells}; {pluralize(self.n, 'video')})"

    def __str__(self) -> str:
        cells = "  ".join(f"{name} {cell(value, self.intervals[name])}" for name, value in self.values.items())
        return f"{cells}  ({pluralize(self.n, 'video')}, {pluralize(self.n_classes, 'class')})"


def recognition_metrics(logits: Any, labels: Any, *, n_resamples: int = 1000, seed: int = 0) -> RecognitionMetrics:
    """Return the accuracy of class scores (B, C) for labels (B,); the class mean is over classes with labels."""
    scores, classes = Matrix(logits), as_array(labels).astype(np.int64)
    placement = count_placement(scores, classes)
    k = min(5, scores.shape[1])
    top1 = hits(placement, 1)
    each = {"top-1": top1, f"top-{k}": hits(placement, k)}
    values = {name: 100 * float(hit.mean()) for name, hit in each.items()}
    intervals = {name: percent(share_interval(hit, n_resamples=n_resamples, seed=seed)) for name, hit in each.items()}
    values["mean class"] = 100 * class_mean(np.stack([top1, classes], axis=1))
    intervals["mean class"] = percent(class_mean_interval(top1, classes, n_resamples=n_resamples, seed=seed))
    return RecognitionMetrics(values, intervals, *scores.shape, _confusion(scores, classes), each)


def _confusion(scores: Rows, classes: ndarray) -> ndarray:
    """Return the confusion matrix (C, C), with a clip split equally among tied predictions."""
    confusion = np.zeros((scores.shape[1], scores.shape[1]))
    for part in blocks(scores):
        values = scores.rows(part)
        best = values == values.max(axis=1, keepdims=True)
        np.add.at(confusion, classes[part], best / best.sum(axis=1, keepdims=True))
    return confusion
