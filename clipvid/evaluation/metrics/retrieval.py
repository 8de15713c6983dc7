"""Text-to-video and video-to-text retrieval metrics with confidence intervals.

Contract: scores of captions (rows) with videos (columns) and the video index of each caption in, numbers out. Scores
are a matrix or any class of `scores.py`, and at most one block of them is in memory at once. No model, no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Num
from numpy import ndarray

from clipvid.evaluation.metrics.bootstrap import Interval, cell, percent, ranking_intervals
from clipvid.evaluation.metrics.ranking import (
    Placement,
    checked_truth,
    count_placement,
    count_placement_both,
    expected_ranks,
    hits,
    quality,
    rounded,
)
from clipvid.evaluation.metrics.scores import Paired, Rows, Scores, as_scores

SHOWN = ("R@1", "R@5", "R@10", "MdR", "MnR")
"""Metrics shown in tables; saved results have all of them."""


@dataclass(frozen=True, eq=False, repr=False)
class RankingMetrics:
    """One direction of retrieval: R@K, mAP and nDCG in percent, MdR and MnR as ranks from 1."""

    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    """95 % bootstrap percentile intervals over queries; slightly too narrow if several captions of a video are queries,
    since those are not independent."""
    n_queries: int
    n_gallery: int
    each: Mapping[str, Float64[ndarray, " q"]]
    """Values per query: hits (R@K), precision (mAP) and gain (nDCG) within [0, 1], and the rank (MnR)."""

    @property
    def ranks(self) -> Float64[ndarray, " q"]:
        """Expected rank of the best relevant item of each query, from 1, as `ranking.ranks` defines it."""
        return self.each["MnR"]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_dict(self, *, each: bool = True) -> dict[str, object]:
        """Return metrics ready for JSON; `each` adds the values per query under that name."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        counts = {"queries": self.n_queries, "gallery": self.n_gallery}
        return {**self.values, "intervals": intervals, **counts, **(rounded(self.each) if each else {})}

    def __repr__(self) -> str:
        cells = ", ".join(f"{name} {value:.1f}" for name, value in self.values.items() if name in SHOWN)
        return f"RankingMetrics({cells}; {self.n_queries} queries, gallery of {self.n_gallery})"

    def __str__(self) -> str:
        names = [name for name in self.values if name in SHOWN]
        return _table(names, {"": self})


@dataclass(frozen=True, eq=False, repr=False)
class RetrievalMetrics:
    """Text-to-video and video-to-text retrieval; `str()` is a table, `to_dict()` is for JSON."""

    t2v: RankingMetrics
    v2t: RankingMetrics

    def to_dict(self, *, each: bool = True) -> dict[str, object]:
        """Return the metrics keyed by direction, ready for JSON; `each` adds the values per query."""
        return {"t2v": self.t2v.to_dict(each=each), "v2t": self.v2t.to_dict(each=each)}

    def __repr__(self) -> str:
        return f"RetrievalMetrics(t2v={self.t2v!r}, v2t={self.v2t!r})"

    def __str__(self) -> str:
        names = [name for name in self.t2v.values if name in SHOWN]
        return _table(names, {"t2v": self.t2v, "v2t": self.v2t})


def _table(names: Sequence[str], sides: Mapping[str, RankingMetrics]) -> str:
    """Return a table of metrics `names` with intervals, one line per direction."""
    lines = ["     " + "".join(f"{name:<21}" for name in names) + "queries  gallery"]
    for direction, metrics in sides.items():
        cells = "".join(f"{cell(metrics.values[name], metrics.intervals[name]):<21}" for name in names)
        lines.append(f"{direction:<5}{cells}{metrics.n_queries:<9d}{metrics.n_gallery}")
    return "\n".join(lines)


