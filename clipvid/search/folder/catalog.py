"""The videos of an index: their paths below a root that can move, and the content that was embedded.

Contract: plain data without vectors. An entry knows the hash and the stamp of its file, so that a file that has changed
or gone since is noticed. Changed by one thread at a time: VideoIndex holds the lock. Knows nothing of models or stores.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from clipvid.data.probing.content import Stamp, content_hash, remember, stamp_of
from clipvid.errors import VideoError
from clipvid.search.folder.storage import IndexMetadata, root_of
from clipvid.search.queries.filters import Value

GONE, CHANGED, UNREADABLE = "gone", "changed", "unreadable"
"""States of a file that is not, or not known to be, the one that was embedded. A file is gone only where the system
says that it does not exist: any other error, as of a volume or of permissions, leaves its state open."""
MISSING = (FileNotFoundError, NotADirectoryError)
"""Errors of the system for a file that does not exist."""
ARRAY = "./"
"""Beginning of the id of an array. No file has such an id, because paths have no component `.`."""


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
            path = catalog.path_of(name)
            if metadata.root is not None and catalog.root is not None and path.is_relative_to(metadata.root):
                path = catalog.root / path.relative_to(metadata.root)  # some versions wrote absolute paths
            catalog.skipped[path] = VideoError(path, reason, backend=backend)
        return catalog

    def choose_root(self, paths: Iterable[Path]) -> None:
        """Take the folder that all these paths have in common as the root, unless there is one or any video."""
        if self.root is None and not self.entries:
            self.root = _common_folder(path.parent for path in paths if path.is_absolute())

    def widen_root(self) -> dict[str, str]:
        """Move the root up until all videos and skipped files are below it, and return new ids by the old.

        The root stays, and nothing is returned, for files that have no folder but that of the whole drive in common,
        and where the root does not exist: below a wider one its videos would count as gone, and not as moved.
        """
        files = [path for path in (*self.entries, *self.skipped) if path.is_absolute()]
        if self.root is None or not os.path.isdir(self.root):
            return {}
        below = os.path.join(self.root, "")
        if all(str(path).startswith(below) for path in files):
            return {}
        root = _common_folder([self.root, *(path.parent for path in files)])
        if root is None:
            return {}
        earlier = [self.id_of(path) for path in self.entries]
        self.root = root
        later = map(self.id_of, self.entries)
        return {old: new for old, new in zip(earlier, later, strict=True) if old != new}

    def id_of(self, path: Path) -> str:
        """Return the id of a video in the store: its path below the root, else an absolute path; ./NAME of an array."""
        if not path.is_absolute():
            return f"{ARRAY}{path.as_posix()}"
        if self.root is not None:
            text, below = str(path), os.path.join(self.root, "")
            if text.startswith(below):  # several times as fast as the methods of Path
                return text[len(below) :].replace(os.sep, "/")
            if path.is_relative_to(self.root):  # in other capitals, on Windows
                return path.relative_to(self.root).as_posix()
        return str(path)

    def path_of(self, name: str) -> Path:
        """Return the path of a video by its id: absolute, but for an array, which has a name alone."""
        return Path(name) if self.root is None or name.startswith(ARRAY) else self.root / name

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
        candidates = [absolute, Path(value) if self.root is None else self.root / value, Path(value)]
        return self.id_of(next((path for path in candidates if path in self.entries), absolute))

    def copy_of(self, paths: Iterable[Path]) -> Catalog:
        """Return a catalog of these videos alone, whose files can be compared while this one changes."""
        catalog = Catalog(self.root)
        catalog.entries = {path: self.entries[path] for path in paths}
        return catalog

    def outdated(self) -> dict[Path, str]:
        """Return the videos whose files are GONE, CHANGED or UNREADABLE, each with its state.

        Arrays have no files, and videos below a root that does not exist are none of these: the index was moved without
        them.
        """
        states = {path: self._state_of(path) for path in self._checkable(self.entries)}
        return {path: state for path, state in states.items() if state is not None}

    def missing(self, paths: Iterable[Path]) -> list[Path]:
        """Return those of the files that do not exist, without those below a root that does not exist."""
        return [path for path in self._checkable(paths) if _is_missing(path)]

    def _checkable(self, paths: Iterable[Path]) -> list[Path]:
        """Return the files among these paths, without those below a root that does not exist."""
        moved = self.root if self.root is not None and _is_missing(self.root) else None
        return [path for path in paths if path.is_absolute() and not (moved and path.is_relative_to(moved))]

    def _state_of(self, path: Path) -> str | None:
        entry = self.entries[path]
        try:
            is_same = stamp_of(path) == entry.stamp or entry.content in (None, content_hash(path))
        except MISSING:
            return GONE
        except OSError:
            return UNREADABLE
        return None if is_same else CHANGED


def _common_folder(folders: Iterable[Path]) -> Path | None:
    """Return the folder that all these have in common; None for several drives, a drive as such, and no folder."""
    try:
        common = Path(os.path.commonpath({str(folder) for folder in folders}))
    except ValueError:
        return None
    return None if common == Path(common.anchor) else common


def _is_missing(path: Path) -> bool:
    """Return True if the system says that there is no such file; False for one that it cannot look up."""
    try:
        path.stat()
    except MISSING:
        return True
    except OSError:
        return False
    return False


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
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
    return Entry(content, stamp if stamp.is_settled else None)
