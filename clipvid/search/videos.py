"""Expansion of the files and folders that a user names to a list of video files.

Contract: paths in, absolute paths of files out; DataError if there is none. Opens no file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from clipvid.data.files import find_clips
from clipvid.errors import DataError


def expand_videos(videos: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return absolute paths of the files and of the videos below the folders, without duplicates, in the order given.

    Raise DataError for a single path that does not exist, a folder without videos, and an empty list.
    """
    given = [videos] if isinstance(videos, str | Path) else list(videos)
    if (
        isinstance(videos, str | Path) and not Path(videos).exists()
    ):  # a missing file in a list is skipped later, like an unreadable one
        raise DataError(f"{videos} does not exist; give videos, or folders of them")
    files: list[Path] = []
    for item in given:
        path = Path(os.path.abspath(item))
        videos_of_path = find_clips(path, bare=True) if path.is_dir() else [path]
        if not videos_of_path:
            raise DataError(f"{path} holds no video; give a folder with files such as .mp4 or .webm")
        files += videos_of_path
    if not files:
        raise DataError("no videos were given; name files or folders")
    return list(dict.fromkeys(files))
