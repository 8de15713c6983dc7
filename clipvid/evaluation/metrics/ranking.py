"""Where relevant items stand among all: ranks, hits, average precision and gain, with ties as chance would break them.

Contract: scores and what is relevant in, one number a query out. An item that ties with others is given the
expectation over all orders of the tied ones, so a collapsed model that scores everything alike gets chance: K/N at R@K,
never 0 % or 100 %. NaN is an error: it compares false with everything and would rank first. Knows nothing of captions
or videos.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from clipvid.evaluation.metrics.scores import Paired, Rows, as_array, as_scores, best, blocks
from clipvid.evaluation.metrics.tiled import count_both


class Placement(NamedTuple):
    """Where every query's best relevant score stands, as counts of gallery items, one entry a query."""

    above: Int64[ndarray, " q"]
    """Items that score higher (none of them relevant)."""
    ties: Int64[ndarray, " q"]
    """Irrelevant items with the same score."""
    relevant: Int64[ndarray, " q"]
    """Relevant items with the same score, the best one included."""


def ranks(similarity: Any, truth: Any) -> Float64[ndarray, " q"]:
    """Rank from 1 of the best-ranked relevant gallery item of every query.

    `similarity` (Q, N) is a matrix or any `Scores`; `truth` gives the relevant items: a boolean matrix (any number a
    query), or the index of the only one. With r relevant and t irrelevant items tied at the best relevant score, and g
    items above it, the expected rank is 1 + g + t / (r + 1): for one relevant item the usual average, 1 + g + t / 2.
    """
    return expected_ranks(place(as_scores(similarity), truth))


def place(scores: Rows, truth: Any) -> Placement:
    """Count, block by block, what stands above and beside every query's best relevant item."""
    relevant = checked_truth(truth, scores.shape)
    counts = [_place_rows(scores.rows(part), relevant[part], first=part.start) for part in blocks(scores)]
    return Placement(*(np.concatenate(column) for column in zip(*counts, strict=True)))


def place_both(scores: Paired, partners: Int64[ndarray, " q"]) -> tuple[Placement, Placement]:
    """Of queries among items, and of items among queries, where query i and item `partners[i]` have only each other."""
    counts = count_both(scores.pairs(partners), partners)
    of_queries, of_items = (Placement(c.above, c.level - 1, np.ones_like(c.level)) for c in counts)
    return of_queries, of_items


def expected_ranks(place: Placement) -> Float64[ndarray, " q"]:
    """Rank from 1 of each query's best relevant item."""
    return 1 + place.above + place.ties / (place.relevant + 1)


def hits(place: Placement, k: int) -> Float64[ndarray, " q"]:
    """Return for each query the chance that a relevant item is among the first k, all orders of ties equally likely.

    After the items above, k - above places go to the tied ones. The chance that none of them is relevant is
    hypergeometric: the product over these places of the share of irrelevant items among those still to be placed.
    """
    miss = np.ones(len(place.above))
    tied = place.ties + place.relevant
    for drawn in range(min(k, int(tied.max()))):
        share = np.maximum(place.ties - drawn, 0) / np.maximum(tied - drawn, 1)
        miss = np.where(drawn < k - place.above, miss * share, miss)
    return 1 - miss


def best_items(similarity: Any, k: int) -> Int64[ndarray, "q k"]:
    """The k items that each query finds first, in order; of equal scores the earlier."""
    scores = as_scores(similarity)
    return np.concatenate([best(scores.rows(part), k) for part in blocks(scores)]).astype(np.int64)


class Quality(NamedTuple):
    """Of the whole ranking, one a query, within [0, 1]."""

    precision: Float64[ndarray, " q"]
    """Average precision (TREC's, over all relevant items); with one relevant item the reciprocal rank."""
    gain: Float64[ndarray, " q"]
    """nDCG with gains 0 and 1 and discount 1 / log2(rank + 1) (Järvelin and Kekäläinen 2002), to the last item."""


