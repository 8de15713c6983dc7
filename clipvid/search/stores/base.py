"""Contract of a store: vectors of one width by id, with plain metadata, and the search for the nearest of them.

Contract: vectors are float32 of length 1, so inner products are cosines. A store does not lock: its caller (VideoIndex)
lets one thread change it, or any number search it. Knows nothing of videos or models.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from clipvid.errors import CheckpointError
from clipvid.runtime.files import read_file, require_regular
from clipvid.runtime.storage.schema import decode
from clipvid.search.queries.filters import Filter

ROWS, VECTORS, FORMAT = "rows.json", "vectors.npy", 1
"""Names of the files of a store that defines no `save` of its own, and the version of their format."""
Metadata = Mapping[str, Any]
"""Columns of one row, which filters compare: texts, finite numbers, truth values, or None for no value."""


class Match(NamedTuple):
    """One result of a search: the id of a row, and its inner product with the query."""

    id: str
    score: float


class Store(ABC):
    """Base of all stores; a member of `clipvid.registry.STORES` is a subclass of it.

    Args:
        width: number of components of a vector.
        kind: variant of the store's index, one of `kinds`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("flat",)
    """Variants of the index; the first is the default."""

    def __init__(self, width: int, *, kind: str = "flat") -> None:
        self.check(kind)
        self.width = width
        self.kind = kind

    @classmethod
    def check(cls, kind: str, rows: int | None = None) -> None:
        """Raise ValueError for an unknown kind, or for fewer `rows` than an index of this kind can be made of."""
        if kind not in cls.kinds:
            near = get_close_matches(str(kind), cls.kinds, n=1)
            advice = f"did you mean {near[0]}?" if near else "choose one"
            raise ValueError(f"kind must be one of {', '.join(cls.kinds)}, got {kind!r}; {advice}")

    @staticmethod
    def refuse_repeated(ids: Sequence[str], existing: Container[str]) -> None:
        """Raise ValueError for an id that exists or occurs twice."""
        if repeated := sorted(name for name, times in Counter(ids).items() if times > 1 or name in existing):
            raise ValueError(
                f"id {repeated[0]!r} is in the store already, or given twice; give it once, with upsert to replace it"
            )

    def checked_columns(
        self, ids: Sequence[str], vectors: Float32[ndarray, "n e"], metadata: Sequence[Metadata] | None
    ) -> list[dict[str, Any]]:
        """Return the metadata, empty for None; raise ValueError for rows that do not fit together or in the store."""
        columns = [{} for _ in ids] if metadata is None else [checked_metadata(each) for each in metadata]
        if not len(ids) == len(vectors) == len(columns):
            raise ValueError(
                f"ids, vectors and metadata must be of one length, got {len(ids)}, {len(vectors)} and {len(columns)}; "
                "give one entry per row"
            )
        if vectors.shape[1] != self.width:
            raise ValueError(f"vectors must have {self.width} components, got {vectors.shape[1]}; make another store")
        return columns

    @abstractmethod
    def add(
        self, ids: Sequence[str], vectors: Float32[ndarray, "n e"], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Append rows; raise ValueError, and change nothing, for an id that exists or occurs twice."""

    def upsert(
        self, ids: Sequence[str], vectors: Float32[ndarray, "n e"], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Append rows, in place of those that have these ids; if this fails, those stay, after all others."""
        self.checked_columns(ids, vectors, metadata)
        self.refuse_repeated(ids, ())
        replaced = sorted(self.existing(ids))
        if not replaced:
            self.add(ids, vectors, metadata)
            return
        stored = self.get(replaced)
        self.remove(replaced)
        try:
            self.add(ids, vectors, metadata)
        except BaseException:
            self.add(replaced, *stored)
            raise

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> int:
        """Remove the rows of these ids, and return how many there were; other ids are ignored."""

    @abstractmethod
    def search(self, vectors: Float32[ndarray, "q e"], k: int, where: Filter | None = None) -> list[list[Match]]:
        """Return at most `k` best rows for each query that pass the filter, best first.

        Exact searches list ties in the order in which rows were added.
        """

    @abstractmethod
    def get(self, ids: Sequence[str]) -> tuple[Float32[ndarray, "n e"], list[dict[str, Any]]]:
        """Return vectors and metadata of these ids; raise KeyError for an unknown one."""

    @abstractmethod
    def ids(self, where: Filter | None = None) -> list[str]:
        """Return the ids of all rows, or of those that pass the filter, in the order in which they were added."""

    def existing(self, ids: Iterable[str]) -> set[str]:
        """Return those of these ids that rows have."""
        return set(ids).intersection(self.ids())

    def rename(self, names: Mapping[str, str], *, column: str) -> None:
        """Give rows the ids in `names`, by their present ones, and the same value to a column; their order stays."""
        ids = self.ids()
        self.refuse_repeated([names.get(name, name) for name in ids], ())
        vectors, metadata = self.get(ids)
        renamed = [
            {**each, column: names[name]} if name in names else each for name, each in zip(ids, metadata, strict=True)
        ]
        self.remove(ids)
        try:
            self.add([names.get(name, name) for name in ids], vectors, renamed)
        except BaseException:
            self.add(ids, vectors, metadata)
            raise

    def count(self, where: Filter | None = None) -> int:
        """Return the number of rows, or of those that pass the filter."""
        return len(self.ids(where))

    def save(self, folder: Path) -> None:
        """Write the store to an empty folder; by default all vectors to one file, and all else to another."""
        ids = self.ids()
        vectors, metadata = self.get(ids)
        rows = {"format": FORMAT, "kind": self.kind, "width": self.width, "ids": ids, "metadata": metadata}
        (folder / ROWS).write_text(json.dumps(rows, allow_nan=False) + "\n", encoding="utf-8")
        np.save(folder / VECTORS, np.asarray(vectors, dtype=np.float32), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Store:
        """Read a store that `save` wrote; raise CheckpointError for damaged files."""
        rows = read_rows(folder / ROWS)
        vectors = _read_vectors(folder / VECTORS)
        try:
            if vectors.dtype != np.float32 or vectors.shape != (len(rows.ids), rows.width):
                raise ValueError(f"its vectors are {vectors.dtype} {vectors.shape}")
            if not np.isfinite(vectors).all():
                raise ValueError("its vectors are not finite")
            store = cls(rows.width, kind=rows.kind)
            store.add(rows.ids, vectors, rows.metadata)
        except ValueError as error:
            raise CheckpointError(f"{folder} is damaged ({error}); build the index again") from error
        return store

    def optimize(self) -> None:  # noqa: B027  # a store without such a step need not define it
        """Make searches fast after many changes; the content stays."""

    def close(self) -> None:  # noqa: B027  # a store in memory holds nothing open
        """Release files and connections; the store is not used afterwards."""


def _read_vectors(path: Path) -> ndarray:
    """Return the array of a file, which is mapped first: a file of an absurd shape is refused, not allocated."""
    try:
        require_regular(path)
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # NumPy parses the header as Python, and raises errors of many kinds
        raise CheckpointError(f"{path} is damaged ({error}); build the index again") from error


class StoredRows(msgspec.Struct):
    """Content of the file of ids and metadata of a saved store."""

    format: int
    ids: list[str]
    metadata: list[dict[str, str | int | float | bool | None]]
    kind: str = "flat"
    width: int = 0


def read_rows(path: Path) -> StoredRows:
    """Return ids, metadata and settings of a saved store; raise CheckpointError for a damaged file."""
    advice = "build the index again"
    try:
        content = read_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} is damaged ({error.strerror}); {advice}") from error
    rows = decode(content, StoredRows, source=path, error=CheckpointError, advice=advice)
    if rows.format != FORMAT:
        raise CheckpointError(f"{path} has format {rows.format}, this version of clipvid reads {FORMAT}; {advice}")
    if len(set(rows.ids)) != len(rows.ids) or len(rows.metadata) != len(rows.ids):
        raise CheckpointError(f"{path} is damaged (its ids or metadata do not fit); {advice}")
    return rows


def checked_metadata(columns: Metadata) -> dict[str, Any]:
    """Return the columns as a dict; raise ValueError for a value that is not plain, or not finite."""
    for column, value in columns.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(column, str) or not (value is None or isinstance(value, str | int | float)) or not finite:
            raise ValueError(
                f"metadata {column!r} must be a text, a finite number, a truth value or None, got {value!r}; convert it"
            )
    return dict(columns)
