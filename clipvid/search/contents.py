"""The contents of an index: its videos, their vectors and the files that were skipped, changed and saved as one.

Contract: any number of threads read while one changes or saves, and each sees a consistent state. A save replaces the
folder whole, and refuses to replace a version that somebody else has saved since. Knows nothing of models.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from clipvid.config import checks
from clipvid.config.data_config import DataConfig
from clipvid.errors import CheckpointError, ClipvidWarning, VideoError
from clipvid.registry import STORES
from clipvid.runtime.files import atomic_folder
from clipvid.runtime.folder_lock import lock_folder
from clipvid.runtime.locks import SharedLock
from clipvid.runtime.manifest import seal
from clipvid.runtime.signals import uninterrupted
from clipvid.runtime.text import pluralize
from clipvid.search.catalog import Catalog, Entry
from clipvid.search.hits import Hit, IndexTable
from clipvid.search.storage import (
    METADATA,
    READ_AS,
    STORE,
    IndexMetadata,
    VideoEntry,
    check_replaceable,
    encoded,
    saved_id,
)
from clipvid.search.stores.base import Store
from clipvid.search.where import describe_no_hits, filter_of

SAVE_EVERY = 300.0
"""Seconds between the saves of an index that is being filled."""
WAIT = 600.0
"""Seconds for which a save waits for another one of the same folder."""


class IndexContents(IndexTable):
    """Base of `VideoIndex`: everything but models and the reading of videos."""

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
        self._saved: dict[str, str] = {}  # id of the version that this object last read from or saved to each folder
        self._saving_to: Path | None = None
        self._last_save = 0.0

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
        """Return the videos whose files have changed or gone since they were embedded: "changed" or "gone" by path."""
        with self._lock.shared():
            return self._catalog.outdated()

    def remove(self, paths: Iterable[str | Path]) -> int:
        """Remove videos from the index, and return how many there were; their files stay."""
        absolute = [path if path.is_absolute() else self._named(path) for path in map(Path, paths)]
        with self._changing.exclusive(), self._lock.exclusive():
            return len(self._drop(absolute))

    def _named(self, path: Path) -> Path:
        """Return an indexed name as it is, and any other relative path as an absolute one."""
        return path if path in self._catalog.entries else Path(os.path.abspath(path))

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
            hits = [
                [
                    Hit(path := catalog.path_of(match.id), match.score, rank, catalog.state_of(path))
                    for rank, match in enumerate(each, start=1)
                ]
                for each in matches
            ]
        if note is not None:
            warnings.warn(note, ClipvidWarning, stacklevel=3)
        return hits

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
            columns = [{"path": name, "label": labels.get(path)} for path, name in ids.items()]
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

    def save(self, folder: str | Path) -> Path:
        """Write the index to `folder` as a whole, replacing an existing index.

        Raises ValueError for a folder of other files, and CheckpointError if the index there is another version than
        the one that this object read from or saved to the folder: it would be lost.
        """
        folder = checks.path("folder", folder)
        check_replaceable(folder)
        with uninterrupted(), lock_folder(folder, outside=True, wait=WAIT, again=True), self._changing.exclusive():
            self._check_version(folder)
            metadata = self._metadata(folder)
            with atomic_folder(folder) as draft:
                (draft / METADATA).write_bytes(encoded(metadata))
                if self._vectors is not None:
                    (draft / STORE).mkdir()
                    self._vectors.save(draft / STORE)
                seal(draft)
            self._saved[os.path.abspath(folder)] = metadata.id
        return folder

    @contextmanager
    def saving_to(self, folder: str | Path) -> Iterator[None]:
        """Save to `folder` at the end of the block, also if it is interrupted or fails, and every few minutes in it.

        Other processes can save to the folder only after the block. Raises CheckpointError if one of them saved while
        this block waited for it.
        """
        folder = Path(folder)
        check_replaceable(folder)
        self._saved.setdefault(os.path.abspath(folder), saved_id(folder) or "")
        with lock_folder(folder, outside=True, wait=WAIT, again=True):
            self._check_version(folder)
            self._saving_to, self._last_save = folder, time.monotonic()
            try:
                try:
                    yield
                finally:
                    self._last_save_of_block(folder)
            finally:  # a signal may have come just before the line above
                self._last_save_of_block(folder)

    def _last_save_of_block(self, folder: Path) -> None:
        """Save at the end of a block of `saving_to`, if that has not been done yet."""
        with uninterrupted():
            if self._saving_to is not None:
                self._saving_to = None
                if self.paths or self.skipped:
                    self.save(folder)

    def _save_on_the_way(self) -> None:
        """Save if a block of `saving_to` has lasted for a while since the last save."""
        if self._saving_to is not None and time.monotonic() - self._last_save > SAVE_EVERY:
            self.save(self._saving_to)
            self._last_save = time.monotonic()

    def _check_version(self, folder: Path) -> None:
        ours, theirs = self._saved.get(os.path.abspath(folder)), saved_id(folder)
        if ours is not None and theirs is not None and ours != theirs:
            raise CheckpointError(
                f"{folder} was saved by somebody else since this index was read from it, and would be lost; load it "
                "and add the videos again, or save to another folder"
            )

    def _metadata(self, folder: Path) -> IndexMetadata:
        catalog = self._catalog
        root = None if catalog.root is None else str(catalog.root)
        return IndexMetadata(
            id=uuid.uuid4().hex,
            fingerprint=self._fingerprint,
            store=self.store,
            kind=self.kind,
            **{name: getattr(self.data_config, name) for name in READ_AS},
            root=root,
            root_from_index=None if root is None else _relative(root, folder),
            videos=[
                VideoEntry(catalog.id_of(path), entry.content, entry.stamp, not path.is_absolute())
                for path, entry in catalog.entries.items()
            ],
            skipped=[(str(e.path), e.reason, e.backend) for e in catalog.skipped.values()],
            note=self.note,
        )

    def _restore(self, metadata: IndexMetadata, store: Store | None, folder: Path, root: str | Path | None) -> None:
        """Take the contents of a saved index."""
        self.note, self._vectors = metadata.note, store
        self._catalog = Catalog.of(metadata, folder, root)
        self._saved[os.path.abspath(folder)] = metadata.id


def _relative(root: str, folder: Path) -> str | None:
    try:
        return os.path.relpath(root, os.path.abspath(folder))
    except ValueError:  # another drive
        return None
