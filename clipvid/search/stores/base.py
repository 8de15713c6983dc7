"""Contract of a store: vectors of one width by id, with plain metadata, and the search for the nearest of them.

Contract: vectors are float32 of length 1, so inner products are cosines. A store is changed by one thread at a time
and may be searched by many meanwhile the caller holds its lock (VideoIndex does). Knows nothing of videos or models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float32
from numpy import ndarray

from clipvid.search.filters import Filter

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
        self.width, self.kind = width, kind

    @classmethod
    def check(cls, kind: str, rows: int | None = None) -> None:
        """Raise ValueError for an unknown kind, or for fewer `rows` than an index of this kind can be made of."""
        if kind not in cls.kinds:
            raise ValueError(f"kind must be one of {', '.join(cls.kinds)}, got {kind!r}")

    @abstractmethod
    def add(
        self, ids: Sequence[str], vectors: Float32[ndarray, "n e"], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Append rows; raise ValueError, and change nothing, for an id that exists or occurs twice."""

    def upsert(
        self, ids: Sequence[str], vectors: Float32[ndarray, "n e"], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Append rows, in place of those that have these ids."""
        self.remove(ids)
        self.add(ids, vectors, metadata)

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> int:
        """Remove the rows of these ids, and return how many there were; other ids are ignored."""

    @abstractmethod
    def search(self, vectors: Float32[ndarray, "q e"], k: int, where: Filter | None = None) -> list[list[Match]]:
        """Return at most `k` best rows for each query that pass the filter, best first.

        Ties are in the order in which rows were added, so that every machine agrees.
        """

    @abstractmethod
    def get(self, ids: Sequence[str]) -> tuple[Float32[ndarray, "n e"], list[dict[str, Any]]]:
        """Return vectors and metadata of these ids; raise KeyError for an unknown one."""

    @abstractmethod
    def count(self, where: Filter | None = None) -> int:
        """Return the number of rows, or of those that pass the filter."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the store to an empty folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Store:
        """Read a store that `save` wrote; raise CheckpointError for damaged files."""

    def optimize(self) -> None:  # noqa: B027  # a store without such a step need not define it
        """Make searches fast after many changes; the content stays."""

    def close(self) -> None:  # noqa: B027  # a store in memory holds nothing open
        """Release files and connections; the store is not used afterwards."""
