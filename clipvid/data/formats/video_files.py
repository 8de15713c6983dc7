"""Video files of a protocol, found by the names that its annotations use.

Contract: a folder and an entry in, a path out. Knows nothing of annotation formats.
"""

from __future__ import annotations

from pathlib import Path

from clipvid.data.files import find_clips, is_video
from clipvid.data.formats.annotations import Entry


def stem_of(video: str) -> str:
    """Return the name without folder, and without the suffix of a video or trailing dots."""
    path = Path(video)
    return path.stem if is_video(path) else path.name.rstrip(".")  # ids may contain dots


def expected_name(entry: Entry) -> str:
    """Return the file name that a user would expect."""
    return entry.video if is_video(Path(entry.video)) else f"{entry.video.rstrip('.')}.mp4"


class VideoFiles:
    """Index of clips below a folder by name, ignoring suffix and case; the first in sorted order wins."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in find_clips(root):
            name = path.name if path.is_dir() else path.stem  # folder names may contain dots
            self.files.setdefault(name.lower(), path)

    def find(self, entry: Entry) -> Path | None:
        """Return the file of an entry, or None."""
        stem = stem_of(entry.video).lower()
        names = [stem]
        if entry.start is not None and entry.end is not None:  # Kinetics' file names contain the times
            times = f"{round(entry.start):06d}_{round(entry.end):06d}"
            names = [f"{stem}_{times}", stem]
        return next((self.files[name] for name in names if name in self.files), None)
