"""Scores of queries against a gallery in blocks, so that no matrix of all of them has to exist; and their adjustments.

Contract: `rows(part)` gives the scores of some queries with all items (c, N), `columns(part)` those of all queries with
some items (M, c), as arrays. A matrix, embeddings, and adjusted scores all speak it. Equal embeddings get equal scores,
bit for bit, wherever they stand, so that ties are ties. Knows nothing of what is relevant.
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
"""Scores held at once: 16 MiB in float32, some six times that where they are adjusted in float64."""


@runtime_checkable
class Rows(Protocol):
    """Scores of queries with all items."""

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and items."""
        ...

    @property
    def width(self) -> int:
        """Scores that are held for each row that is asked for."""
        ...

    def rows(self, part: slice) -> Num[ndarray, "c n"]: ...


@runtime_checkable
class Scores(Rows, Protocol):
    """Scores that can be asked for from either side."""

    def columns(self, part: slice) -> Num[ndarray, "m c"]: ...


@runtime_checkable
class Paired(Scores, Protocol):
    """Scores that are the same number from either side, so that one pass serves both."""

    def pairs(self, partners: Int[ndarray, " m"]) -> Pairs: ...


class _Sized:
    """A row is as wide as the gallery."""

    shape: tuple[int, int]

    @property
    def width(self) -> int:
        return self.shape[1]


class Matrix(_Sized):
    """Scores that are there already."""

    def __init__(self, values: Any) -> None:
        self.values = as_array(values)
        if self.values.ndim != 2 or 0 in self.values.shape:
            raise ValueError(f"scores must be (queries, gallery) and not empty, got {self.values.shape}")
        self.shape = self.values.shape[0], self.values.shape[1]

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        return self.values[part]

    def columns(self, part: slice) -> Num[ndarray, "m c"]:
        return self.values[:, part]

    def pairs(self, partners: Int[ndarray, " m"]) -> Pairs:
        return MatrixPairs(self.values, partners)


class Products(_Sized):
    """Inner products of embeddings; cosines where these are normalised. ValueError for one that is not finite.

    The last bits of a matrix product depend on where a row stands in it, and how they do on the CPU. So each different
    embedding of a block is multiplied once, and its scores are copied to all that equal it: these tie exactly.
    """

    def __init__(self, queries: Float[Tensor, "m e"], gallery: Float[Tensor, "n e"]) -> None:
        self._queries, self._query_of = _distinct(queries, name="query")
        self._gallery, self._item_of = _distinct(gallery, name="gallery item")
        self.shape = len(self._query_of), len(self._item_of)

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        found = self._products(self._queries, self._query_of[part], self._gallery)
        return found if len(self._gallery) == self.shape[1] else found[:, self._item_of]

    def columns(self, part: slice) -> Num[ndarray, "m c"]:
        found = self._products(self._gallery, self._item_of[part], self._queries)
        return (found if len(self._queries) == self.shape[0] else found[:, self._query_of]).T

    def pairs(self, partners: Int[ndarray, " m"]) -> Pairs:
        return ProductPairs(
            self._queries, self._gallery, query_of=self._query_of, item_of=self._item_of, partners=partners
        )

    def _products(self, some: Tensor, which: Int64[ndarray, " c"], all_of_them: Tensor) -> Num[ndarray, "c n"]:
        distinct, place = np.unique(which, return_inverse=True)
        products = torch.mm(some[torch.from_numpy(distinct)], all_of_them.T).numpy()
        return products if np.array_equal(distinct, which) else products[place]


class DualSoftmax(_Sized):
    """s softmax(T s) with the softmax over the queries: what many queries find fits each of them less.

    Text to video it runs over the texts, video to text over the videos: it sees the whole test set at once.
    """

    def __init__(self, scores: Scores, temperature: float) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature multiplies the scores and must be above 0, got {temperature}")
        self.scores, self.temperature, self.shape = scores, temperature, scores.shape
        self._of_items: ndarray | None = None  # log-sum-exp over queries, one an item
        self._of_queries: ndarray | None = None

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
    """beta s, less the log of what a bank of training queries makes of each item; for queries whose best item is a hub.

    An item is a hub when it is among the `k` best of some query of the bank (K, N). The bank must not hold test
    queries: a bank of these sees the test set at once, as dual softmax does.
    """

    def __init__(self, scores: Rows, bank: Rows, *, beta: float = 20.0, k: int = 1) -> None:
        if bank.shape[1] != scores.shape[1]:
            raise ValueError(
                f"the bank has scores of {bank.shape[1]} items, the queries of {scores.shape[1]}; take one gallery"
            )
        if not 0 < beta < float("inf") or not 1 <= k <= bank.shape[1]:
            raise ValueError(f"beta must be above 0 and k within 1 to {bank.shape[1]}, got {beta} and {k}")
        self.scores, self.bank, self.beta, self.k, self.shape = scores, bank, beta, k, scores.shape
        self._sums: ndarray | None = None
        self._hubs: ndarray | None = None

    def rows(self, part: slice) -> Num[ndarray, "c n"]:
        if self._sums is None or self._hubs is None:
            self._sums = _log_sums((self.bank.rows(p) for p in blocks(self.bank)), self.beta)
            self._hubs = np.zeros(self.shape[1], dtype=bool)
            for p in blocks(self.bank):
                self._hubs[best(self.bank.rows(p), self.k)] = True
        values = self.beta * self.scores.rows(part).astype(np.float64)
        normed = self._hubs[best(values, 1)[:, 0]]
        values[normed] -= self._sums
        return values


