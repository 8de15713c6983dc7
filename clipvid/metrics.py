"""Retrieval and recognition metrics, with ties counted as chance would break them and with confidence intervals.

Contract: scores in, numbers out; no model, no files, nothing random but the seeded bootstrap. Scores may be tensors or
arrays of any float type. A query whose relevant item ties with others is given the expectation over all orders of the
tied items, so a collapsed model that scores everything alike gets chance: K/N at R@K, never 0 % or 100 %.
Rows are queries, columns are the gallery. NaN is an error: it compares false with everything and would rank first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped
from numpy import ndarray
from torch import Tensor

CHUNK = 1 << 22
"""Scores compared at once: bounds the memory of a 100 000-query evaluation to some tens of MB."""

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class RankingMetrics:
    """One direction of retrieval. `values` and `intervals` have the keys R@K (percent), MdR and MnR (ranks from 1)."""

    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    """95 % bootstrap percentile intervals over queries; a little narrow where several captions of a video are queries,
    since those are not independent."""
    n_queries: int
    n_gallery: int
    ranks: Float64[ndarray, " q"]
    """Expected rank of the best relevant item, one a query, as `ranks` defines it."""

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_dict(self) -> dict[str, object]:
        """Numbers ready for JSON, without the rank of every query."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        return {**self.values, "intervals": intervals, "queries": self.n_queries, "gallery": self.n_gallery}


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """Text-to-video and video-to-text retrieval; `str()` is a table, `to_dict()` is for JSON."""

    t2v: RankingMetrics
    v2t: RankingMetrics

    def to_dict(self) -> dict[str, object]:
        """Both directions as nested dictionaries."""
        return {"t2v": self.t2v.to_dict(), "v2t": self.v2t.to_dict()}

    def __str__(self) -> str:
        names = list(self.t2v.values)
        lines = ["     " + "".join(f"{name:<21}" for name in names) + "queries  gallery"]
        for direction, metrics in (("t2v", self.t2v), ("v2t", self.v2t)):
            cells = "".join(f"{_cell(metrics.values[name], metrics.intervals[name]):<21}" for name in names)
            lines.append(f"{direction:<5}{cells}{metrics.n_queries:<9d}{metrics.n_gallery}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class RecognitionMetrics:
    """Classification accuracy in percent; `values` has top-1, top-5 (top-C where C < 5) and the mean over classes."""

    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    n: int
    n_classes: int
    confusion: Float64[ndarray, "c c"]
    """Clips by true class (row) and predicted class (column); clips whose best classes tie are shared among them."""

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_dict(self) -> dict[str, object]:
        """Numbers ready for JSON, without the confusion matrix."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        return {**self.values, "intervals": intervals, "videos": self.n, "classes": self.n_classes}

    def __str__(self) -> str:
        cells = "  ".join(f"{name} {_cell(value, self.intervals[name])}" for name, value in self.values.items())
        return f"{cells}  ({self.n} videos, {self.n_classes} classes)"


class _Placement(NamedTuple):
    """Where every query's best relevant score stands, as counts of gallery items, one entry a query."""

    above: Int64[ndarray, " q"]
    """Items that score higher (none of them relevant)."""
    ties: Int64[ndarray, " q"]
    """Irrelevant items with the same score."""
    relevant: Int64[ndarray, " q"]
    """Relevant items with the same score, the best one included."""


def ranks(
    similarity: Float[Tensor, "q n"] | Float[ndarray, "q n"],
    truth: Bool[Tensor, "_ _"] | Bool[ndarray, "_ _"] | Int[Tensor, " _"] | Int[ndarray, " _"],
) -> Float64[ndarray, " q"]:
    """Rank from 1 of the best-ranked relevant gallery item of every query, averaged over the orders of tied items.

    `truth` gives the relevant items: a boolean matrix (any number a query), or the index of the only one.
    With r relevant and t irrelevant items tied at the best relevant score, and g items above it, the rank is
    1 + g + t / (r + 1): for one relevant item the usual average of tied ranks, 1 + g + t / 2.
    """
    return _expected_ranks(_place(similarity, truth))


def retrieval_metrics(
    similarity: Float[Tensor, "m b"] | Float[ndarray, "m b"],
    owner: Int[Tensor, " _"] | Int[ndarray, " _"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> RetrievalMetrics:
    """Score captions (rows) against videos (columns); `owner` is the video that each caption belongs to.

    t2v: every caption is a query and every video is in the gallery, those without a caption too. v2t: every captioned
    video is a query among the captioned videos' captions, and a video's score is the highest of its captions'
    (the field's convention for several captions a video). R@K is the expected share of queries with a relevant item
    among the first K.
    """
    scores, owners = _scores(similarity), _integers(owner)
    _check_owners(owners, scores.shape)
    captioned, groups = np.unique(owners, return_inverse=True)
    by_video = _best_caption(scores, groups)[captioned]  # (videos, videos)
    options = {"ks": ks, "n_bootstrap": n_bootstrap, "seed": seed}
    return RetrievalMetrics(
        t2v=_ranking(_place(scores, owners), n_gallery=scores.shape[1], **options),
        v2t=_ranking(_place(by_video, np.arange(len(captioned))), n_gallery=len(captioned), **options),
    )


def recognition_metrics(
    logits: Float[Tensor, "b c"] | Float[ndarray, "b c"],
    labels: Int[Tensor, " _"] | Int[ndarray, " _"],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> RecognitionMetrics:
    """Accuracy of class scores; the class mean is over the classes that occur among the labels."""
    scores, classes = _scores(logits), _integers(labels)
    place = _place(scores, classes)
    k = min(5, scores.shape[1])
    top1 = _expected_hits(place, 1)
    hits = {"top-1": top1, f"top-{k}": _expected_hits(place, k)}
    values = {name: 100 * float(hit.mean()) for name, hit in hits.items()}
    intervals = {name: _percent(bootstrap_interval(hit, n=n_bootstrap, seed=seed)) for name, hit in hits.items()}
    by_class = np.stack([top1, classes], axis=1)
    values["mean class"] = 100 * _class_mean(by_class)
    intervals["mean class"] = _percent(bootstrap_interval(by_class, statistic=_class_mean, n=n_bootstrap, seed=seed))
    return RecognitionMetrics(values, intervals, len(scores), scores.shape[1], _confusion(scores, classes))


def bootstrap_interval(
    scores: Shaped[ndarray, " q"] | Shaped[ndarray, "q f"],
    *,
    statistic: Callable[[ndarray], float] = np.mean,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic` over `n` resamplings, with replacement, of the rows of `scores`."""
    if len(scores) == 0 or n < 1 or not 0 < level < 1:
        raise ValueError(f"need scores, n >= 1 and 0 < level < 1, got {len(scores)} scores, n={n}, level={level}")
    rng = np.random.default_rng(seed)
    drawn = [statistic(scores[rng.integers(len(scores), size=len(scores))]) for _ in range(n)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ranking(place: _Placement, *, n_gallery: int, ks: Sequence[int], n_bootstrap: int, seed: int) -> RankingMetrics:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers from 1, got {tuple(ks)}")
    ranked = _expected_ranks(place)
    values, intervals = {}, {}
    for k in ks:
        hits = _expected_hits(place, k)
        values[f"R@{k}"] = 100 * float(hits.mean())
        intervals[f"R@{k}"] = _percent(bootstrap_interval(hits, n=n_bootstrap, seed=seed))
    for name, statistic in (("MdR", np.median), ("MnR", np.mean)):
        values[name] = float(statistic(ranked))
        intervals[name] = bootstrap_interval(ranked, statistic=statistic, n=n_bootstrap, seed=seed)
    return RankingMetrics(values, intervals, len(ranked), n_gallery, ranked)


def _place(similarity, truth) -> _Placement:
    """Count, chunk by chunk, what stands above and beside every query's best relevant item."""
    scores, relevant = _scores(similarity), _array(truth)
    if relevant.ndim == 1:
        _check_owners(relevant, scores.shape)
    elif relevant.shape != scores.shape:
        raise ValueError(f"truth must be (Q, N) like the scores {scores.shape}, or (Q,), got {relevant.shape}")
    counts = [_place_rows(scores[rows], relevant[rows], first=rows.start) for rows in _chunks(scores.shape)]
    return _Placement(*(np.concatenate(column) for column in zip(*counts, strict=True)))


def _place_rows(scores: ndarray, truth: ndarray, *, first: int) -> _Placement:
    if np.isnan(scores).any():
        query, item = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"the score of query {first + query} and item {item} is NaN; look for it in the embeddings")
    if truth.ndim == 1:
        best = np.take_along_axis(scores, truth[:, None], axis=1)
        level = scores == best
        relevant = np.ones(len(scores), dtype=np.int64)
    else:
        without = np.flatnonzero(~truth.any(axis=1))
        if len(without):
            raise ValueError(f"query {first + without[0]} has no relevant item in truth; leave such queries out")
        best = np.where(truth, scores, -np.inf).max(axis=1, keepdims=True)
        level = scores == best
        relevant = (level & truth).sum(axis=1)
    return _Placement((scores > best).sum(axis=1), level.sum(axis=1) - relevant, relevant)


def _expected_ranks(place: _Placement) -> ndarray:
    return 1 + place.above + place.ties / (place.relevant + 1)


def _expected_hits(place: _Placement, k: int) -> ndarray:
    """Chance that a relevant item is among the first k, all orders of the tied items being equally likely.

    After the items above, k - above places go to the tied ones. The chance that none of them is relevant is
    hypergeometric: the product over these places of the share of irrelevant items among those still to be placed.
    """
    miss = np.ones(len(place.above))
    tied = place.ties + place.relevant
    for drawn in range(min(k, int(tied.max()))):
        share = np.maximum(place.ties - drawn, 0) / np.maximum(tied - drawn, 1)
        miss = np.where(drawn < k - place.above, miss * share, miss)
    return 1 - miss


def _best_caption(scores: ndarray, groups: ndarray) -> ndarray:
    """(M, B) caption scores -> (B, captioned videos): a video's best caption, for every query video."""
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(groups.max() + 1))
    columns = _chunks(scores.T.shape)
    return np.concatenate([np.maximum.reduceat(scores[order, part], starts, axis=0).T for part in columns])


def _class_mean(rows: ndarray) -> float:
    """Mean over the classes present of their mean hit; rows are (hit, class)."""
    classes = rows[:, 1].astype(np.int64)
    counts = np.bincount(classes)
    return float((np.bincount(classes, weights=rows[:, 0])[counts > 0] / counts[counts > 0]).mean())


def _confusion(scores: ndarray, classes: ndarray) -> ndarray:
    confusion = np.zeros((scores.shape[1], scores.shape[1]))
    for rows in _chunks(scores.shape):
        best = scores[rows] == scores[rows].max(axis=1, keepdims=True)
        np.add.at(confusion, classes[rows], best / best.sum(axis=1, keepdims=True))
    return confusion


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, shape[1]))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _scores(similarity) -> ndarray:
    if isinstance(similarity, Tensor) and similarity.dtype == torch.bfloat16:
        similarity = similarity.float()  # numpy has no bfloat16; widening keeps order and ties
    scores = _array(similarity)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be (queries, gallery) and not empty, got {scores.shape}")
    return scores


def _integers(index) -> ndarray:
    return _array(index).astype(np.int64)


def _array(values) -> ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _check_owners(owners: ndarray, shape: tuple[int, ...]) -> None:
    if owners.shape != shape[:1]:
        raise ValueError(f"need one index a row, got {len(owners)} for {shape[0]} rows of scores {shape}")
    wrong = np.flatnonzero((owners < 0) | (owners >= shape[1]))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} belongs to column {owners[wrong[0]]}, but scores {shape} have columns 0 to {shape[1] - 1}"
        )


def _percent(interval: Interval) -> Interval:
    return 100 * interval[0], 100 * interval[1]


def _cell(value: float, interval: Interval) -> str:
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
