"""Ranks of relevant items and what follows from them: hits, average precision and gain, with ties broken at random.

Contract: scores and relevance in, one number per query out. Values of tied items are expectations over all orders of
the tie, so a collapsed model that gives all items the same score is at chance: K/N at R@K, never 0 % or 100 %. NaN is
an error: it compares false with everything and would rank first. Knows nothing of captions or videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from clipvid.evaluation.metrics.scores import Paired, Rows, as_array, as_scores, best, blocks
from clipvid.evaluation.metrics.tiled import count_both


class Placement(NamedTuple):
    """Position of each query's best relevant score, as counts of gallery items, one entry per query."""

    above: Int64[ndarray, " q"]
    """Number of items with a higher score (none of them relevant)."""
    ties: Int64[ndarray, " q"]
    """Number of irrelevant items with the same score."""
    relevant: Int64[ndarray, " q"]
    """Number of relevant items with the same score, including the best one."""


def ranks(similarity: Any, truth: Any) -> Float64[ndarray, " q"]:
    """Return the expected rank, from 1, of the best-ranked relevant gallery item of every query.

    `similarity` (Q, N) is a matrix or any `Scores`; `truth` gives the relevant items: a boolean matrix (Q, N), or the
    index (Q,) of the only one. With r relevant and t irrelevant items tied at the best relevant score, and g items
    above it, the expected rank is 1 + g + t / (r + 1): for one relevant item the usual average, 1 + g + t / 2.
    """
    return expected_ranks(count_placement(as_scores(similarity), truth))


def count_placement(scores: Rows, truth: Any) -> Placement:
    """Count, block by block, the items above and tied with every query's best relevant item."""
    relevant = checked_truth(truth, scores.shape)
    counts = [_place_block(scores.rows(part), relevant[part], first=part.start) for part in blocks(scores)]
    return Placement(*(np.concatenate(column) for column in zip(*counts, strict=True)))


def count_placement_both(scores: Paired, partners: Int64[ndarray, " q"]) -> tuple[Placement, Placement]:
    """Count both directions in one pass; query i is relevant to item `partners[i]` alone."""
    counts = count_both(scores.pairs(partners), partners)
    of_queries, of_items = (Placement(c.above, c.equal - 1, np.ones_like(c.equal)) for c in counts)
    return of_queries, of_items


def expected_ranks(placement: Placement) -> Float64[ndarray, " q"]:
    """Return the expected rank, from 1, of each query's best relevant item."""
    return 1 + placement.above + placement.ties / (placement.relevant + 1)


def hits(placement: Placement, k: int) -> Float64[ndarray, " q"]:
    """Return for each query the probability that a relevant item is among the first k, in a random order of ties.

    The first k hold k - above of the tied items. The probability that none of these is relevant is hypergeometric: the
    product over their positions of the share of irrelevant items among the tied items that remain.
    """
    miss = np.ones(len(placement.above))
    tied = placement.ties + placement.relevant
    for position in range(min(k, int(tied.max()))):
        share = np.maximum(placement.ties - position, 0) / np.maximum(tied - position, 1)
        miss = np.where(position < k - placement.above, miss * share, miss)
    return 1 - miss


def rounded(each: Mapping[str, Float64[ndarray, " q"]]) -> dict[str, dict[str, list[float]]]:
    """Return values per query ready for JSON, under "each", with six decimals."""
    return {"each": {name: [round(float(value), 6) for value in values] for name, values in each.items()}}


def best_items(similarity: Any, k: int) -> Int64[ndarray, "q k"]:
    """Return the indices of the k best items of each query, best first; equal scores in gallery order."""
    scores = as_scores(similarity)
    return np.concatenate([best(scores.rows(part), k) for part in blocks(scores)]).astype(np.int64)


class Quality(NamedTuple):
    """Quality of the full ranking, one value per query, within [0, 1]."""

    precision: Float64[ndarray, " q"]
    """Average precision (TREC's, over all relevant items); the reciprocal rank for one relevant item."""
    gain: Float64[ndarray, " q"]
    """nDCG with gains 0 and 1 and discount 1 / log2(rank + 1) (Järvelin and Kekäläinen 2002), over the full ranking."""


def quality(scores: Rows, truth: Any, *, placement: Placement | None = None) -> Quality:
    """Return average precision and nDCG of every query, as expectations over the orders of tied items.

    `placement`, the output of `count_placement`, saves a pass over the scores when every query has one relevant item.
    """
    relevant = checked_truth(truth, scores.shape)
    reciprocals, discounts = _cumulative_sums(scores.shape[1])
    if relevant.ndim == 1:
        p = count_placement(scores, relevant) if placement is None else placement
        first, last = p.above, p.above + p.ties + 1
        return Quality(*((sums[last] - sums[first]) / (p.ties + 1) for sums in (reciprocals, discounts)))
    pairs: list[tuple[float, float]] = []
    for part in blocks(scores):
        values = scores.rows(part)
        pairs += [
            _query_quality(row, true, reciprocals, discounts) for row, true in zip(values, relevant[part], strict=True)
        ]
    precision, gain = np.array(pairs).T
    return Quality(precision, gain)