def retrieval_metrics(
    similarity: Any,
    video_index: Any,
    *,
    ks: Sequence[int] = (1, 5, 10, 50),
    n_resamples: int = 1000,
    seed: int = 0,
) -> RetrievalMetrics:
    """Return the metrics of captions (rows) against videos (columns) in both directions.

    `similarity` (M, B) is a matrix or any `Scores`. `video_index` (M,) is the video of each caption. If captions are
    relevant to several videos, `video_index` is a boolean matrix (M, B): every caption is then a query for all of its
    videos, and every captioned video a query for all of its captions.

    t2v: every caption is a query, and the gallery has every video, also those without a caption. v2t: every captioned
    video is a query among the captions of all captioned videos, and a video's score is the highest of its captions'
    (the field's convention for several captions per video). R@K is the expected share of queries with a relevant item
    among the first K, over all orders of tied items. Raises ValueError for shapes that do not match, NaN, and scores
    of one direction only.
    """
    scores = as_scores(similarity)
    truth = checked_truth(video_index, scores.shape)
    if not isinstance(scores, Scores):
        raise ValueError(
            f"similarity must have scores of both directions, got {type(scores).__name__}; use ranking_metrics for one"
        )
    options: dict[str, Any] = {"ks": ks, "n_resamples": n_resamples, "seed": seed}
    if truth.ndim == 2:
        captioned = np.flatnonzero(truth.any(axis=0))
        return RetrievalMetrics(
            t2v=ranking_metrics(scores, truth, **options),
            v2t=ranking_metrics(Transposed(scores, captioned), truth.T[captioned], **options),
        )
    by_video, videos = ByVideo(scores, truth), np.arange(scores.shape[1])
    if isinstance(scores, Paired) and np.array_equal(np.sort(truth), videos):  # one caption per video: both in one pass
        _check_ks(ks)
        caption_placement, video_placement = count_placement_both(scores, truth)
        return RetrievalMetrics(
            t2v=_metrics(scores, truth, caption_placement, **options),
            v2t=_metrics(by_video, videos, video_placement, **options),
        )
    return RetrievalMetrics(
        t2v=ranking_metrics(scores, truth, **options),
        v2t=ranking_metrics(by_video, np.arange(by_video.shape[0]), **options),
    )


def ranking_metrics(
    similarity: Any,
    truth: Any,
    *,
    ks: Sequence[int] = (1, 5, 10, 50),
    n_resamples: int = 1000,
    seed: int = 0,
) -> RankingMetrics:
    """Return the metrics of one direction for any number of relevant items per query, `truth` as in `ranking.ranks`."""
    _check_ks(ks)
    scores = as_scores(similarity)
    options: dict[str, Any] = {"ks": ks, "n_resamples": n_resamples, "seed": seed}
    return _metrics(scores, truth, count_placement(scores, truth), **options)


def _check_ks(ks: Sequence[int]) -> None:
    """Raise ValueError unless `ks` are integers >= 1."""
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be integers >= 1, got {tuple(ks)}; give the K of each R@K, such as (1, 5, 10)")


def _metrics(
    scores: Rows, truth: Any, placement: Placement, *, ks: Sequence[int], n_resamples: int, seed: int
) -> RankingMetrics:
    """Return the metrics of one direction; `placement` counts the items above and tied with the best relevant one."""
    ranked = expected_ranks(placement)
    precision, gain = quality(scores, truth, placement=placement)
    shares = {**{f"R@{k}": hits(placement, k) for k in ks}, "mAP": precision, "nDCG": gain}
    values = {name: 100 * float(share.mean()) for name, share in shares.items()}
    values |= {"MdR": float(np.median(ranked)), "MnR": float(ranked.mean())}
    limits = ranking_intervals(shares, ranked, n_resamples=n_resamples, seed=seed)
    intervals = {name: percent(limits[name]) if name in shares else limits[name] for name in values}
    return RankingMetrics(values, intervals, len(ranked), scores.shape[1], {**shares, "MnR": ranked})


class Transposed:
    """Scores for video to text: chosen videos (rows) with all captions (columns)."""

    def __init__(self, scores: Scores, videos: Num[ndarray, " q"]) -> None:
        self.scores = scores
        self.videos = videos
        self.shape: tuple[int, int] = (len(videos), scores.shape[0])
        self.width: int = scores.shape[0]

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        videos = self.videos[part]
        first, last = int(videos.min()), int(videos.max()) + 1
        return self.scores.columns(slice(first, last)).T[videos - first]


class ByVideo:
    """Scores for video to text: captioned videos (rows) with the best caption of each captioned video (columns)."""

    def __init__(self, scores: Scores, video_indices: Num[ndarray, " m"]) -> None:
        self.scores = scores
        captioned, groups = np.unique(video_indices, return_inverse=True)
        self.captioned: Num[ndarray, " c"] = captioned
        self._order = np.argsort(groups, kind="stable")
        self._starts = np.searchsorted(groups[self._order], np.arange(len(self.captioned)))
        self.shape: tuple[int, int] = (len(captioned), len(captioned))
        self.width: int = len(video_indices)
        self._identity = np.array_equal(video_indices, np.arange(scores.shape[1]))

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        if self._identity:  # one caption per video, in order
            return self.scores.columns(part).T
        videos = self.captioned[part]
        first, last = int(videos.min()), int(videos.max()) + 1
        by_caption = self.scores.columns(slice(first, last))[self._order][:, videos - first]
        return np.maximum.reduceat(by_caption, self._starts, axis=0).T
