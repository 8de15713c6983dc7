"""The videos of an index: their paths below a root that can move, and the content that was embedded.

Contract: plain data without vectors. An entry knows the hash and the stamp of its file, so that a file that has changed
or gone since is noticed. Changed by one thread at a time: VideoIndex holds the lock. Knows nothing of models or stores.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipvid.data.content import Stamp, content_hash, is_settled, remember, stamp_of
from clipvid.errors import VideoError
from clipvid.search.filters import Value
from clipvid.search.storage import IndexMetadata, root_of

GONE, CHANGED = "gone", "changed"
"""States of a file that is no longer the one that was embedded."""


@dataclass(frozen=True)
class Entry:
    """Content of one video."""

    content: str | None = None
    """Hash of the bytes that were embedded; None for an array, and if unknown, as in an index of an older format."""
    stamp: Stamp | None = None
    """Stamp of the file when it had these bytes; None too for a file that had just changed."""


class Catalog:
    """The videos of an index in the order in which they were added, and the files that were skipped.

    Args:
        root: folder below which paths are stored relative to it; None before the first videos are added.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self.entries: dict[Path, Entry] = {}
        self.skipped: dict[Path, VideoError] = {}
        self._paths_by_content: dict[str, dict[Path, None]] = {}

    @classmethod
    def of(cls, metadata: IndexMetadata, folder: Path, root: str | Path | None) -> Catalog:
        """Return the catalog of a saved index, whose stamps spare files the hashing."""
        catalog = cls(root_of(metadata, folder, root))
        for video in metadata.videos:
            path = Path(video.path) if video.array else catalog.path_of(video.path)
            catalog.add(path, Entry(video.content, video.stamp))
            if video.content and video.stamp is not None:
                remember(video.stamp, video.content)
        for name, reason, backend in metadata.skipped:
            catalog.skipped[Path(name)] = VideoError(name, reason, backend=backend)
        return catalog

    def choose_root(self, paths: Iterable[Path]) -> None:
        """Take the folder that all these paths have in common as the root, unless there is one or any video."""
        folders = {str(path.parent) for path in paths if path.is_absolute()}
        if self.root is None and not self.entries and folders:
            try:
                common = Path(os.path.commonpath(folders))
            except ValueError:  # several drives
                return
            self.root = None if common == Path(common.anchor) else common

    def id_of(self, path: Path) -> str:
        """Return the id of a video in the store: its path below the root, else its absolute path."""
        if self.root is not None and path.is_relative_to(self.root):
            return path.relative_to(self.root).as_posix()
        return str(path)

    def path_of(self, name: str) -> Path:
        """Return the path of a video by its id: absolute, but for an array, which has a name alone."""
        path = Path(name)
        return path if self.root is None or path in self.entries else self.root / path

    def add(self, path: Path, entry: Entry) -> None:
        """Append a video, which is no longer skipped."""
        self.remove([path])
        self.entries[path] = entry
        self.skipped.pop(path, None)
        if entry.content:
            self._paths_by_content.setdefault(entry.content, {})[path] = None

    def remove(self, paths: Iterable[Path]) -> list[Path]:
        """Remove these videos, and return those that there were."""
        removed = [path for path in paths if path in self.entries]
        for path in removed:
            content = self.entries.pop(path).content
            if content:
                self._paths_by_content[content].pop(path)
        return removed

    def equal_to(self, content: str, *, without: Collection[Path]) -> str | None:
        """Return the id of a video with this content that is not among some paths; None if there is none."""
        equal = (path for path in self._paths_by_content.get(content, ()) if path not in without)
        return next(map(self.id_of, equal), None)

    def value_of(self, value: Value) -> Value:
        """Return what the store's column path has for a path in a filter.

        A relative path is one of the working directory, else one below the root, else the name of an array.
        """
        if not isinstance(value, str):
            return value
        absolute = Path(os.path.abspath(value))
        is_id = absolute not in self.entries and self.path_of(value) in self.entries
        return value if is_id else self.id_of(absolute)

    def state_of(self, path: Path) -> str | None:
        """Return GONE or CHANGED for a file that is not the one that was embedded, else None.

        None too for an array, and for videos below a root that does not exist: the index was moved without them.
        """
        entry = self.entries[path]
        if not path.is_absolute() or (self.root is not None and not self.root.is_dir()):
            return None
        try:
            stamp = stamp_of(path)
            is_same = stamp == entry.stamp or entry.content in (None, content_hash(path))
        except OSError:
            return GONE
        return None if is_same else CHANGED

    def outdated(self) -> dict[Path, str]:
        """Return the videos whose files have changed or gone, each with its state."""
        states = ((path, self.state_of(path)) for path in tuple(self.entries))
        return {path: state for path, state in states if state is not None}


def stamps_of(paths: Sequence[Path]) -> dict[Path, Stamp]:
    """Return the stamps of the files that exist."""
    stamps = {}
    for path in paths:
        try:
            stamps[path] = stamp_of(path)
        except OSError:
            continue
    return stamps


def entry_of(path: Path, before: Stamp | None) -> Entry:
    """Return the entry of a file that had the stamp `before` when it was opened.

    A file that has changed meanwhile gets a hash that no file has, so that it counts as changed.
    """
    try:
        content, stamp = content_hash(path), stamp_of(path)
    except OSError:
        return Entry("")
    if stamp != before:
        return Entry("")
    return Entry(content, stamp if is_settled(stamp) else None)