class Hubness(NamedTuple):
    """Hubness of a gallery: N_k of an item is the number of queries that have it among their k best items."""

    k: int
    """Number of best items per query."""
    skewness: float
    """Skewness of N_k over the items (Radovanović et al. 2010); 0 if N_k is the same for all."""
    never: float
    """Share of items with N_k = 0 (anti-hubs), within [0, 1]."""
    most: int
    """N_k of the largest hub."""
    hub: int
    """Index of the largest hub in the gallery."""


def hubness(similarity: Any, *, k: int = 10) -> Hubness:
    """Return the hubness of a gallery over all queries, with k at most the size of the gallery."""
    scores = as_scores(similarity)
    k = min(k, scores.shape[1])
    counts = np.zeros(scores.shape[1], dtype=np.int64)
    for part in blocks(scores):
        counts += np.bincount(best(scores.rows(part), k).ravel(), minlength=len(counts))
    centred = counts - counts.mean()
    spread = np.sqrt((centred**2).mean())
    skewness = float((centred**3).mean() / spread**3) if spread > 0 else 0.0
    return Hubness(k, skewness, float((counts == 0).mean()), int(counts.max()), int(counts.argmax()))


def _place_block(scores: ndarray, truth: ndarray, *, first: int) -> Placement:
    """Return the placement of a block of queries; `first` is the index of its first query, for errors."""
    if np.isnan(scores).any():
        query, item = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"the score of query {first + query} and item {item} is NaN; check the embeddings of both")
    if truth.ndim == 1:
        best = np.take_along_axis(scores, truth[:, None], axis=1)
        tied = scores == best
        relevant = np.ones(len(scores), dtype=np.int64)
    else:
        without = np.flatnonzero(~truth.any(axis=1))
        if len(without):
            raise ValueError(f"query {first + without[0]} has no relevant item in truth; leave such queries out")
        best = np.where(truth, scores, -np.inf).max(axis=1, keepdims=True)
        tied = scores == best
        relevant = (tied & truth).sum(axis=1)
    above, ties = (np.count_nonzero(mask, axis=1) for mask in (scores > best, tied))
    return Placement(above, ties - relevant, relevant)


def _query_quality(row: ndarray, true: ndarray, reciprocals: ndarray, discounts: ndarray) -> tuple[float, float]:
    """Return expected average precision and nDCG of one query with any number of relevant items.

    In a group of n tied items, r of them relevant, each position holds a relevant item with probability r / n. Given
    that, (i - 1)(r - 1) / (n - 1) relevant items are expected at the i - 1 positions before it in the group (McSherry
    and Najork 2008).
    """
    levels, group = np.unique(-row, return_inverse=True)  # best first
    n = np.bincount(group, minlength=len(levels))
    r = np.bincount(group, weights=true, minlength=len(levels))
    start, before = np.cumsum(n) - n, np.cumsum(r) - r
    precision = gain = 0.0
    for g in np.flatnonzero(r):
        i = np.arange(1, n[g] + 1)
        earlier = before[g] + (i - 1) * (r[g] - 1) / max(1, n[g] - 1)
        precision += float((r[g] / n[g] * (earlier + 1) / (start[g] + i)).sum())
        gain += float(r[g] / n[g] * (discounts[start[g] + n[g]] - discounts[start[g]]))
    total = int(r.sum())
    return precision / total, gain / float(discounts[total])


def _cumulative_sums(n: int) -> tuple[Float64[ndarray, " _"], Float64[ndarray, " _"]]:
    """Return the sums of 1 / rank and of 1 / log2(rank + 1) over the first 0, 1, ..., n ranks."""
    rank = np.arange(1, n + 1)
    return np.append(0, np.cumsum(1 / rank)), np.append(0, np.cumsum(1 / np.log2(rank + 1)))


def checked_truth(truth: Any, shape: tuple[int, int]) -> ndarray:
    """Return relevant items as indices (Q,) or a boolean matrix (Q, N); raise ValueError for anything else."""
    relevant = as_array(truth)
    if relevant.ndim == 1:
        check_video_index(relevant, shape)
        return relevant.astype(np.int64)
    if relevant.shape != shape:
        raise ValueError(
            f"truth must be (Q, N) like the scores {shape}, or (Q,), got {relevant.shape}; give one row per query"
        )
    return relevant.astype(bool)


def check_video_index(video_indices: ndarray, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `video_indices` has one valid column for every row of scores of this shape."""
    if video_indices.shape != shape[:1]:
        raise ValueError(
            f"video_index must have one entry per row, got {len(video_indices)} for {shape[0]} rows of scores "
            f"{shape}; give the video of each caption"
        )
    wrong = np.flatnonzero((video_indices < 0) | (video_indices >= shape[1]))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} of video_index must be a column, got {video_indices[wrong[0]]}; scores {shape} have "
            f"columns 0 to {shape[1] - 1}"
        )
