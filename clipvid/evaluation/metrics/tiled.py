"""Ranks of one-to-one pairs of queries and items, in both retrieval directions, from one pass over tiles of scores.

Contract: a `Pairs` in; out, for every query, the number of items that score higher than its partner, and the number
that score the same; for every item, the same numbers of queries. Each tile fits into a core's cache and is computed
once; nothing is sorted. The scores of partners are computed first and copied into the tiles bit for bit, so that ties
are exact. Knows nothing of metrics.
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
    """Tiles of a score matrix, whose rows and columns are in the order of `queries` and `items`."""

    partner_scores: Num[ndarray, " m"]
    """Score of each query with its item, in query order."""
    queries: Int[ndarray, " m"]
    """Query of each row of the matrix, as its index."""
    items: Int[ndarray, " m"]
    """Item of each column of the matrix, as its index."""

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        """Return a tile of scores, which may be stored in `room`; thread-safe if each thread has its own `room`."""
        ...


class MatrixPairs:
    """Tiles of a score matrix; `partners` is the item of each query."""

    def __init__(self, values: Num[ndarray, "m m"], partners: Int[ndarray, " m"]) -> None:
        self._values = values
        self.queries: Int[ndarray, " m"] = np.arange(len(values))
        self.items: Int[ndarray, " m"] = self.queries
        self.partner_scores: Num[ndarray, " m"] = values[self.queries, partners]

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        return self._values[rows, columns]


class ProductPairs:
    """Tiles of inner products, for embeddings without repetitions: distinct queries (D, E) and distinct items (F, E).

    `query_of` and `item_of` give the row of each query and of each item in these; `partners` is the item of each query.
    Tiles are ordered by that row, so that equal embeddings are neighbours. A product may differ in its last bits from
    tile to tile. Products of partners are therefore computed once, in float64, rounded and copied into every tile that
    has them: a partner ties exactly with every item, or query, that has the same embedding.
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
        self._query_embeddings, self._item_embeddings = queries, gallery
        self.queries: Int[ndarray, " m"] = np.argsort(query_of, kind="stable")
        self.items: Int[ndarray, " m"] = np.argsort(item_of, kind="stable")
        self._distinct_queries, self._distinct_items = query_of[self.queries], item_of[self.items]
        pair_ids, inverse = np.unique(query_of * len(gallery) + item_of[partners], return_inverse=True)
        self._pair_queries, self._pair_items = np.divmod(pair_ids, len(gallery))
        self._pair_scores = _products(queries, gallery, self._pair_queries, self._pair_items)
        self.partner_scores: Num[ndarray, " m"] = self._pair_scores[inverse]

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        queries, items = self._distinct_queries[rows], self._distinct_items[columns]
        top, left, bottom, right = int(queries[0]), int(items[0]), int(queries[-1]) + 1, int(items[-1]) + 1
        shape = bottom - top, right - left
        out = room[: shape[0] * shape[1]].view(shape)  # reused, because new memory costs page faults
        products = torch.mm(self._query_embeddings[top:bottom], self._item_embeddings[left:right].T, out=out).numpy()
        low, high = np.searchsorted(self._pair_queries, (top, bottom))
        within = low + np.flatnonzero((self._pair_items[low:high] >= left) & (self._pair_items[low:high] < right))
        products[self._pair_queries[within] - top, self._pair_items[within] - left] = self._pair_scores[within]
        if shape[0] < len(queries):  # equal embeddings were multiplied once and are repeated now
            products = products[queries - top]
        return products if shape[1] == len(items) else products[:, items - left]


class PartnerCounts(NamedTuple):
    """Scores compared with the partner's: counts of items for each query, or counts of queries for each item."""

    above: Int64[ndarray, " m"]
    """Number that score higher than the partner."""
    equal: Int64[ndarray, " m"]
    """Number that score the same, including the partner."""