def quality(scores: Rows, truth: Any, *, placed: Placement | None = None) -> Quality:
    """Average precision and nDCG of every query, expected over the orders of tied items.

    `placed`, if at hand, saves the pass where every query has one relevant item.
    """
    relevant = checked_truth(truth, scores.shape)
    reciprocals, discounts = _sums(scores.shape[1])
    if relevant.ndim == 1:
        p = place(scores, relevant) if placed is None else placed
        first, last = p.above, p.above + p.ties + 1
        return Quality(*((of[last] - of[first]) / (p.ties + 1) for of in (reciprocals, discounts)))
    found: list[tuple[float, float]] = []
    for part in blocks(scores):
        values = scores.rows(part)
        found += [_of_one(row, true, reciprocals, discounts) for row, true in zip(values, relevant[part], strict=True)]
    precision, gain = np.array(found).T
    return Quality(precision, gain)


class Hubness(NamedTuple):
    """How unevenly the gallery is found: N_k of an item is the number of queries that have it among their k best."""

    k: int
    skewness: float
    """Of N_k over the items (Radovanović et al. 2010); 0 where all are found alike."""
    never: float
    """Share of items that no query finds (anti-hubs)."""
    most: int
    """N_k of the greatest hub."""
    hub: int
    """Its place in the gallery."""


def hubness(similarity: Any, *, k: int = 10) -> Hubness:
    """Hubs and anti-hubs of a gallery, over all queries."""
    scores = as_scores(similarity)
    k = min(k, scores.shape[1])
    found = np.zeros(scores.shape[1], dtype=np.int64)
    for part in blocks(scores):
        found += np.bincount(best(scores.rows(part), k).ravel(), minlength=len(found))
    centred = found - found.mean()
    spread = np.sqrt((centred**2).mean())
    skewness = float((centred**3).mean() / spread**3) if spread > 0 else 0.0
    return Hubness(k, skewness, float((found == 0).mean()), int(found.max()), int(found.argmax()))


def _place_rows(scores: ndarray, truth: ndarray, *, first: int) -> Placement:
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
    above, ties = (np.count_nonzero(which, axis=1) for which in (scores > best, level))
    return Placement(above, ties - relevant, relevant)


def _of_one(row: ndarray, true: ndarray, reciprocals: ndarray, discounts: ndarray) -> tuple[float, float]:
    """Expected average precision and nDCG of one query with any number of relevant items.

    In a group of n tied items, r of them relevant, each of its places holds a relevant one with chance r / n, and then
    (i - 1)(r - 1) / (n - 1) relevant ones are expected among the i - 1 places before it (McSherry and Najork 2008).
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


def _sums(n: int) -> tuple[Float64[ndarray, " _"], Float64[ndarray, " _"]]:
    """Sums of 1 / rank and of 1 / log2(rank + 1) over the first 0, 1, ..., n ranks."""
    rank = np.arange(1, n + 1)
    return np.append(0, np.cumsum(1 / rank)), np.append(0, np.cumsum(1 / np.log2(rank + 1)))


def checked_truth(truth: Any, shape: tuple[int, int]) -> ndarray:
    """The relevant items as indices (Q,) or as a boolean matrix (Q, N); ValueError for other shapes."""
    relevant = as_array(truth)
    if relevant.ndim == 1:
        check_video_index(relevant, shape)
        return relevant.astype(np.int64)
    if relevant.shape != shape:
        raise ValueError(f"truth must be (Q, N) like the scores {shape}, or (Q,), got {relevant.shape}")
    return relevant.astype(bool)


def check_video_index(video_indices: ndarray, shape: tuple[int, ...]) -> None:
    """ValueError for owners that are not one column a row."""
    if video_indices.shape != shape[:1]:
        raise ValueError(f"need one index a row, got {len(video_indices)} for {shape[0]} rows of scores {shape}")
    wrong = np.flatnonzero((video_indices < 0) | (video_indices >= shape[1]))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} belongs to column {video_indices[wrong[0]]}, but scores {shape} have columns 0 to "
            f"{shape[1] - 1}"
        )
