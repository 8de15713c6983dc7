"""Scores of queries against a gallery, computed in blocks without a full matrix, and adjustments of scores.

Contract: `rows(part)` returns the scores of a slice of queries with all items (c, N), `columns(part)` those of all
queries with a slice of items (M, c), as arrays. Matrices, embeddings and adjusted scores implement it. Equal embeddings
get equal scores, bit for bit, at any position, so that ties are exact. Knows nothing of relevance.
Dual softmax: Cheng et al., Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss
(2021), as the field applies it at test time. QB-Norm: Bogolin et al., Cross Modal Retrieval with Querybank
Normalisation (CVPR 2022), its dynamic inverted softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64, Num, Shaped
from numpy import ndarray
from torch import Tensor

from clipvid.evaluation.metrics.tiled import MatrixPairs, Pairs, ProductPairs

BLOCK = 1 << 22
"""Number of scores in memory at once: 16 MiB in float32, about six times that when adjusted in float64."""


@runtime_checkable
class Rows(Protocol):
    """Scores that can be computed by rows: queries with all items."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and items."""
        ...

    @property
    def width(self) -> int:
        """Number of scores in memory per requested row."""
        ...

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        """Return the scores of a slice of queries with all items."""
        ...


@runtime_checkable
class Scores(Rows, Protocol):
    """Scores that can be computed by rows and by columns."""

    def columns(self, part: slice) -> Num[ndarray, "m c"]:
        """Return the scores of all queries with a slice of items."""
        ...


@runtime_checkable
class Paired(Scores, Protocol):
    """Scores that are the same in both directions, so that one pass over them ranks for both."""

    def pairs(self, partners: Int[ndarray, " m"]) -> Pairs:
        """Return the scores as tiles; `partners[i]` is the item that is relevant to query i."""
        ...


class _Sized:
    """Base of scores whose rows need memory for one score per gallery item."""

    shape: tuple[int, int]

    @property
    def width(self) -> int:
        return self.shape[1]


class Matrix(_Sized):
    """Scores given as a matrix (M, N)."""

    def __init__(self, values: Any) -> None:
        self.values: ndarray = as_array(values)
        if self.values.ndim != 2 or 0 in self.values.shape:
            raise ValueError(
                f"scores must be (queries, gallery) and not empty, got {self.values.shape}; give at least one of each"
            )
        self.shape: tuple[int, int] = (self.values.shape[0], self.values.shape[1])

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        return self.values[part]

    def columns(self, part: slice) -> Num[ndarray, "m c"]:
        return self.values[:, part]

    def pairs(self, partners: Int[ndarray, " m"]) -> Pairs:
        return MatrixPairs(self.values, partners)


class Products(_Sized):
    """Inner products of embeddings (M, E) and (N, E); cosines if these are normalised.

    The last bits of a matrix product depend on the position of a row, in a way that differs between CPUs. Each distinct
    embedding of a block is therefore multiplied once, and its scores are copied to all equal ones, which tie exactly.
    Raises ValueError for an embedding that is not finite.
    """

    def __init__(self, queries: Float[Tensor, "m e"], gallery: Float[Tensor, "n e"]) -> None:
        # `_query_of` and `_item_of` are the distinct row of each query and item.
        self._queries, self._query_of = _distinct(queries, name="query")
        self._gallery, self._item_of = _distinct(gallery, name="gallery item")
        self.shape: tuple[int, int] = (len(self._query_of), len(self._item_of))

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        products = self._products(self._queries, self._query_of[part], self._gallery)
        return products if len(self._gallery) == self.shape[1] else products[:, self._item_of]

    def columns(self, part: slice) -> Num[ndarray, "m c"]:
        products = self._products(self._gallery, self._item_of[part], self._queries)
        return (products if len(self._queries) == self.shape[0] else products[:, self._query_of]).T

    def pairs(self, partners: Int[ndarray, " m"]) -> Pairs:
        return ProductPairs(
            self._queries, self._gallery, query_of=self._query_of, item_of=self._item_of, partners=partners
        )

    def _products(self, left: Tensor, rows: Int64[ndarray, " c"], right: Tensor) -> Num[ndarray, "c n"]:
        """Return the products of these rows of `left` with all of `right`, each distinct row multiplied once."""
        distinct, inverse = np.unique(rows, return_inverse=True)
        products = torch.mm(left[torch.from_numpy(distinct)], right.T).numpy()
        return products if np.array_equal(distinct, rows) else products[inverse]