def count_both(pairs: Pairs, partners: Int[ndarray, " m"]) -> tuple[PartnerCounts, PartnerCounts]:
    """Return the counts of every query and of every item; `partners` is the item of each query.

    Raises ValueError for a NaN score.
    """
    total = len(partners)
    query_of_item = np.empty(total, np.int64)
    query_of_item[partners] = np.arange(total)
    row_counts, column_counts = (np.zeros((2, total), np.int64) for _ in range(2))  # above and equal
    row_scores, column_scores, lock = (
        pairs.partner_scores[pairs.queries][:, None],
        pairs.partner_scores[query_of_item[pairs.items]],
        Lock(),
    )

    def count_rows(top: int) -> None:
        """Count in all tiles of the rows from `top` on."""
        rows = slice(top, min(top + ROWS, total))
        partial_counts = np.zeros((2, total), np.int64)
        room, flags = torch.empty(ROWS * COLUMNS), np.zeros((rows.stop - top, COLUMNS), dtype=bool)
        for left in range(0, total, COLUMNS):
            columns = slice(left, min(left + COLUMNS, total))
            scores = pairs.tile(rows, columns, room=room)
            if np.isnan(scores.max()):
                _raise_nan(scores, pairs.queries[rows], pairs.items[columns])
            result, width = flags[:, : columns.stop - left], columns.stop - left
            for field, compare in enumerate((np.greater, np.equal)):
                compare(scores, row_scores[rows], out=result)
                row_counts[field, rows] += _count_in_rows(flags, width)
                compare(scores, column_scores[columns], out=result)
                partial_counts[field, columns] = _count_in_columns(flags, width)
        with lock:
            column_counts[:] += partial_counts

    # Each product may use several torch threads besides. One would be enough, but setting it affects the whole process.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(count_rows, range(0, total, ROWS)):
            pass
    return (
        PartnerCounts(*row_counts[:, np.argsort(pairs.queries)]),
        PartnerCounts(*column_counts[:, np.argsort(pairs.items)]),
    )


def _count_in_rows(flags: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, " r"]:
    """Count the true entries among the first `width` of each row."""
    words = _words(flags, width)
    return np.add.reduce(words, axis=1).view(np.uint8).reshape(len(flags), 8).sum(axis=1, dtype=np.int64)


def _count_in_columns(flags: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, " _"]:
    """Count the true entries in each of the first `width` columns."""
    return np.add.reduce(_words(flags, width), axis=0).view(np.uint8)[:width]


def _words(flags: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, "r _"]:
    """Return the first `width` columns as 64-bit words of eight entries, the last one filled up with False."""
    end = -(-width // 8) * 8
    flags[:, width:end] = False  # an earlier, wider tile may have left True
    return flags.view(np.uint64)[:, : end // 8]


def _products(
    queries: Float32[Tensor, "d e"], gallery: Float32[Tensor, "f e"], query_rows: ndarray, item_rows: ndarray
) -> Float32[ndarray, " p"]:
    """Return the product of each pair of rows of `queries` and `gallery`, computed in float64 and rounded once."""
    query_array, item_array, products = queries.numpy(), gallery.numpy(), np.empty(len(query_rows), np.float64)
    for start in range(0, len(query_rows), ROWS):
        part = slice(start, start + ROWS)
        left, right = (
            array[rows[part]].astype(np.float64) for array, rows in ((query_array, query_rows), (item_array, item_rows))
        )
        products[part] = np.einsum("pe,pe->p", left, right)
    return torch.from_numpy(products).float().numpy()  # torch rounds overflow to inf without a warning


def _raise_nan(scores: ndarray, queries: ndarray, items: ndarray) -> None:
    """Raise ValueError naming the query and the item of the first NaN."""
    row, column = np.argwhere(np.isnan(scores))[0]
    raise ValueError(f"the score of query {queries[row]} and item {items[column]} is NaN; check the embeddings")
