"""Search for the video files of a data set by the names in its annotations.

Contract: a folder and an entry in, a path out. Knows nothing of annotation formats.
"""

from __future__ import annotations

import os
from pathlib import Path

from clipvid.data.files import VIDEO_SUFFIXES, discover
from clipvid.data.formats.annotations import Entry
from clipvid.data.probing.content import content_hash
from clipvid.errors import DataError
from clipvid.runtime.display.names import show_several


def stem_of(video: str) -> str:
    """Return the name of a video without folder and video suffix; a name without suffix loses its trailing dots."""
    name = name_of(video)
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name.rstrip(".")  # the name may be an id that contains dots


def name_of(path: str) -> str:
    """Return the last part of a path. Lists have tens of thousands, and a Path takes five times as long to make."""
    return os.path.basename(path.rstrip("/"))


def expected_name(entry: Entry) -> str:
    """Return the likely file name of an entry, for files that are missing or not checked."""
    is_file = os.path.splitext(entry.video)[1].lower() in VIDEO_SUFFIXES
    return entry.video if is_file else f"{entry.video.rstrip('.')}.mp4"


class VideoFiles:
    """Index of clips below a folder by name, ignoring suffix and case."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, list[Path]] = {}
        for path in discover(root).clips:
            name = path.name if path.is_dir() else path.stem  # folder names may contain dots
            self.files.setdefault(name.lower(), []).append(path)

    def find(self, entry: Entry) -> Path | None:
        """Return the file of an entry, or None; of several, the one in the folder that the entry names.

        Raises DataError if several are left that differ, such as a video in two sizes.
        """
        stem = stem_of(entry.video).lower()
        names = [stem]
        if entry.start is not None and entry.end is not None:  # Kinetics' file names contain the times
            times = f"{round(entry.start):06d}_{round(entry.end):06d}"
            names = [f"{stem}_{times}", stem]
        paths = next((self.files[name] for name in names if name in self.files), [])
        folder = os.path.dirname(entry.video.rstrip("/"))
        named = [path for path in paths if folder and path.parent.as_posix().endswith(f"/{folder}")]
        chosen = named or paths
        if len(chosen) > 1 and len({content_hash(path) for path in chosen}) > 1:
            raise DataError(
                f"{entry.video} has {len(chosen)} different files, {show_several(chosen, 2)}; give the folder of one "
                "of them as the root, or move the others away"
            )
        return chosen[0] if chosen else None
