"""Counts of both retrieval directions in one pass over tiles of scores, for one-to-one pairs of queries and items.

Contract: a `Pairs` in; out, for every query and every item, how many of the other side score higher than its partner
and how many the same. Each tile fits into a core's cache and is computed once; nothing is sorted. The scores of
partners are computed first and copied into the tiles bit for bit, so that ties are exact. Knows nothing of metrics.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64, Num, Shaped
from numpy import ndarray
from torch import Tensor

ROWS, COLUMNS = 240, 1920
"""Size of a tile: 1.8 MiB in float32. Comparisons are summed as bytes, eight per 64-bit word, so a tile has at most 255
rows and 255 words per row."""


@runtime_checkable
class Pairs(Protocol):
    """Scores in tiles, with queries and items in an order chosen by the implementation."""

    partner_scores: Num[ndarray, " m"]
    """Score of each query with its item, in query order."""
    queries: Int[ndarray, " m"]
    """Query of each row of the tiles."""
    items: Int[ndarray, " m"]
    """Item of each column of the tiles."""

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        """Return a tile of scores, which may be stored in `room`; thread-safe if each thread has its own `room`."""
        ...


class MatrixPairs:
    """Tiles of a score matrix; `partners` is the item of each query."""

    def __init__(self, values: Num[ndarray, "m m"], partners: Int[ndarray, " m"]) -> None:
        self._values = values
        self.queries = self.items = np.arange(len(values))
        self.partner_scores = values[self.queries, partners]

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        return self._values[rows, columns]


class ProductPairs:
    """Tiles of inner products of distinct queries (D, E) and items (F, E).

    `query_of` and `item_of` are the distinct row of each query and item; `partners` is the item of each query. A
    product may differ in its last bits from tile to tile. Products of partners are therefore computed once, in float64,
    rounded and copied into every tile that has them: equal queries, or equal items, tie in any tile.
    """

    def __init__(
        self,
        queries: Float32[Tensor, "d e"],
        gallery: Float32[Tensor, "f e"],
        *,
        query_of: Int64[ndarray, " m"],
        item_of: Int64[ndarray, " m"],
        partners: Int[ndarray, " m"],
    ) -> None:
        self._queries, self._gallery = queries, gallery
        self.queries, self.items = (np.argsort(distinct, kind="stable") for distinct in (query_of, item_of))
        self._rows, self._columns = query_of[self.queries], item_of[self.items]
        pairs, inverse = np.unique(query_of * len(gallery) + item_of[partners], return_inverse=True)
        self._first, self._second = np.divmod(pairs, len(gallery))
        self._pair_scores = _products(queries, gallery, self._first, self._second)
        self.partner_scores = self._pair_scores[inverse]

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        queries, items = self._rows[rows], self._columns[columns]
        top, left, bottom, right = int(queries[0]), int(items[0]), int(queries[-1]) + 1, int(items[-1]) + 1
        shape = bottom - top, right - left
        out = room[: shape[0] * shape[1]].view(shape)  # reused, because new memory costs page faults
        products = torch.mm(self._queries[top:bottom], self._gallery[left:right].T, out=out).numpy()
        low, high = np.searchsorted(self._first, (top, bottom))
        within = low + np.flatnonzero((self._second[low:high] >= left) & (self._second[low:high] < right))
        products[self._first[within] - top, self._second[within] - left] = self._pair_scores[within]
        if shape[0] < len(queries):
            products = products[queries - top]
        return products if shape[1] == len(items) else products[:, items - left]


class Beaten(NamedTuple):
    """Counts per query over all items, or per item over all queries."""

    above: Int64[ndarray, " m"]
    """Number that score higher than the partner."""
    level: Int64[ndarray, " m"]
    """Number that score the same, including the partner."""


def count_both(pairs: Pairs, partners: Int[ndarray, " m"]) -> tuple[Beaten, Beaten]:
    """Count what scores as high as each query's item, and as each item's query; raise ValueError for a NaN score."""
    total = len(partners)
    query_of = np.empty(total, np.int64)
    query_of[partners] = np.arange(total)
    of_queries, of_items = (np.zeros((2, total), np.int64) for _ in range(2))  # in tile order
    row_scores, column_scores, lock = (
        pairs.partner_scores[pairs.queries][:, None],
        pairs.partner_scores[query_of[pairs.items]],
        Lock(),
    )

    def count_stripe(top: int) -> None:
        rows = slice(top, min(top + ROWS, total))
        counts = np.zeros((2, total), np.int64)
        room, truths = torch.empty(ROWS * COLUMNS), np.zeros((rows.stop - top, COLUMNS), dtype=bool)
        for left in range(0, total, COLUMNS):
            columns = slice(left, min(left + COLUMNS, total))
            scores = pairs.tile(rows, columns, room=room)
            if np.isnan(scores.max()):
                _raise_nan(scores, pairs.queries[rows], pairs.items[columns])
            result, width = truths[:, : columns.stop - left], columns.stop - left
            for kind, compare in enumerate((np.greater, np.equal)):
                compare(scores, row_scores[rows], out=result)
                of_queries[kind, rows] += _in_rows(truths, width)
                compare(scores, column_scores[columns], out=result)
                counts[kind, columns] = _in_columns(truths, width)
        with lock:
            of_items[:] += counts

    # A product may itself use torch's threads. One would be enough, but their number is set for the whole process.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(count_stripe, range(0, total, ROWS)):
            pass
    return Beaten(*of_queries[:, np.argsort(pairs.queries)]), Beaten(*of_items[:, np.argsort(pairs.items)])


def _in_rows(truths: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, " r"]:
    """Count the true entries among the first `width` of each row."""
    words = _words(truths, width)
    return np.add.reduce(words, axis=1).view(np.uint8).reshape(len(truths), 8).sum(axis=1, dtype=np.int64)


def _in_columns(truths: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, " _"]:
    """Count the true entries in each of the first `width` columns."""
    return np.add.reduce(_words(truths, width), axis=0).view(np.uint8)[:width]


def _words(truths: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, "r _"]:
    """View rows as 64-bit words of eight entries; clear those an earlier tile left behind the last column."""
    end = -(-width // 8) * 8
    truths[:, width:end] = False
    return truths.view(np.uint64)[:, : end // 8]


def _products(
    queries: Float32[Tensor, "d e"], gallery: Float32[Tensor, "f e"], first: ndarray, second: ndarray
) -> Float32[ndarray, " p"]:
    """Return products of these rows of `queries` and `gallery`, computed in float64 and rounded once."""
    left_rows, right_rows, products = queries.numpy(), gallery.numpy(), np.empty(len(first), np.float64)
    for start in range(0, len(first), ROWS):
        part = slice(start, start + ROWS)
        left, right = (
            rows[indices[part]].astype(np.float64) for rows, indices in ((left_rows, first), (right_rows, second))
        )
        products[part] = np.einsum("pe,pe->p", left, right)
    return torch.from_numpy(products).float().numpy()  # overflow becomes inf without a warning, as in `tile`


def _raise_nan(scores: ndarray, queries: ndarray, items: ndarray) -> None:
    """Raise ValueError naming the query and the item of the first NaN."""
    row, column = np.argwhere(np.isnan(scores))[0]
    raise ValueError(f"the score of query {queries[row]} and item {items[column]} is NaN; check the embeddings")