class DualSoftmax(_Sized):
    """Dual softmax: s softmax(T s) with the softmax over queries, which lowers items that score high with many queries.

    The softmax runs over the texts for text to video, and over the videos for video to text: the scores of a query
    depend on the full test set.
    """

    def __init__(self, scores: Scores, temperature: float) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number > 0, got {temperature}; 100 is usual for cosines")
        self.scores = scores
        self.temperature = temperature
        self.shape: tuple[int, int] = scores.shape
        self._of_items: ndarray | None = None  # log-sum-exp over queries, per item
        self._of_queries: ndarray | None = None  # log-sum-exp over items, per query

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        if self._of_items is None:
            self._of_items = _log_sums((self.scores.rows(p) for p in blocks(self.scores)), self.temperature)
        values = self.scores.rows(part).astype(np.float64)
        return values * np.exp(self.temperature * values - self._of_items)

    def columns(self, part: slice) -> Num[ndarray, "m c"]:
        if self._of_queries is None:
            parts = parts_of(self.shape[1], width=self.shape[0])
            self._of_queries = _log_sums((self.scores.columns(p).T for p in parts), self.temperature)
        values = self.scores.columns(part).astype(np.float64)
        return values * np.exp(self.temperature * values - self._of_queries[:, None])


class QueryBank(_Sized):
    """QB-Norm: scores beta s, from which log(sum(exp(beta b))) is subtracted for queries whose best item is a hub.

    The sum runs over the scores b of `bank`, those of K training queries with the same gallery (K, N), for each item.
    An item is a hub if it is among the `k` best of any training query. The bank must not contain test queries, which
    would make it a dual softmax over the test set.
    """

    def __init__(self, scores: Rows, bank: Rows, *, beta: float = 20.0, k: int = 1) -> None:
        if bank.shape[1] != scores.shape[1]:
            raise ValueError(
                f"bank must have the gallery of scores, got {bank.shape[1]} and {scores.shape[1]} items; "
                "score the same videos"
            )
        if not 0 < beta < float("inf") or not 1 <= k <= bank.shape[1]:
            raise ValueError(
                f"beta must be a finite number > 0 and k within 1 to {bank.shape[1]}, got beta={beta} and k={k}; the "
                "defaults are 20 and 1"
            )
        self.scores = scores
        self.bank = bank
        self.beta = beta
        self.k = k
        self.shape: tuple[int, int] = scores.shape
        self._sums: ndarray | None = None
        self._hubs: ndarray | None = None

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        if self._sums is None or self._hubs is None:
            self._sums = _log_sums((self.bank.rows(p) for p in blocks(self.bank)), self.beta)
            self._hubs = np.zeros(self.shape[1], dtype=bool)
            for p in blocks(self.bank):
                self._hubs[best(self.bank.rows(p), self.k)] = True
        values = self.beta * self.scores.rows(part).astype(np.float64)
        normalised = self._hubs[best(values, 1)[:, 0]]
        values[normalised] -= self._sums
        return values


def as_scores(values: Any) -> Rows:
    """Return `Rows` as they are, and a matrix as `Matrix`."""
    return values if isinstance(values, Rows) else Matrix(values)


