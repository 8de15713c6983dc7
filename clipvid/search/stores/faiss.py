"""Unit vectors and how the nearest of them are found: all compared, or the promising ones alone.

Contract: rows in, in order; for a query the best rows out, with their inner products, which are exact whichever way
they were found. The only file that imports faiss. Knows nothing of videos or models.
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
"""flat: every vector is compared, so none is missed. ivf: those in the lists whose centres are nearest. hnsw: those
that a walk along a graph of neighbours meets. The last two answer sooner among very many and may miss one."""
POINTS, LISTS = 39, 8
"""Vectors that k-means should have for each list (faiss warns below), and lists that are worth the while."""
NEEDED = POINTS * LISTS
LINKS, BEAM = 32, 128
"""Neighbours of a vector in the graph, and candidates that a walk keeps."""


class Vectors:
    """Rows of one width, searched as `kind` says. An ivf compares all of them until `settle` has trained it."""

    def __init__(self, width: int, *, kind: str = "flat") -> None:
        self.kind = checked_kind(kind)
        graph = kind == "hnsw"
        self._index: Any = _hnsw(width) if graph else _faiss().IndexFlatIP(width)

    @property
    def width(self) -> int:
        return self._index.d

    @property
    def trained(self) -> bool:
        """Whether rows that are added are at once where a search of this kind finds them."""
        return self.kind != "ivf" or hasattr(self._index, "nlist")

    def __len__(self) -> int:
        return self._index.ntotal

    def add(self, rows: Float32[ndarray, "n e"]) -> None:
        self._index.add(rows)

    def settle(self) -> None:
        """Train an ivf on all rows, the square root of their number in lists, and file them; the others are ready."""
        if self.trained:
            return
        check_enough(self.kind, len(self))
        faiss = _faiss()
        rows = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.width).reshape(len(self), self.width)
        lists = min(math.isqrt(len(self)), len(self) // POINTS)
        found = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.width), self.width, lists, faiss.METRIC_INNER_PRODUCT)
        found.nprobe = max(LISTS, lists // 16)
        found.train(rows)
        found.add(rows)
        self._index = found

    def remove(self, rows: list[int]) -> None:
        """Take rows out; those after them move up. A graph is built anew, lists are filled anew."""
        if self.kind == "flat" or not self.trained:
            self._index.remove_ids(np.array(rows, dtype=np.int64))
            return
        if self.kind == "ivf":
            self._index.make_direct_map(True)
        kept = np.delete(self._index.reconstruct_n(0, len(self)), rows, axis=0)
        self._index.reset()
        if self.kind == "ivf":
            self._index.make_direct_map(False)
        self._index.add(kept)

    def search(self, queries: Float32[ndarray, "q e"], k: int) -> tuple[Float32[ndarray, "q k"], Int64[ndarray, "q k"]]:
        """Inner products and rows of the k best of each query; row -1 where fewer were met."""
        faiss, options = _faiss(), {}
        if self.kind == "hnsw":
            options["params"] = faiss.SearchParametersHNSW(efSearch=max(BEAM, 2 * k))
        elif self.kind == "ivf" and self.trained:  # lists enough to hold several times k, all of them for all rows
            enough = math.ceil(4 * k * self._index.nlist / max(1, len(self)))
            options["params"] = faiss.SearchParametersIVF(
                nprobe=min(self._index.nlist, max(self._index.nprobe, enough))
            )
        return self._index.search(queries, k, **options)

    def packed(self) -> bytes:
        """Return the bytes that `load` reads from a file."""
        return _faiss().serialize_index(self._index).tobytes()

    @classmethod
    def load(cls, path: Path, *, kind: str, rows: int) -> Vectors:
        """Read a file of `packed`; CheckpointError if they are damaged, of another kind or not so many."""
        try:
            found = _faiss().deserialize_index(np.frombuffer(path.read_bytes(), dtype=np.uint8))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read ({str(error)[:200]}); build the index again") from error
        if found.ntotal != rows:
            raise CheckpointError(f"{path} has {found.ntotal} vectors for {rows} videos; build the index again")
        known = {"flat": ("IndexFlat",), "ivf": ("IndexFlat", "IndexIVFFlat"), "hnsw": ("IndexHNSWFlat",)}[kind]
        if type(found).__name__.removesuffix("IP") not in known:
            raise CheckpointError(f"{path} holds {type(found).__name__}, not {kind} vectors; build the index again")
        vectors = cls(found.d, kind=kind)
        vectors._index = found
        return vectors


def checked_kind(kind: str) -> str:
    """ValueError for a kind that is none."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


def check_enough(kind: str, rows: int) -> None:
    """ValueError for fewer vectors than this kind can be trained on."""
    if kind == "ivf" and rows < NEEDED:
        raise ValueError(
            f"an ivf index needs at least {NEEDED} videos to find its lists, got {rows}; take kind flat, which is "
            "exact and quick among so few"
        )


def _hnsw(width: int) -> Any:
    faiss = _faiss()
    return faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)


def _faiss() -> Any:
    return require("faiss", why="searching videos")
