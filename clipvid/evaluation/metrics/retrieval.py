"""Text-to-video and video-to-text retrieval, figure by figure with confidence intervals.

Contract: scores of captions (rows) with videos (columns) and the owner of each caption in, numbers out; a matrix or any
source of `scores.py`, of which no more than a block is held at once. No model, no files. Knows nothing of how scores
are made.
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
    expected_ranks,
    hits,
    place,
    place_both,
    quality,
)
from clipvid.evaluation.metrics.scores import Paired, Rows, Scores, as_scores

SHOWN = ("R@1", "R@5", "R@10", "MdR", "MnR")
"""What tables show; files have all figures."""


@dataclass(frozen=True, eq=False)
class RankingMetrics:
    """One direction of retrieval: R@K, mAP and nDCG in percent, MdR and MnR as ranks from 1."""

    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    """95 % bootstrap percentile intervals over queries; a little narrow where several captions of a video are queries,
    since those are not independent."""
    n_queries: int
    n_gallery: int
    each: Mapping[str, Float64[ndarray, " q"]]
    """Every query's own: hits (R@K), precision (mAP) and gain (nDCG) within [0, 1], and its rank (MnR)."""

    @property
    def ranks(self) -> Float64[ndarray, " q"]:
        """Rank of the best relevant item, one a query, as the function `ranks` defines it."""
        return self.each["MnR"]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_dict(self) -> dict[str, object]:
        """Numbers ready for JSON, those of every query under "each"."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        counts = {"queries": self.n_queries, "gallery": self.n_gallery}
        each = {name: [round(float(v), 6) for v in values] for name, values in self.each.items()}
        return {**self.values, "intervals": intervals, **counts, "each": each}

    def __str__(self) -> str:
        names = [name for name in self.values if name in SHOWN]
        return _table(names, {"": self})


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """Text-to-video and video-to-text retrieval; `str()` is a table, `to_dict()` is for JSON."""

    t2v: RankingMetrics
    v2t: RankingMetrics

    def to_dict(self) -> dict[str, object]:
        """Both directions as nested dictionaries."""
        return {"t2v": self.t2v.to_dict(), "v2t": self.v2t.to_dict()}

    def __str__(self) -> str:
        names = [name for name in self.t2v.values if name in SHOWN]
        return _table(names, {"t2v": self.t2v, "v2t": self.v2t})


def _table(names: Sequence[str], sides: Mapping[str, RankingMetrics]) -> str:
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
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> RetrievalMetrics:
    """Score captions (rows) against videos (columns); `owner` is the video that each caption belongs to.

    Where a caption is right for several videos, `owner` is a boolean matrix (M, B) instead: every caption is then a
    query for all of its videos, and every video that has one for all of its captions.

    `similarity` (M, B) is a matrix or any `Scores`. t2v: every caption is a query and every video is in the gallery,
    those without a caption too. v2t: every captioned video is a query among the captioned videos' captions, and a
    video's score is the highest of its captions' (the field's convention for several captions a video). R@K is the
    expected share of queries with a relevant item among the first K, over all orders of tied items.
    """
    scores = as_scores(similarity)
    truth = checked_truth(video_index, scores.shape)
    if not isinstance(scores, Scores):
        raise ValueError(f"{type(scores).__name__} scores one direction alone; take ranking_metrics for that one")
    options: dict[str, Any] = {"ks": ks, "n_bootstrap": n_bootstrap, "seed": seed}
    if truth.ndim == 2:
        captioned = np.flatnonzero(truth.any(axis=0))
        return RetrievalMetrics(
            t2v=ranking_metrics(scores, truth, **options),
            v2t=ranking_metrics(Turned(scores, captioned), truth.T[captioned], **options),
        )
    by_video, own = ByVideo(scores, truth), np.arange(scores.shape[1])
    if isinstance(scores, Paired) and np.array_equal(np.sort(truth), own):  # one caption a video: both in one pass
        _check_ks(ks)
        forth, back = place_both(scores, truth)
        return RetrievalMetrics(
            t2v=_figures(scores, truth, forth, **options), v2t=_figures(by_video, own, back, **options)
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
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> RankingMetrics:
    """One direction, with any number of relevant items a query: `truth` as `ranks` takes it."""
    _check_ks(ks)
    scores = as_scores(similarity)
    options: dict[str, Any] = {"ks": ks, "n_bootstrap": n_bootstrap, "seed": seed}
    return _figures(scores, truth, place(scores, truth), **options)


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers from 1, got {tuple(ks)}")


def _figures(
    scores: Rows, truth: Any, placed: Placement, *, ks: Sequence[int], n_bootstrap: int, seed: int
) -> RankingMetrics:
    ranked = expected_ranks(placed)
    precision, gain = quality(scores, truth, placed=placed)
    shares = {**{f"R@{k}": hits(placed, k) for k in ks}, "mAP": precision, "nDCG": gain}
    values = {name: 100 * float(found.mean()) for name, found in shares.items()}
    values |= {"MdR": float(np.median(ranked)), "MnR": float(ranked.mean())}
    drawn = ranking_intervals(shares, ranked, n=n_bootstrap, seed=seed)
    intervals = {name: percent(drawn[name]) if name in shares else drawn[name] for name in values}
    return RankingMetrics(values, intervals, len(ranked), scores.shape[1], {**shares, "MnR": ranked})


class Turned:
    """Some videos as queries among all captions."""

    def __init__(self, scores: Scores, videos: Num[ndarray, " q"]) -> None:
        self.scores, self.videos = scores, videos
        self.shape = len(videos), scores.shape[0]
        self.width = scores.shape[0]

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        videos = self.videos[part]
        first, last = int(videos.min()), int(videos.max()) + 1
        return self.scores.columns(slice(first, last)).T[videos - first]


class ByVideo:
    """Captioned videos as queries among captioned videos, each as its best caption: scores for video to text."""

    def __init__(self, scores: Scores, video_indices: Num[ndarray, " m"]) -> None:
        self.scores = scores
        self.captioned, groups = np.unique(video_indices, return_inverse=True)
        self._order = np.argsort(groups, kind="stable")
        self._starts = np.searchsorted(groups[self._order], np.arange(len(self.captioned)))
        self.shape = len(self.captioned), len(self.captioned)
        self.width = len(video_indices)
        self._plain = np.array_equal(video_indices, np.arange(scores.shape[1]))

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        if self._plain:  # one caption for each video, in order
            return self.scores.columns(part).T
        videos = self.captioned[part]
        first, last = int(videos.min()), int(videos.max()) + 1
        some = self.scores.columns(slice(first, last))[self._order][:, videos - first]
        return np.maximum.reduceat(some, self._starts, axis=0).T
