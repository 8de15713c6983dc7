"""Unit vectors with nearest-neighbour search by faiss: exact (flat) or approximate (ivf, hnsw).

Contract: rows in, in order; the best rows for a query out, with their inner products, which are exact for every kind of
index. The only file that imports faiss. Knows nothing of videos or models.
IVF: Sivic and Zisserman, Video Google (ICCV 2003). HNSW: Malkov and Yashunin (2018).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from clipvid.errors import CheckpointError
from clipvid.runtime.optional import require

KINDS = ("flat", "ivf", "hnsw")
"""Kinds of index. flat compares every vector, so it misses none. ivf compares the vectors in the lists with the nearest
centres. hnsw compares the vectors on a walk along a graph of neighbours. ivf and hnsw are faster on very many vectors
and may miss some."""
POINTS, LISTS = 39, 8
"""Minimum number of vectors per list for k-means (faiss warns below it), and the smallest useful number of lists."""
NEEDED = POINTS * LISTS
"""Minimum number of vectors to train an ivf index."""
LINKS, BEAM = 32, 128
"""Neighbours of a vector in the hnsw graph, and the smallest number of candidates in a search."""


class Vectors:
    """Vectors of one width, searched by an index of the given kind.

    An ivf index is not trained when it is made: until `settle` trains it, a search compares all vectors.
    """

    def __init__(self, width: int, *, kind: str = "flat") -> None:
        self.kind = checked_kind(kind)
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

    def search(self, queries: Float32[ndarray, "q e"], k: int) -> tuple[Float32[ndarray, "q k"], Int64[ndarray, "q k"]]:
        """Return inner products and row numbers of the k best vectors for each query; row -1 if fewer were found."""
        faiss, options = _faiss(), {}
        if self.kind == "hnsw":
            options["params"] = faiss.SearchParametersHNSW(efSearch=max(BEAM, 2 * k))
        elif self.kind == "ivf" and self.trained:  # enough lists for about 4 k candidates
            n_lists = math.ceil(4 * k * self._index.nlist / max(1, len(self)))
            options["params"] = faiss.SearchParametersIVF(
                nprobe=min(self._index.nlist, max(self._index.nprobe, n_lists))
            )
        return self._index.search(queries, k, **options)

    def packed(self) -> bytes:
        """Return the serialised index, for `load` to read from a file."""
        return _faiss().serialize_index(self._index).tobytes()

    @classmethod
    def load(cls, path: Path, *, kind: str, rows: int) -> Vectors:
        """Read a file of `packed` bytes; raise CheckpointError if damaged, of another kind or not of `rows` vectors."""
        try:
            stored = _faiss().deserialize_index(np.frombuffer(path.read_bytes(), dtype=np.uint8))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read ({str(error)[:200]}); build the index again") from error
        if stored.ntotal != rows:
            raise CheckpointError(f"{path} has {stored.ntotal} vectors for {rows} videos; build the index again")
        types = {"flat": ("IndexFlat",), "ivf": ("IndexFlat", "IndexIVFFlat"), "hnsw": ("IndexHNSWFlat",)}[kind]
        if type(stored).__name__.removesuffix("IP") not in types:
            raise CheckpointError(f"{path} holds {type(stored).__name__}, not {kind} vectors; build the index again")
        vectors = cls(stored.d, kind=kind)
        vectors._index = stored
        return vectors


def checked_kind(kind: str) -> str:
    """Return `kind`; raise ValueError for an unknown one."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


def check_enough(kind: str, rows: int) -> None:
    """Raise ValueError for fewer vectors than an index of this kind needs for training."""
    if kind == "ivf" and rows < NEEDED:
        raise ValueError(
            f"an ivf index needs at least {NEEDED} videos for training, got {rows}; use kind flat, which is exact, and "
            "fast for so few"
        )


def _hnsw(width: int) -> Any:
    faiss = _faiss()
    return faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)


def _faiss() -> Any:
    return require("faiss", why="searching videos")
