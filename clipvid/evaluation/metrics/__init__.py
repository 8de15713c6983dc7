"""Retrieval and recognition metrics: the expectation over random orders of ties, with N and confidence intervals.

Contract: scores in, numbers out; no model, no files, no randomness except the seeded bootstrap. Rows are queries,
columns are the gallery.
"""

from clipvid.evaluation.metrics.bootstrap import (
    Difference,
    Interval,
    bootstrap_interval,
    paired_bootstrap,
    percent,
    share_interval,
)
from clipvid.evaluation.metrics.ranking import Hubness, best_items, hubness, ranks
from clipvid.evaluation.metrics.recognition import RecognitionMetrics, recognition_metrics
from clipvid.evaluation.metrics.retrieval import RankingMetrics, RetrievalMetrics, ranking_metrics, retrieval_metrics
from clipvid.evaluation.metrics.scores import DualSoftmax, Matrix, Products, QueryBank, Scores

__all__ = [
    "Difference",
    "DualSoftmax",
    "Hubness",
    "Interval",
    "Matrix",
    "Products",
    "QueryBank",
    "RankingMetrics",
    "RecognitionMetrics",
    "RetrievalMetrics",
    "Scores",
    "best_items",
    "bootstrap_interval",
    "hubness",
    "paired_bootstrap",
    "percent",
    "ranking_metrics",
    "ranks",
    "recognition_metrics",
    "retrieval_metrics",
    "share_interval",
]
