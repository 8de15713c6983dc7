"""The contents of an index in a folder: saved, read again and changed, also without the model.

Contract: a save replaces the folder whole, and refuses to replace a version that another process has saved since.
Threads may search meanwhile. Knows nothing of models.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipvid.config import checks
from clipvid.config.data_config import DataConfig
from clipvid.errors import CheckpointError
from clipvid.runtime.files import atomic_folder
from clipvid.runtime.signals import uninterrupted
from clipvid.runtime.storage.folder_lock import lock_folder
from clipvid.runtime.storage.manifest import seal
from clipvid.search.folder.catalog import Catalog
from clipvid.search.folder.contents import PATH, IndexContents
from clipvid.search.folder.storage import (
    METADATA,
    READ_AS,
    STORE,
    IndexMetadata,
    VideoEntry,
    check_replaceable,
    data_config_of,
    encoded,
    read_index,
    saved_id,
)
from clipvid.search.stores.base import Store

SAVE_EVERY = 300.0
"""Seconds between the saves of an index that is being filled."""
WAIT = 600.0
"""Seconds for which a save waits for another one of the same folder."""


class SavedContents(IndexContents):
    """Base of `VideoIndex`: everything but models and the reading of videos."""

    def __init__(self, fingerprint: str, data_config: DataConfig, *, store: str, kind: str) -> None:
        super().__init__(fingerprint, data_config, store=store, kind=kind)
        self._saved: dict[str, str] = {}  # id of the version that this object last read from or saved to each folder
        self._saving_to: Path | None = None
        self._last_save = 0.0

    def save(self, folder: str | Path) -> Path:
        """Write the index to `folder` as a whole, replacing an existing index.

        Raises ValueError for a folder of other files, and CheckpointError if the index there is another version than
        the one that this object read from or saved to the folder: it would be lost.
        """
        folder = checks.path("folder", folder)
        check_replaceable(folder)
        with uninterrupted(), lock_folder(folder, outside=True, wait=WAIT, again=True), self._changing.exclusive():
            self._check_version(folder)
            self._widen_root()
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
        folder, key = Path(folder), os.path.abspath(folder)
        check_replaceable(folder)
        is_ours = key in self._saved
        before = self._saved.setdefault(key, "" if is_ours else self._replaceable_id(folder) or "")
        with lock_folder(folder, outside=True, wait=WAIT, again=True):
            self._check_version(folder)
            self._saving_to, self._last_save = folder, time.monotonic()

            def save_at_the_end() -> None:
                with uninterrupted():
                    if self._saving_to is not None:
                        self._saving_to = None
                        # An empty index is saved over contents that this object read or saved, but not over others.
                        if self.paths or self.skipped or is_ours or self._saved[key] != before:
                            self.save(folder)

            try:
                try:
                    yield
                finally:
                    save_at_the_end()
            finally:  # a signal may have come just before the line above
                save_at_the_end()

    def _save_on_the_way(self) -> None:
        """Save if a block of `saving_to` has lasted for a while since the last save."""
        if self._saving_to is not None and time.monotonic() - self._last_save > SAVE_EVERY:
            self.save(self._saving_to)
            self._last_save = time.monotonic()

    def _replaceable_id(self, folder: Path) -> str | None:
        """Return the id of the index in a folder; None for one whose metadata are damaged, which may be replaced."""
        try:
            return saved_id(folder)
        except CheckpointError:
            return None

    def _check_version(self, folder: Path) -> None:
        ours = self._saved.get(os.path.abspath(folder))
        theirs = saved_id(folder) if ours else self._replaceable_id(folder)
        if ours is not None and theirs is not None and ours != theirs:
            raise CheckpointError(
                f"{folder} was saved by another process since this index was read from it, and would be lost; load it "
                "and add the videos again, or save to another folder"
            )

    def _widen_root(self) -> None:
        """Move the root up if there are videos outside it; the caller holds the lock of changes."""
        with self._lock.exclusive():
            names = self._catalog.widen_root()
            if names and self._vectors is not None:
                self._vectors.rename(names, column=PATH)

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
            skipped=[(catalog.id_of(path), e.reason, e.backend) for path, e in catalog.skipped.items()],
            note=self.note,
        )

    def _restore(self, metadata: IndexMetadata, store: Store | None, folder: Path, root: str | Path | None) -> None:
        """Take the contents of a saved index."""
        self.note, self._vectors = metadata.note, store
        self._catalog = Catalog.of(metadata, folder, root)
        ids = {video.path: self._catalog.id_of(Path(video.path)) for video in metadata.videos if video.array}
        if store is not None and any(old != new for old, new in ids.items()):  # written without the mark of an array
            store.rename(ids, column=PATH)
        self._saved[os.path.abspath(folder)] = metadata.id


@contextmanager
def changing_contents(folder: str | Path, *, root: str | Path | None = None) -> Iterator[SavedContents]:
    """Load an index without its model, yield it to remove videos, and save it at the end of the block.

    As with `VideoIndex.changing`, no other process can save to the folder meanwhile.
    """
    folder = checks.path("folder", folder, must="the folder of a saved index")
    with lock_folder(folder, outside=True, wait=WAIT, again=True):
        metadata, store = read_index(folder)
        contents = SavedContents(
            metadata.fingerprint, data_config_of(metadata), store=metadata.store, kind=metadata.kind
        )
        contents._restore(metadata, store, folder, root)  # pyright: ignore[reportPrivateUsage]  # the class is above
        with contents.saving_to(folder):
            yield contents


def _relative(root: str, folder: Path) -> str | None:
    try:
        return os.path.relpath(root, os.path.abspath(folder))
    except ValueError:  # another drive
        return None