def as_array(values: Any) -> Shaped[ndarray, "..."]:
    """Return a tensor or sequence as an array; bfloat16, which numpy lacks, becomes float32 with the same order."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    return (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()


def blocks(scores: Rows) -> Iterator[slice]:
    """Yield slices of the queries whose scores fit into a block."""
    return parts_of(scores.shape[0], width=scores.width)


def parts_of(count: int, *, width: int) -> Iterator[slice]:
    """Yield slices of range(count) with at most `BLOCK` scores each, at `width` scores per entry."""
    step = max(1, BLOCK // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def best(values: Num[ndarray, "c n"], k: int) -> Int[ndarray, "c k"]:
    """Return the k items with the highest scores of each row, highest first; equal scores in gallery order."""
    if k == 1:
        return values.argmax(axis=1)[:, None]
    k = min(k, values.shape[1])
    chosen = np.argpartition(-values, k - 1, axis=1)[:, :k]
    scores = np.take_along_axis(values, chosen, axis=1)
    lowest = scores.min(axis=1, keepdims=True)
    cut = np.count_nonzero(values == lowest, axis=1) > np.count_nonzero(scores == lowest, axis=1)
    if cut.any():  # The k-th score is tied, and argpartition takes any of the tied items.
        chosen[cut] = np.argsort(-values[cut], axis=1, kind="stable")[:, :k]
    order = np.lexsort((chosen, -np.take_along_axis(values, chosen, axis=1)), axis=1)
    return np.take_along_axis(chosen, order, axis=1)


def _distinct(embeddings: Float[Tensor, "m e"], *, name: str) -> tuple[Float[Tensor, "d e"], Int64[ndarray, " m"]]:
    """Return the distinct rows in float32, and for every row the index of its distinct row.

    Raises ValueError for a row that is not finite.
    """
    values = embeddings.detach().cpu().float().contiguous()
    rows = values.numpy()
    for part in parts_of(len(rows), width=rows.shape[1]):
        not_finite = np.flatnonzero(~np.isfinite(rows[part]).all(axis=1))
        if len(not_finite):
            raise ValueError(
                f"the embedding of {name} {part.start + not_finite[0]} is not finite; check its video or text, "
                "or the model's weights"
            )
    _, group, size = np.unique(_hashes(rows), return_inverse=True, return_counts=True)
    representative, first_row = np.arange(len(rows)), {}
    for row in np.flatnonzero(size[group] > 1):  # rows with equal hashes are compared byte by byte
        representative[row] = first_row.setdefault(_unsigned_zeros(rows[row]).tobytes(), row)
    distinct, inverse = np.unique(representative, return_inverse=True)
    return (values, inverse) if len(distinct) == len(rows) else (values[torch.from_numpy(distinct)], inverse)


def _hashes(rows: Float32[ndarray, "m e"]) -> Shaped[ndarray, " m"]:
    """Return a hash per row, equal for equal rows: the weighted sum of its 64-bit words, modulo 2**64."""
    count, odd = -(-rows.shape[1] // 2), rows.shape[1] % 2
    weights, hashes = np.random.default_rng(0).integers(1 << 63, size=count, dtype=np.uint64), np.empty(len(rows), "u8")
    for part in parts_of(len(rows), width=rows.shape[1]):
        hashes[part] = np.pad(_unsigned_zeros(rows[part]), ((0, 0), (0, odd))).view(np.uint64) @ weights
    return hashes


def _unsigned_zeros(values: Float32[ndarray, "..."]) -> Float32[ndarray, "..."]:
    """Return a copy with 0.0 for every -0.0, which is equal but has other bits."""
    return values + np.float32(0)


def _log_sums(parts: Iterator[Num[ndarray, "c n"]], temperature: float) -> Float64[ndarray, " n"]:
    """Return log(sum(exp(T s))) over the rows of all parts, without overflow."""
    peak, total = None, None
    for part in parts:
        values = temperature * part.astype(np.float64)
        highest = values.max(axis=0)
        if peak is None or total is None:
            peak, total = highest, np.exp(values - highest).sum(axis=0)
        else:
            new_peak = np.maximum(peak, highest)
            total = total * np.exp(peak - new_peak) + np.exp(values - new_peak).sum(axis=0)
            peak = new_peak
    assert peak is not None
    assert total is not None
    return peak + np.log(total)
