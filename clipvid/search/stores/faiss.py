"""The store on faiss: unit vectors in the memory of this process, searched exactly (flat) or approximately (ivf, hnsw).

Contract: `Vectors` numbers rows, and its inner products are exact for every kind of index; `FaissStore` adds ids,
metadata and filters, as `Store` demands. The only file that imports faiss. Knows nothing of videos or models.
IVF: Sivic and Zisserman, Video Google (ICCV 2003). HNSW: Malkov and Yashunin (2018).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from clipvid.errors import CheckpointError
from clipvid.runtime.files import read_file
from clipvid.runtime.optional import require
from clipvid.search.queries.filters import Filter
from clipvid.search.stores import FAISS_KINDS as KINDS
from clipvid.search.stores.base import FORMAT, ROWS, Match, Metadata, Store, read_rows
from clipvid.search.stores.faiss_files import deserialized, is_consistent

POINTS, LISTS = 39, 8
"""Minimum number of vectors per list for k-means (faiss warns below it), and the smallest useful number of lists."""
NEEDED = POINTS * LISTS
"""Minimum number of vectors to train an ivf index."""
VECTORS = "vectors.faiss"
"""Name of the file with the index of a saved store."""
BLOCK = 65_536
"""Rows that are copied out of an index at a time."""
LINKS, BEAM = 32, 128
"""Neighbours of a vector in the hnsw graph, and the smallest number of candidates in a search."""


class Vectors:
    """Vectors of one width, searched by an index of the given kind.

    An ivf index is not trained when it is made: until `settle` trains it, a search compares all vectors.
    """

    def __init__(self, width: int, *, kind: str = "flat") -> None:
        self.kind = kind
        graph = kind == "hnsw"
        self._index: Any = _hnsw(width) if graph else _faiss().IndexFlatIP(width)

    @property
    def width(self) -> int:
        """Number of components of a vector."""
        return self._index.d

    @property
    def trained(self) -> bool:
        """False for an ivf index before `settle`, else True."""
        return self.kind != "ivf" or hasattr(self._index, "nlist")

    def __len__(self) -> int:
        return self._index.ntotal

    def add(self, rows: Float32[ndarray, "n e"]) -> None:
        """Append rows."""
        self._index.add(rows)

    def settle(self) -> None:
        """Train an ivf index on all rows, with sqrt(number of rows) lists; do nothing for other kinds."""
        if self.trained:
            return
        check_enough(self.kind, len(self))
        faiss = _faiss()
        rows = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.width).reshape(len(self), self.width)
        lists = min(math.isqrt(len(self)), len(self) // POINTS)
        ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.width), self.width, lists, faiss.METRIC_INNER_PRODUCT)
        ivf.nprobe = max(LISTS, lists // 16)
        ivf.train(rows)
        ivf.add(rows)
        self._index = ivf

    def remove(self, rows: list[int]) -> None:
        """Remove rows; later rows move up. An hnsw graph is rebuilt, and the lists of an ivf index are refilled."""
        if self.kind == "flat" or not self.trained:
            self._index.remove_ids(np.array(rows, dtype=np.int64))
            return
        if self.kind == "ivf":
            self._index.make_direct_map(True)
        remaining = np.delete(self._index.reconstruct_n(0, len(self)), rows, axis=0)
        self._index.reset()
        if self.kind == "ivf":
            self._index.make_direct_map(False)
        self._index.add(remaining)

    def get(self, rows: Int64[ndarray, " n"]) -> Float32[ndarray, "n e"]:
        """Return the vectors of these rows."""
        if len(rows) and not (self.kind == "ivf" and self.trained):
            return self._index.reconstruct_batch(rows)
        # A trained ivf index has its rows in the order of its lists: to look for one costs as much as to copy a block.
        out = np.empty((len(rows), self.width), dtype=np.float32)
        for start in range(0, len(self), BLOCK):
            chosen = (rows >= start) & (rows < start + BLOCK)
            if chosen.any():
                block = self._index.reconstruct_n(start, min(BLOCK, len(self) - start))
                out[chosen] = block[rows[chosen] - start]
        return out

    def search_rows(
        self, queries: Float32[ndarray, "q e"], k: int, rows: Int64[ndarray, " n"]
    ) -> tuple[Float32[ndarray, "q k"], Int64[ndarray, "q k"]]:
        """Return inner products and numbers of the k best among these rows, compared one by one whatever the kind.

        Ties are in the order of rows.
        """
        faiss, index = _faiss(), self._index
        options: dict[str, Any] = {"sel": faiss.IDSelectorBatch(rows)}
        if self.kind == "ivf" and self.trained:
            params = faiss.SearchParametersIVF(nprobe=index.nlist, **options)
        else:
            params = faiss.SearchParameters(**options)
        if self.kind == "hnsw":
            index = faiss.downcast_index(index.storage)  # the vectors without the graph
        return _ties_by_row(partial(index.search, params=params), queries, k, total=len(rows))

    def search(self, queries: Float32[ndarray, "q e"], k: int) -> tuple[Float32[ndarray, "q k"], Int64[ndarray, "q k"]]:
        """Return inner products and row numbers of the k best vectors for each query; row -1 if fewer were found.

        Ties are in the order of rows if the search is exact: in a flat index, or an ivf index before its training.
        """
        faiss = _faiss()
        if self.kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=max(BEAM, 2 * k))
        elif self.kind == "ivf" and self.trained:  # enough lists for about 4 k candidates
            n_lists = math.ceil(4 * k * self._index.nlist / max(1, len(self)))
            params = faiss.SearchParametersIVF(nprobe=min(self._index.nlist, max(self._index.nprobe, n_lists)))
        else:
            return _ties_by_row(self._index.search, queries, k, total=len(self))
        return self._index.search(queries, k, params=params)

    def packed(self) -> bytes:
        """Return the serialised index, for `load` to read from a file."""
        return _faiss().serialize_index(self._index).tobytes()

    @classmethod
    def load(cls, path: Path, *, kind: str, rows: int) -> Vectors:
        """Read a file of `packed` bytes; raise CheckpointError if damaged, of another kind or not of `rows` vectors."""
        try:
            stored = deserialized(read_file(path), _faiss())
        except (OSError, RuntimeError, MemoryError) as error:
            raise CheckpointError(f"{path} cannot be read ({str(error)[:200]}); build the index again") from error
        if stored.ntotal != rows:
            raise CheckpointError(f"{path} has {stored.ntotal} vectors for {rows} videos; build the index again")
        types = {"flat": ("IndexFlat",), "ivf": ("IndexFlat", "IndexIVFFlat"), "hnsw": ("IndexHNSWFlat",)}[kind]
        if type(stored).__name__.removesuffix("IP") not in types:
            raise CheckpointError(f"{path} holds {type(stored).__name__}, not {kind} vectors; build the index again")
        if stored.metric_type != _faiss().METRIC_INNER_PRODUCT or stored.d < 1:
            raise CheckpointError(f"{path} is damaged: it does not compare by inner products; build the index again")
        if not is_consistent(stored, _faiss()):
            raise CheckpointError(f"{path} is damaged: it refers to vectors that it lacks; build the index again")
        vectors = cls(stored.d, kind=kind)
        vectors._index = stored
        for start in range(0, rows, BLOCK):
            if not np.isfinite(vectors.get(np.arange(start, min(rows, start + BLOCK)))).all():
                raise CheckpointError(f"{path} is damaged: a vector is not finite; build the index again")
        return vectors


class FaissStore(Store):
    """Vectors by id in an index of faiss, with their metadata in memory. See `FAISS_KINDS` for its kinds.

    A search with a filter compares all rows that pass it, so it misses none, whatever the kind.
    """

    kinds: ClassVar[tuple[str, ...]] = KINDS

    def __init__(self, width: int, *, kind: str = "flat") -> None:
        super().__init__(width, kind=kind)
        self._vectors = Vectors(width, kind=kind)
        self._ids: list[str] = []  # by row number
        self._rows: dict[str, int] = {}  # row numbers by id
        self._metadata: list[dict[str, Any]] = []

    @classmethod
    def check(cls, kind: str, rows: int | None = None) -> None:
        super().check(kind)
        if rows is not None:
            check_enough(kind, rows)

    def add(
        self, ids: Sequence[str], vectors: Float32[ndarray, "n e"], metadata: Sequence[Metadata] | None = None
    ) -> None:
        columns = self.checked_columns(ids, vectors, metadata)
        self.refuse_repeated(ids, self._rows)
        self._vectors.add(np.ascontiguousarray(vectors, dtype=np.float32))
        self._rows |= {name: len(self._ids) + i for i, name in enumerate(ids)}
        self._ids += ids
        self._metadata += columns

    def remove(self, ids: Sequence[str]) -> int:
        rows = sorted({self._rows[name] for name in ids if name in self._rows})
        if rows:
            self._vectors.remove(rows)
            removed = set(rows)
            self._metadata = [each for row, each in enumerate(self._metadata) if row not in removed]
            self._ids = [name for row, name in enumerate(self._ids) if row not in removed]
            self._rows = {name: row for row, name in enumerate(self._ids)}
        return len(rows)

    def search(self, vectors: Float32[ndarray, "q e"], k: int, where: Filter | None = None) -> list[list[Match]]:
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if where is None:
            scores, rows = self._vectors.search(queries, min(k, len(self._ids))) if self._ids else _nothing(queries)
        else:
            passing = np.array([row for row, each in enumerate(self._metadata) if where.matches(each)], dtype=np.int64)
            scores, rows = self._vectors.search_rows(queries, k, passing) if len(passing) else _nothing(queries)
        return [
            [Match(self._ids[row], float(score)) for score, row in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))]
            for pairs in (
                [(score, row) for score, row in zip(*query, strict=True) if row >= 0]
                for query in zip(scores, rows, strict=True)
            )
        ]

    def get(self, ids: Sequence[str]) -> tuple[Float32[ndarray, "n e"], list[dict[str, Any]]]:
        rows = np.array([self._rows[name] for name in ids], dtype=np.int64)
        return self._vectors.get(rows), [dict(self._metadata[row]) for row in rows]

    def ids(self, where: Filter | None = None) -> list[str]:
        if where is None:
            return list(self._ids)
        return [name for name, columns in zip(self._ids, self._metadata, strict=True) if where.matches(columns)]

    def existing(self, ids: Iterable[str]) -> set[str]:
        return {name for name in ids if name in self._rows}

    def rename(self, names: Mapping[str, str], *, column: str) -> None:
        ids = [names.get(name, name) for name in self._ids]
        self.refuse_repeated(ids, ())
        for name in self.existing(names):
            self._metadata[self._rows[name]][column] = names[name]
        self._ids, self._rows = ids, {name: row for row, name in enumerate(ids)}

    def count(self, where: Filter | None = None) -> int:
        return len(self._ids) if where is None else sum(map(where.matches, self._metadata))

    def optimize(self) -> None:
        """Train an ivf index on all rows; do nothing for other kinds. Raises ValueError for too few rows."""
        self._vectors.settle()

    def save(self, folder: Path) -> None:
        rows = {"format": FORMAT, "kind": self.kind, "ids": self._ids, "metadata": self._metadata}
        (folder / ROWS).write_text(json.dumps(rows, allow_nan=False) + "\n", encoding="utf-8")
        (folder / VECTORS).write_bytes(self._vectors.packed())

    @classmethod
    def load(cls, folder: Path) -> FaissStore:
        rows = read_rows(folder / ROWS)
        try:
            cls.check(rows.kind)
        except ValueError as error:
            raise CheckpointError(f"{folder} cannot be read ({error}); build the index again") from error
        vectors = Vectors.load(folder / VECTORS, kind=rows.kind, rows=len(rows.ids))
        return cls.of_rows(vectors, rows.ids, rows.metadata)

    @classmethod
    def of_rows(cls, vectors: Vectors, ids: Sequence[str], metadata: Sequence[Metadata] | None = None) -> FaissStore:
        """Return a store of vectors whose rows have these ids."""
        store = cls(vectors.width, kind=vectors.kind)
        store._vectors = vectors
        store._ids = list(ids)
        store._rows = {name: row for row, name in enumerate(ids)}
        store._metadata = [dict(each) for each in metadata or [{}] * len(ids)]
        return store


def check_enough(kind: str, rows: int) -> None:
    """Raise ValueError for fewer vectors than an index of this kind needs for training."""
    if kind == "ivf" and rows < NEEDED:
        raise ValueError(
            f"an ivf index needs at least {NEEDED} videos for training, got {rows}; use kind flat, which is exact, and "
            "fast for so few"
        )


def _nothing(queries: Float32[ndarray, "q e"]) -> tuple[Float32[ndarray, "q 0"], Int64[ndarray, "q 0"]]:
    return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)


def _ties_by_row(
    search: Callable[..., tuple[ndarray, ndarray]], queries: ndarray, k: int, *, total: int, wanted: int = 0
) -> tuple[ndarray, ndarray]:
    """Return the `k` best of `total` rows by an exact search of faiss, equal scores in the order of rows.

    faiss returns any of the rows that share the k-th score. A query whose last score is still that of its k-th row is
    therefore searched again for more rows, `wanted` of them.
    """
    k = min(k, total)
    wanted = min(max(wanted, k + 1), total)
    scores, rows = search(queries, wanted)
    tied = np.flatnonzero(scores[:, -1] == scores[:, k - 1]) if wanted < total else ()
    order = np.lexsort((rows, -scores))[:, :k]
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    for query in tied:
        again = _ties_by_row(search, queries[query : query + 1], k, total=total, wanted=4 * wanted)
        scores[query], rows[query] = again[0][0], again[1][0]
    return scores, rows


def _hnsw(width: int) -> Any:
    faiss = _faiss()
    return faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)


def _faiss() -> Any:
    return require("faiss", why="searching videos")
