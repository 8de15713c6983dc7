"""Expansion of the videos that a user names to records of absolute paths.

Contract: files, folders, patterns or a data set in, records out, one per file; DataError if there is none. Opens no
file.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from clipvid.data.files import discover, why_no_clip
from clipvid.data.paths import Paths, expand_paths
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import DataError


def video_records(videos: Paths | VideoDataset) -> list[Record]:
    """Return one record per video, in the order given: of the files, of the videos below folders, or of a data set.

    Paths become absolute, and duplicates are left out. Raise DataError if none of the paths exists, for a folder
    without videos, a pattern without a match, an empty list, and a record that is a part of a file.
    """
    if isinstance(videos, VideoDataset):
        return _complete_records(videos)
    return [Record(Path(os.path.abspath(path))) for path in video_files(videos)]


def video_files(videos: Paths) -> list[Path]:
    """Return one path per video, in the order given and written as it was: files, and the videos below folders.

    A file that is named counts as a video, whatever its suffix. Duplicates are left out. Raise the errors of
    `video_records`.
    """
    files: dict[str, Path] = {}
    paths = expand_paths(videos, wanted=lambda path: path.is_dir() or why_no_clip(path) is None)
    if not any(path.exists() for path in paths):  # one of several is skipped later, like an unreadable file
        verb = f"and {len(paths) - 1} more do" if len(paths) > 1 else "does"
        raise DataError(f"{paths[0]} {verb} not exist; give videos, or folders of them")
    for path in paths:
        for file in _videos_below(path) if path.is_dir() else [path]:
            files.setdefault(os.path.abspath(file), file)
    return list(files.values())


def _videos_below(folder: Path) -> list[Path]:
    """Return the clips below a folder, links to files that do not exist among them: they are listed as skipped."""
    contents = discover(folder)
    if not contents.clips and not contents.dangling:
        raise DataError(f"{folder} holds no video; give a folder with files such as .mp4 or .webm")
    return sorted((*contents.clips, *contents.dangling))


def _complete_records(data: VideoDataset) -> list[Record]:
    """Return the records with absolute paths, arrays under their names; raise DataError for a part of a file."""
    records: dict[Path, Record] = {}
    for record in data:
        if (record.start, record.end) != (None, None):
            raise DataError(
                f"{data.name}: {record.path} is a part from {record.start} to {record.end} s, and an index has one "
                "embedding per file; give the files, or cut them"
            )
        path = record.path if record.array is not None else Path(os.path.abspath(record.path))
        records.setdefault(path, replace(record, path=path))
    if not records:
        raise DataError(f"{data.name} is empty; give a data set of videos")
    return list(records.values())
