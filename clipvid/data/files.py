"""Discovery of clips and tables on disk: the suffixes of their files and the search through folders.

Contract: results are sorted, hence the same on every machine; hidden files and folders are skipped.
Imports nothing heavy. Knows nothing of annotations or of the content of videos.
"""

from __future__ import annotations

import os
from pathlib import Path

from clipvid.video.picture_files import SUFFIXES, pictures_in

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
"""Lower-case suffixes of video files."""
TABLE_SUFFIXES = (".csv", ".tsv")
"""Lower-case suffixes of tables."""


def is_video(path: Path) -> bool:
    """Return True if the suffix of `path` is that of a video, in lower or upper case."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_clip(path: Path) -> bool:
    """Return True if the suffix of `path` is that of a video or of a picture, which is a clip of one frame."""
    return is_video(path) or path.suffix.lower() in SUFFIXES


def is_table(path: Path) -> bool:
    """Return True if the suffix of `path` is that of a table, in lower or upper case."""
    return path.suffix.lower() in TABLE_SUFFIXES


def tables_in(folder: Path) -> list[Path]:
    """Return the tables directly in `folder`, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if is_table(path) and path.name[0] != "." and path.is_file())


def is_source(path: Path) -> bool:
    """Return True for a folder, a table and a clip: the matches of a pattern that a data set can be read from."""
    return path.is_dir() or is_table(path) or is_clip(path)


def find_videos(folder: Path, *, bare: bool = False) -> list[Path]:
    """Return every video below `folder`, sorted; `bare` adds files without a suffix. Follow each link once."""
    videos: list[Path] = []
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # a link back to an ancestor
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(parent, name) for name in names if not name.startswith("."))
        videos += [path for path in files if is_video(path) or (bare and not path.suffix)]
    return sorted(videos)


def find_clips(folder: Path, *, bare: bool = False) -> list[Path]:
    """Return every video below `folder`, sorted, or the picture clips below it if there is no video.

    A sub-folder that holds pictures and no deeper clips is one clip; any other picture is a clip of one frame.
    """
    return find_videos(folder, bare=bare) or sorted(_picture_clips(folder, entered=set()))


def _picture_clips(folder: Path, *, entered: set[str]) -> list[Path]:
    is_top = not entered
    real = os.path.realpath(folder)
    if real in entered:  # a link back to an ancestor
        return []
    entered.add(real)
    deeper = [clip for child in subfolders(folder) for clip in _picture_clips(child, entered=entered)]
    pictures = pictures_in(folder)
    return [folder] if pictures and not deeper and not is_top else [*pictures, *deeper]


def clip_exists(path: Path) -> bool:
    """Return True if `path` is a file or a folder of pictures."""
    return exists(path) or (path.is_dir() and bool(pictures_in(path)))


def files_of(clip: Path) -> list[Path]:
    """Return the files of a clip: the file itself, or the pictures of a folder."""
    return pictures_in(clip) if clip.is_dir() else [clip]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def exists(path: Path) -> bool:
    """Return True if `path` is a file; False also for a name that the file system does not support."""
    try:
        return path.is_file()
    except OSError:
        return False


def advice_on_root(root: str | Path) -> str:
    """Return the advice for a data set of which no video exists."""
    folder = root if Path(root).is_dir() else Path(root).parent
    return f"none of them is in {folder}; is it the folder of the videos?"
