"""The videos that a user names: files, and folders whose videos are meant.

Contract: paths in, absolute paths of files out; DataError where there is none. Opens no file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from clipvid.data.files import find_clips
from clipvid.errors import DataError


def expanded(videos: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return absolute paths of the files and of the videos below the folders, each once, in the order given."""
    given = [videos] if isinstance(videos, str | Path) else list(videos)
    if isinstance(videos, str | Path) and not Path(videos).exists():  # a file of a list is unreadable like any other
        raise DataError(f"{videos} does not exist; give videos, or folders of them")
    found: list[Path] = []
    for item in given:
        path = Path(os.path.abspath(item))
        below = find_clips(path, bare=True) if path.is_dir() else [path]
        if not below:
            raise DataError(f"{path} holds no video; give a folder of files such as .mp4 or .webm")
        found += below
    if not found:
        raise DataError("no videos were given; name files or folders")
    return list(dict.fromkeys(found))
