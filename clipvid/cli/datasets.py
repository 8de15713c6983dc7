"""Resolution of command-line words to data sets: paths and patterns, formats, columns, splits.

Contract: argument values in, paths and data sets out, or an error that says which option to change. Heavy modules are
imported when they are needed. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipvid.cli import outputs
from clipvid.cli.parsing.names import suggestion
from clipvid.cli.parsing.options import DataOptions
from clipvid.data.files import (
    LeftOut,
    describe_left_out,
    has_videos,
    is_clip,
    is_source,
    is_table,
    is_video,
    subfolders,
    tables_in,
    why_no_clip,
)
from clipvid.data.paths import expand_paths
from clipvid.errors import DataError, UsageError
from clipvid.registry import PROTOCOLS

Sources = str | list[str]
"""A path, or several of them."""


def sources_of(words: Sequence[str]) -> Sources:
    """Return the sources that words name: one as it is, several as a list; patterns such as "clips/*.mp4" are expanded.

    Matches of a pattern that are neither folders, tables nor clips are left out, and named in a note. Raises UsageError
    for a source that does not exist, a pattern without files and a URL.
    """
    advice = "give videos, folders of videos, or a csv file"
    others: list[Path] = []
    if "" in words:
        raise UsageError(f"SOURCE is empty; {advice}")
    try:
        paths = expand_paths(words, wanted=is_source, left_out=others)
    except DataError as error:
        raise UsageError(str(error)) from error
    if missing := [path for path in paths if not path.exists()]:
        raise UsageError(f"{missing[0]} does not exist; {advice}")
    if others:
        reasons = [LeftOut(path, why_no_clip(path) or "not read") for path in others]
        outputs.say(f"note: {' '.join(words)}: {describe_left_out(reasons)}", error=True)
    return str(paths[0]) if len(paths) == 1 else list(map(str, paths))


def data_of(words: Sequence[str], data: DataOptions, *, default_format: str = "folder") -> Sources:
    """Return the sources of a data set, after checks that need no torch.

    Raises UsageError for a single video, which has neither captions nor classes, and for columns without a table.
    """
    sources = sources_of(words)
    format = format_of(sources, data, default_format=default_format)
    if format != "videos" and isinstance(sources, str) and Path(sources).is_file() and is_clip(Path(sources)):
        raise UsageError(f"{sources} is a video; give a folder of videos, or a csv file")
    if format in PROTOCOLS:
        _check_protocol(sources, format, data.split)
    if data.columns and format != "csv":
        names = " ".join(data.columns)
        raise UsageError(f"--columns {names} is for tables, and SOURCE is read as {format}; leave it out")
    return sources


def _check_protocol(sources: Sources, name: str, split: str | None) -> None:
    """Raise UsageError for several paths, and for a split that the protocol does not have."""
    if isinstance(sources, list):
        raise UsageError(f"{name} is a protocol, read from one folder, got {len(sources)} paths; give its root")
    splits = tuple(PROTOCOLS[name].splits)
    if split is not None and split not in splits:
        raise UsageError(f"--split must be one of {', '.join(splits)}, got {split!r}{suggestion(split, splits)}")


def videos_of(words: Sequence[str], data: DataOptions) -> Any:
    """Return the data set of the videos that the words name, or of the tables that they name or `data` is about.

    Links to files that do not exist are among the videos that were found in a folder: reading them gives the error.
    """
    if data == DataOptions():
        sources = sources_of(words)
        paths = [Path(path) for path in ([sources] if isinstance(sources, str) else sources)]
        if not any(is_table(path) and path.is_file() for path in paths):
            _check_videos([path for path in paths if path.is_dir()])
            return _with_dangling(sources)
    else:
        sources = data_of(words, data, default_format="videos")
    return named_data(sources, data, default_format="videos")


def _with_dangling(sources: Sources) -> Any:
    """Return the data set of files and folders of videos, links to files that do not exist included."""
    from clipvid.data.open import read_dataset
    from clipvid.data.records import Record

    videos = read_dataset("videos", sources)
    _note_left_out(videos)
    return replace(videos, records=(*videos.records, *map(Record, videos.missing)), missing=())


def _note_left_out(data: Any) -> None:
    """Print a note on the files and folders that are not read, if there are any."""
    if data.left_out:
        outputs.say(f"note: {data.name}: {describe_left_out(data.left_out)}", error=True)


def _check_videos(folders: Sequence[Path]) -> None:
    """Raise DataError for a folder without videos that holds a table."""
    for folder in folders:
        if (tables := tables_in(folder)) and not has_videos(folder):
            raise DataError(f"{folder} holds no video; give --format csv to read {tables[0].name}")


def format_of(sources: Sources, data: DataOptions, *, default_format: str = "folder") -> str:
    """Return the format given, else csv if the sources are or hold tables, else the default."""
    return data.format or ("csv" if _are_tables(sources) else default_format)


def named_data(sources: Sources, data: DataOptions, *, default_format: str = "folder", **changes: Any) -> Any:
    """Return the data set of these sources and options.

    `changes` replace options, and add those of `open_dataset` that have no option: classes and check_files.
    """
    from clipvid.data.open import open_dataset

    format = format_of(sources, data, default_format=default_format)
    options: dict[str, Any] = {
        "split": data.split,
        "annotations": data.annotations,
        "allow_missing": data.allow_missing,
        "columns": data.column_names() if format == "csv" else None,
    }
    opened = open_dataset(format, sources, **(options | changes))
    _note_left_out(opened)
    return opened


def _are_tables(sources: Sources) -> bool:
    """Return True for tables, for folders of tables, and for a single file that is no clip."""
    if isinstance(sources, str) and Path(sources).is_file():
        return is_table(Path(sources)) or not is_clip(Path(sources))
    paths = [Path(path) for path in ([sources] if isinstance(sources, str) else sources)]
    return all(bool(tables_in(path)) if path.is_dir() else is_table(path) for path in paths)


def note_format(sources: Sources, data: DataOptions, *, default_format: str = "folder") -> None:
    """Print a note on the format chosen for a folder with both a csv file and sub-folders of videos."""
    if data.format is not None or not isinstance(sources, str) or not Path(sources).is_dir():
        return
    tables = tables_in(Path(sources))
    if not tables:
        return
    folders = [folder for folder in subfolders(Path(sources)) if any(map(is_video, folder.iterdir()))]
    if len(folders) > 1:
        outputs.say(
            f"note: {sources} is read as csv, because it holds {tables[0].name}; give --format {default_format} "
            f"to read its {len(folders)} sub-folders{' as classes' if default_format == 'folder' else ''}",
            error=True,
        )


def require_split(sources: Sources, data: DataOptions, *, advice: str, protocols: bool) -> None:
    """Raise UsageError for data with splits and no --split; with `protocols` for those of a protocol, too."""
    if data.split is None and (splits := _splits_of(sources, data, protocols=protocols)):
        names = sources if isinstance(sources, str) else ", ".join(sources)
        raise UsageError(f"{names} has splits {', '.join(splits)}; give --split, {advice}")


def _splits_of(sources: Sources, data: DataOptions, *, protocols: bool) -> list[str]:
    """Return the names of the splits of csv files with a column of splits, and of a protocol if wanted."""
    if data.format is not None and data.format in PROTOCOLS:
        return list(PROTOCOLS[data.format].splits) if protocols else []
    if data.format not in (None, "csv") or not _are_tables(sources):
        return []
    from clipvid.data.formats.csv import splits_in

    paths = [sources] if isinstance(sources, str) else sources
    columns = data.column_names()
    return list(dict.fromkeys(split for path in paths for split in splits_in(Path(path), columns=columns)))
