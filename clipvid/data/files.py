"""Finding clips on the disk: which suffixes count, and which folders are walked.

Contract: orders are sorted, hence the same on every machine; hidden files and folders are never entered.
Knows nothing of annotations or of what files show.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from clipvid.video.decode import pictures_in

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
"""Suffixes, in lower case, of files taken for videos."""


def is_video(path: Path) -> bool:
    """Whether the name says that a file is a video; the suffix counts in upper case too."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_videos(folder: Path, *, bare: bool = False) -> list[Path]:
    """Every video below `folder`, sorted; with `bare`, files without any suffix too. Links are followed, once each."""
    found: list[Path] = []
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # a link that leads back up
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(parent, name) for name in names if not name.startswith("."))
        found += [path for path in files if is_video(path) or (bare and not path.suffix)]
    return sorted(found)


def find_clips(folder: Path, *, bare: bool = False) -> list[Path]:
    """Every video below `folder`; where there is none, the pictures below it, sorted.

    A folder below that holds pictures and nothing deeper is one clip, any other picture is a clip of one frame.
    """
    return find_videos(folder, bare=bare) or sorted(_picture_clips(folder, entered=set()))


def _picture_clips(folder: Path, *, entered: set[str]) -> list[Path]:
    top = not entered
    real = os.path.realpath(folder)
    if real in entered:  # a link that leads back up
        return []
    entered.add(real)
    deeper = [clip for below in subfolders(folder) for clip in _picture_clips(below, entered=entered)]
    own = pictures_in(folder)
    return [folder] if own and not deeper and not top else [*own, *deeper]


def clip_exists(path: Path) -> bool:
    """Whether `path` is a file or a folder of pictures."""
    return exists(path) or (path.is_dir() and bool(pictures_in(path)))


def files_of(clip: Path) -> list[Path]:
    """The files of a clip: itself, or the pictures of a folder."""
    return pictures_in(clip) if clip.is_dir() else [clip]


def content_hash(clip: Path) -> str:
    """SHA-256 of size, first, middle and last 64 KiB of each file: equal for copies, and read in a moment."""
    digest, part = hashlib.sha256(), 1 << 16
    for name in files_of(clip):
        size = name.stat().st_size
        with name.open("rb") as file:
            digest.update(str(size).encode())
            for start in (0, size // 2, size - part):
                file.seek(max(0, start))
                digest.update(file.read(part))
    return digest.hexdigest()


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in `folder`, sorted by name, without the hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def exists(path: Path) -> bool:
    """Whether `path` is a file; a name that the file system cannot hold is not."""
    try:
        return path.is_file()
    except OSError:
        return False
