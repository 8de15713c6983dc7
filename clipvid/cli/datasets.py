"""Resolution of command-line words to data sets: places and patterns, formats, splits.

Contract: argument values in, paths and data sets out, or an error that says which option to change. Heavy modules are
imported when they are needed. Knows nothing of models.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def sources_of(words: Sequence[str]) -> str | list[str]:
    """Return the sources that words name: one as it is, several as a list; patterns such as "clips/*.mp4" are expanded.

    Raises FileNotFoundError for a source that does not exist and a pattern without files, ValueError for a video where
    a data set should be.
    """
    paths: list[str] = []
    for word in words:
        matches = [] if os.path.lexists(word) or not glob.has_magic(word) else sorted(glob.glob(word, recursive=True))
        if not matches and not os.path.lexists(word):
            problem = "matches no file" if glob.has_magic(word) else "does not exist"
            raise FileNotFoundError(f"{word} {problem}; give videos, folders of videos, or a csv file")
        paths += matches or [word]
    return paths[0] if len(paths) == 1 else paths


def data_of(words: Sequence[str]) -> str | list[str]:
    """Return the sources of a data set; raise ValueError for a single video, which has neither captions nor classes."""
    sources = sources_of(words)
    if isinstance(sources, str) and Path(sources).is_file() and not sources.endswith(".csv"):
        from clipvid.data.files import is_video

        if is_video(Path(sources)):
            raise ValueError(f"{sources} is a video; give a folder of videos, or a csv file")
    return sources


def named_data(
    data: str | list[str], format: str | None = None, *, default_format: str = "folder", **options: Any
) -> Any:
    """Return the data set; the format defaults to csv if `data` is or holds csv files, else to `default_format`.

    `options` are those of `open_dataset`: split, annotations, classes, allow_missing, check_files.
    """
    from clipvid.data.open import open_dataset

    guessed = "csv" if _are_tables(data) else default_format
    return open_dataset(format or guessed, data, **options)  # pyright: ignore[reportArgumentType]


def _are_tables(data: str | list[str]) -> bool:
    """Return True for a file, for csv files, and for folders of csv files."""
    if isinstance(data, str) and Path(data).is_file():
        return True
    paths = [Path(path) for path in ([data] if isinstance(data, str) else data)]
    return all(path.suffix.lower() == ".csv" if path.is_file() else any(path.glob("*.csv")) for path in paths)


def note_format(data: str | list[str], format: str | None, *, default_format: str = "folder") -> None:
    """Print a note on the format chosen for a folder with both a csv file and sub-folders of videos."""
    if format is not None or not isinstance(data, str) or not Path(data).is_dir():
        return
    from clipvid.data.files import is_video, subfolders

    root = Path(data)
    tables = sorted(root.glob("*.csv"))
    if not tables:
        return
    folders = [folder for folder in subfolders(root) if any(map(is_video, folder.iterdir()))]
    if len(folders) > 1:
        print(
            f"note: {data} is read as csv, because it holds {tables[0].name}; give --format {default_format} "
            f"to read its {len(folders)} sub-folders{' as classes' if default_format == 'folder' else ''}",
            file=sys.stderr,
        )


def splits_of(data: str | list[str], format: str | None) -> list[str]:
    """Return the names of the splits of a protocol, or of csv files with a split column."""
    from clipvid.registry import PROTOCOLS

    if format is not None and format in PROTOCOLS:
        return list(PROTOCOLS[format].splits)
    if format not in (None, "csv") or not _are_tables(data):
        return []
    from clipvid.data.formats.csv import splits_in

    paths = [data] if isinstance(data, str) else data
    return list(dict.fromkeys(split for path in paths for split in splits_in(Path(path))))
