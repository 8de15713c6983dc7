"""The contents of an index: its videos, their vectors and the files that were skipped, changed as one.

Contract: any number of threads read while one changes them, and each sees a consistent state. Knows nothing of models
or of saved indices.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from clipvid.config.data_config import DataConfig
from clipvid.errors import ClipvidWarning, VideoError
from clipvid.registry import STORES
from clipvid.runtime.locks import SharedLock
from clipvid.runtime.text import pluralize
from clipvid.search.folder.catalog import Catalog, Entry
from clipvid.search.hits import Hit, IndexTable
from clipvid.search.queries.where import describe_no_hits, filter_of
from clipvid.search.stores.base import Store

PATH = "path"
"""Column of the store with the id of a video, for filters."""


class IndexContents(IndexTable):
    """Base of `SavedContents`: everything but files, models and the reading of videos."""

    def __init__(self, fingerprint: str, data_config: DataConfig, *, store: str, kind: str) -> None:
        self._new_store: type[Store] = STORES.lookup(store)
        self._new_store.check(kind)
        self.store, self.kind, self.data_config = store, kind, data_config
        self._fingerprint = fingerprint
        self.note: dict[str, str | None] = {}  # saved with the index; the command line stores the model's name in it
        self._catalog = Catalog()
        self._vectors: Store | None = None  # made when the first embedding gives the width
        self._lock = SharedLock()  # guards the two attributes above, because they change together
        self._changing = SharedLock()  # held by one change or one save at a time, which searches need not wait for

    @property
    def paths(self) -> tuple[Path, ...]:
        """Absolute paths of the indexed videos."""
        with self._lock.shared():
            return tuple(self._catalog.entries)

    @property
    def skipped(self) -> tuple[VideoError, ...]:
        """Errors of the files that could not be read and are not in the index."""
        with self._lock.shared():
            return tuple(self._catalog.skipped.values())

    @property
    def root(self) -> Path | None:
        """Folder below which videos are stored by relative paths; None before any, and for videos on several drives."""
        return self._catalog.root

    def outdated(self) -> dict[Path, str]:
        """Return the videos whose files are no longer those that were embedded: "changed", "gone" or "unreadable".

        A file is unreadable if it is unknown whether it has changed, as without permission or on a volume that fails.
        """
        return self._copied().outdated()

    def _copied(self, paths: Iterable[Path] | None = None) -> Catalog:
        """Return a catalog of these videos, all without any, to compare files while others change the index."""
        with self._lock.shared():
            return self._catalog.copy_of(self._catalog.entries if paths is None else paths)

    def remove(self, paths: Iterable[str | Path]) -> int:
        """Remove videos from the index, and return how many there were; their files stay."""
        names = list(map(Path, paths))
        with self._changing.exclusive(), self._lock.exclusive():
            indexed = self._catalog.entries
            return len(self._drop([path if path in indexed else Path(os.path.abspath(path)) for path in names]))

    def __len__(self) -> int:
        with self._lock.shared():
            return len(self._catalog.entries)

    def __repr__(self) -> str:
        skipped = f", {len(self._catalog.skipped)} skipped" if self._catalog.skipped else ""
        kind, frames = "" if self.kind == "flat" else f", {self.kind}", pluralize(self.data_config.frames, "frame")
        return f"VideoIndex({pluralize(len(self), 'video')}{skipped}, {frames} each{kind})"

    def _nearest(self, queries: Float32[ndarray, "q e"], k: int, where: str | None = None) -> list[list[Hit]]:
        """Return the `k` videos nearest to each vector of length 1, if they pass the filter; warn if none does."""
        with self._lock.shared():
            catalog = self._catalog
            if not catalog.entries or self._vectors is None:
                n_skipped = len(catalog.skipped)
                skipped = f"; {pluralize(n_skipped, 'file')} skipped, see .skipped" if n_skipped else ""
                raise ValueError(f"the index is empty{skipped}; add videos first")
            if queries.shape[1] != self._vectors.width:
                raise ValueError(
                    f"the query must have {self._vectors.width} numbers, as the embeddings of this index, got "
                    f"{queries.shape[1]}; embed it with the model of the index"
                )
            if not np.isfinite(queries).all():
                raise ValueError("the query's embedding is not finite; check the query and the model's weights")
            condition = filter_of(where, catalog.value_of)
            matches = self._vectors.search(queries, min(k, len(catalog.entries)), condition)
            note = None if condition is None or any(matches) else describe_no_hits(str(where), condition, self._vectors)
            paths = {match.id: catalog.path_of(match.id) for each in matches for match in each}
            searched = catalog.copy_of(paths.values())
        if note is not None:
            warnings.warn(note, ClipvidWarning, stacklevel=3)
        states = searched.outdated()  # compares files, for which no other thread must wait
        return [
            [
                Hit(path := paths[match.id], match.score, rank, states.get(path))
                for rank, match in enumerate(each, start=1)
            ]
            for each in matches
        ]

    def _record_skipped(self, errors: Iterable[VideoError]) -> None:
        """Add unreadable files to `skipped`, and remove their rows from the index."""
        skipped = {Path(error.path): error for error in errors}
        if skipped:
            with self._changing.exclusive(), self._lock.exclusive():
                self._drop(skipped)
                self._catalog.skipped |= skipped

    def _put(
        self,
        paths: Sequence[Path],
        embeddings: Float32[ndarray, "b e"],
        *,
        entries: Mapping[Path, Entry] = MappingProxyType({}),
        labels: Mapping[Path, str] = MappingProxyType({}),
    ) -> None:
        """Store the embeddings of these videos, replacing earlier ones, with path and label for filters."""
        bad = [path for path, row in zip(paths, embeddings, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise ValueError(f"the model's embedding of {bad[0]} is not finite; check the model's weights")
        with self._changing.exclusive(), self._lock.exclusive():
            if self._vectors is None:
                self._vectors = self._new_store(embeddings.shape[1], kind=self.kind)
            ids = {path: self._catalog.id_of(path) for path in paths}
            columns = [{PATH: name, "label": labels.get(path)} for path, name in ids.items()]
            self._vectors.upsert(list(ids.values()), embeddings, columns)
            for path in paths:
                self._catalog.add(path, entries.get(path, Entry()))

    def _as_equals(
        self, paths: Sequence[Path], embeddings: Float32[ndarray, "b e"], entries: Mapping[Path, Entry]
    ) -> Float32[ndarray, "b e"]:
        """Return the embeddings, those of copies of one file replaced by the first, so that copies tie exactly.

        What is computed for a clip depends on the other clips of its batch in the last digits.
        """
        first: dict[str, ndarray] = {}
        result = embeddings.copy()
        with self._lock.shared():
            for row, path in enumerate(paths):
                content = entries[path].content if path in entries else None
                if not content:
                    continue
                if content not in first:
                    equal = self._catalog.equal_to(content, without=paths)
                    indexed = None if equal is None or self._vectors is None else self._vectors.get([equal])[0][0]
                    first[content] = embeddings[row] if indexed is None else indexed
                result[row] = first[content]
        return result

    def _labels(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Return the labels of those of these videos that have one."""
        with self._lock.shared():
            indexed = [path for path in paths if path in self._catalog.entries]
            if not indexed or self._vectors is None:
                return {}
            _, rows = self._vectors.get([self._catalog.id_of(path) for path in indexed])
        return {path: row["label"] for path, row in zip(indexed, rows, strict=True) if row.get("label") is not None}

    def _drop(self, paths: Iterable[Path]) -> list[Path]:
        """Remove the rows of these videos, and return those that there were; the caller holds the lock."""
        removed = self._catalog.remove(paths)
        if removed and self._vectors is not None:
            self._vectors.remove([self._catalog.id_of(path) for path in removed])
        return removed

    def _forget(self, paths: Iterable[Path]) -> None:
        """Remove videos and skipped files whose files have gone."""
        with self._changing.exclusive(), self._lock.exclusive():
            self._drop(paths)
            for path in paths:
                self._catalog.skipped.pop(path, None)

    @contextmanager
    def _replaced(self, paths: Iterable[Path]) -> Iterator[None]:
        """Take out at once the videos that the block embeds again, and bring back those that it did not come to.

        Each removal rebuilds an hnsw graph, so they are not replaced batch by batch. Until they are embedded they count
        as skipped, and a process that is killed meanwhile leaves them to the next refresh.
        """
        with self._changing.exclusive(), self._lock.exclusive():
            earlier = self._catalog.copy_of(path for path in paths if path in self._catalog.entries)
            waiting = {path: VideoError(path, "changed, and not embedded again yet") for path in earlier.entries}
            if not waiting or self._vectors is None:
                waiting, stored = {}, None
            else:
                stored = self._vectors.get([self._catalog.id_of(path) for path in waiting])
                self._drop(waiting)
                self._catalog.skipped |= waiting
        try:
            yield
        finally:
            with self._changing.exclusive(), self._lock.exclusive():
                left = [i for i, path in enumerate(waiting) if self._catalog.skipped.get(path) is waiting[path]]
                if left and stored is not None and self._vectors is not None:
                    self._bring_back([(path, earlier.entries[path]) for path in waiting], left, *stored)

    def _bring_back(
        self,
        videos: Sequence[tuple[Path, Entry]],
        chosen: Sequence[int],
        vectors: Float32[ndarray, "n e"],
        columns: Sequence[Mapping[str, object]],
    ) -> None:
        """Add the chosen ones of some videos as they were; the caller holds the lock."""
        assert self._vectors is not None, "the videos come from it"
        ids = [self._catalog.id_of(videos[i][0]) for i in chosen]
        rows = [{**columns[i], PATH: name} for i, name in zip(chosen, ids, strict=True)]
        self._vectors.add(ids, vectors[list(chosen)], rows)
        for i in chosen:
            self._catalog.add(*videos[i])