def as_scores(values: Any) -> Rows:
    """A source of scores as it is, a matrix as one."""
    return values if isinstance(values, Rows) else Matrix(values)


def as_array(values: Any) -> Shaped[ndarray, "..."]:
    """A tensor or sequence as an array; bfloat16, which numpy has not, as float32, which keeps order and ties."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    return (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()


def blocks(scores: Rows) -> Iterator[slice]:
    """Parts of the queries whose scores fit into a block."""
    return parts_of(scores.shape[0], width=scores.width)


def parts_of(count: int, *, width: int) -> Iterator[slice]:
    """0 to `count` in parts of which each holds a block of scores, `width` for every one."""
    step = max(1, BLOCK // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def best(values: Num[ndarray, "c n"], k: int) -> Int[ndarray, "c k"]:
    """The k items with the highest score of each row, the highest first; of equal ones the earlier."""
    if k == 1:
        return values.argmax(axis=1)[:, None]
    k = min(k, values.shape[1])
    chosen = np.argpartition(-values, k - 1, axis=1)[:, :k]
    order = np.lexsort((chosen, -np.take_along_axis(values, chosen, axis=1)), axis=1)
    return np.take_along_axis(chosen, order, axis=1)


def _distinct(embeddings: Float[Tensor, "m e"], *, name: str) -> tuple[Float[Tensor, "d e"], Int64[ndarray, " m"]]:
    """The different rows in float32, and for every row the place of its own; ValueError for one that is not finite."""
    values = embeddings.detach().cpu().float().contiguous()
    rows = values.numpy()
    for part in parts_of(len(rows), width=rows.shape[1]):
        wrong = np.flatnonzero(~np.isfinite(rows[part]).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"the embedding of {name} {part.start + wrong[0]} is not finite; look at its video or text"
            )
    _, group, size = np.unique(_hashes(rows), return_inverse=True, return_counts=True)
    own, first = np.arange(len(rows)), {}
    for row in np.flatnonzero(size[group] > 1):  # only these are compared byte by byte
        own[row] = first.setdefault(_unsigned_zeros(rows[row]).tobytes(), row)
    kept, where = np.unique(own, return_inverse=True)
    return (values, where) if len(kept) == len(rows) else (values[torch.from_numpy(kept)], where)


def _hashes(rows: Float32[ndarray, "m e"]) -> Shaped[ndarray, " m"]:
    """A number for each row, the same for equal ones: its words, weighed and added modulo 2**64."""
    count, odd = -(-rows.shape[1] // 2), rows.shape[1] % 2
    weights, hashes = np.random.default_rng(0).integers(1 << 63, size=count, dtype=np.uint64), np.empty(len(rows), "u8")
    for part in parts_of(len(rows), width=rows.shape[1]):
        hashes[part] = np.pad(_unsigned_zeros(rows[part]), ((0, 0), (0, odd))).view(np.uint64) @ weights
    return hashes


def _unsigned_zeros(values: Float32[ndarray, "..."]) -> Float32[ndarray, "..."]:
    """Return a copy with 0.0 for every -0.0: they are equal, and their bits are not."""
    return values + np.float32(0)


def _log_sums(parts: Iterator[Num[ndarray, "c n"]], temperature: float) -> Float64[ndarray, " n"]:
    """log(sum(exp(T s))) over all rows of all parts, without overflow."""
    peak, total = None, None
    for part in parts:
        values = temperature * part.astype(np.float64)
        highest = values.max(axis=0)
        if peak is None or total is None:
            peak, total = highest, np.exp(values - highest).sum(axis=0)
        else:
            new = np.maximum(peak, highest)
            total = total * np.exp(peak - new) + np.exp(values - new).sum(axis=0)
            peak = new
    assert peak is not None
    assert total is not None
    return peak + np.log(total)
