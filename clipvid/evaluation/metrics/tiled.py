"""Scores where every query has one item and every item one query: both directions counted in one pass over tiles.

Contract: a `Pairs` in, for every query and every item how many of the other side score higher than its partner, and how
many the same. Scores come in tiles that fit into a core's cache, each once; nothing is sorted. The score of partners is
known before the tiles come and stands in them to the bit, so that ties are ties. Knows nothing of ranks or figures.
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
"""Of a tile: 1.8 MiB in float32. Truths are added as bytes, eight a word: at most 255 rows, and 255 words a row."""


@runtime_checkable
class Pairs(Protocol):
    """Scores in tiles, of queries and items in an order of their own."""

    own: Num[ndarray, " m"]
    """Score of each query with its item."""
    queries: Int[ndarray, " m"]
    """Which query each row of the tiles is."""
    items: Int[ndarray, " m"]
    """Which item each column of the tiles is."""

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        """Some scores, which may lie in `room`; may be asked for by several threads, each with room of its own."""
        ...


class MatrixPairs:
    """Scores that are there already; `partners` is the item of each query."""

    def __init__(self, values: Num[ndarray, "m m"], partners: Int[ndarray, " m"]) -> None:
        self._values = values
        self.queries = self.items = np.arange(len(values))
        self.own = values[self.queries, partners]

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        return self._values[rows, columns]


class ProductPairs:
    """Inner products of the different queries (D, E) and items (F, E); `query_of` and `item_of` say which each one is.

    A product may differ in its last bits from tile to tile. Those of partners are computed once, in float64, rounded,
    and put into every tile they belong to: equal queries, or items, tie whichever tile they stand in.
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
        self.queries, self.items = (np.argsort(which, kind="stable") for which in (query_of, item_of))
        self._rows, self._columns = query_of[self.queries], item_of[self.items]
        pairs, which = np.unique(query_of * len(gallery) + item_of[partners], return_inverse=True)
        self._first, self._second = np.divmod(pairs, len(gallery))
        self._known = _products(queries, gallery, self._first, self._second)
        self.own = self._known[which]

    def tile(self, rows: slice, columns: slice, *, room: Float32[Tensor, " s"]) -> Num[ndarray, "r c"]:
        some, others = self._rows[rows], self._columns[columns]
        top, left, bottom, right = int(some[0]), int(others[0]), int(some[-1]) + 1, int(others[-1]) + 1
        shape = bottom - top, right - left
        out = room[: shape[0] * shape[1]].view(shape)  # written again and again: new memory costs page faults
        found = torch.mm(self._queries[top:bottom], self._gallery[left:right].T, out=out).numpy()
        low, high = np.searchsorted(self._first, (top, bottom))
        within = low + np.flatnonzero((self._second[low:high] >= left) & (self._second[low:high] < right))
        found[self._first[within] - top, self._second[within] - left] = self._known[within]
        if shape[0] < len(some):
            found = found[some - top]
        return found if shape[1] == len(others) else found[:, others - left]


class Beaten(NamedTuple):
    """For every query, or every item, of the other side."""

    above: Int64[ndarray, " m"]
    """How many score higher than its partner."""
    level: Int64[ndarray, " m"]
    """How many score the same, the partner included."""


def count_both(pairs: Pairs, partners: Int[ndarray, " m"]) -> tuple[Beaten, Beaten]:
    """What beats each query's item, and what beats each item's query. ValueError for a score that is NaN."""
    total = len(partners)
    query_of = np.empty(total, np.int64)
    query_of[partners] = np.arange(total)
    of_queries, of_items = (np.zeros((2, total), np.int64) for _ in range(2))  # in the order of the tiles
    beside, below, lock = pairs.own[pairs.queries][:, None], pairs.own[query_of[pairs.items]], Lock()

    def stripe(top: int) -> None:
        rows = slice(top, min(top + ROWS, total))
        found = np.zeros((2, total), np.int64)
        room, truths = torch.empty(ROWS * COLUMNS), np.zeros((rows.stop - top, COLUMNS), dtype=bool)
        for left in range(0, total, COLUMNS):
            columns = slice(left, min(left + COLUMNS, total))
            scores = pairs.tile(rows, columns, room=room)
            if np.isnan(scores.max()):
                _refuse(scores, pairs.queries[rows], pairs.items[columns])
            where, width = truths[:, : columns.stop - left], columns.stop - left
            for kind, compare in enumerate((np.greater, np.equal)):
                compare(scores, beside[rows], out=where)
                of_queries[kind, rows] += _in_rows(truths, width)
                compare(scores, below[columns], out=where)
                found[kind, columns] = _in_columns(truths, width)
        with lock:
            of_items[:] += found

    # Each product may use torch's threads too: one alone would do, but that number is set for the whole process.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(stripe, range(0, total, ROWS)):
            pass
    return Beaten(*of_queries[:, np.argsort(pairs.queries)]), Beaten(*of_items[:, np.argsort(pairs.items)])


def _in_rows(truths: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, " r"]:
    """How many of the first `width` are true in each row."""
    words = _words(truths, width)
    return np.add.reduce(words, axis=1).view(np.uint8).reshape(len(truths), 8).sum(axis=1, dtype=np.int64)


def _in_columns(truths: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, " _"]:
    """How many are true in each of the first `width` columns."""
    return np.add.reduce(_words(truths, width), axis=0).view(np.uint8)[:width]


def _words(truths: Bool[ndarray, "r w"], width: int) -> Shaped[ndarray, "r _"]:
    """Eight truths a word, with what an earlier tile left behind the last column cleared."""
    end = -(-width // 8) * 8
    truths[:, width:end] = False
    return truths.view(np.uint64)[:, : end // 8]


def _products(
    queries: Float32[Tensor, "d e"], gallery: Float32[Tensor, "f e"], first: ndarray, second: ndarray
) -> Float32[ndarray, " p"]:
    """Of rows of both, in float64 and rounded once."""
    some, others, found = queries.numpy(), gallery.numpy(), np.empty(len(first), np.float64)
    for start in range(0, len(first), ROWS):
        part = slice(start, start + ROWS)
        left, right = (rows[where[part]].astype(np.float64) for rows, where in ((some, first), (others, second)))
        found[part] = np.einsum("pe,pe->p", left, right)
    return torch.from_numpy(found).float().numpy()  # beyond float32 it is inf without a warning, as in `tile`


def _refuse(scores: ndarray, queries: ndarray, items: ndarray) -> None:
    row, column = np.argwhere(np.isnan(scores))[0]
    raise ValueError(
        f"the score of query {queries[row]} and item {items[column]} is NaN; look for it in the embeddings"
    )
