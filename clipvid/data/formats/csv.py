"""Reader "csv": a table with one row per caption or per labelled video.

Contract: the columns and checks of `formats.rows`; UTF-8, with commas, tabs or semicolons. Errors name file and line.
Read with the csv module, not pandas: it gives the line of every row, and never reads a caption such as "null" or "NA"
as a missing value.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipvid.data.files import tables_in
from clipvid.data.formats.rows import checked_rows, read_clips
from clipvid.data.formats.table import Table
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError
from clipvid.runtime.files import read_file

_DELIMITERS = (",", "\t", ";")
COLUMN_LIMIT = 2000
"""Largest number of columns of a table; the memory of a row grows with it."""


def read_csv(
    root: Path,
    *,
    split: str | None,
    annotations: Path | None,
    classes: Sequence[str] | None,
    allow_missing: bool,
    check_files: bool,
    columns: Mapping[str, str] | None = None,
) -> VideoDataset:
    """Read a table as described at the top of this file; `root` is the table, or the folder with it and the videos.

    `columns` maps path, caption, label, start, end and split to the names that the table uses.
    """
    del allow_missing  # the caller refuses missing files
    table = _find_table(root, annotations)
    folders = [table.parent] if root.is_file() else [root, table.parent]
    clips = read_clips(
        _open_table(table), folders, columns=columns, split=split, classes=classes, check_files=check_files
    )
    name = table.resolve().parent.name if table.stem == "captions" else table.stem
    title = f"{name}:{split}" if split else name
    return VideoDataset(clips.records, clips.classes, title, clips.missing, source=table)


def _open_table(path: Path) -> Table:
    columns, rows = read_table(path)
    return Table(str(path), columns, rows)


def text_of(path: Path) -> str:
    """Return the text of a UTF-8 annotation file without byte-order mark; raise DataError for other encodings."""
    try:
        data = read_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        kind = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8{kind}; save the file as UTF-8"
        ) from error


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return lower-case column names and (line, row) pairs, without blank lines and with stripped fields."""
    text = text_of(path)
    header = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)  # a header has only names, so its most frequent candidate delimits
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if not columns:
                columns = [value.strip().lower() for value in values]
                _check_columns(columns, path)
                continue
            if len(values) != len(columns):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(values)} fields, but the header has {len(columns)}; "
                    "put fields that contain the delimiter in double quotes"
                )
            rows.append((reader.line_num, dict(zip(columns, (value.strip() for value in values), strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; check the double quotes") from error
    return columns, rows


def splits_in(root: Path, *, columns: Mapping[str, str] | None = None) -> list[str]:
    """Return the split names in the table at or in `root`, [] if it has no column of splits."""
    rows = checked_rows(_open_table(_find_table(root, None)), columns)
    return list(dict.fromkeys(row.split for row in rows if row.split is not None))


def _find_table(root: Path, annotations: Path | None) -> Path:
    table = annotations or root
    if table.is_file():
        return table
    if not table.is_dir():
        raise DataError(f"{table} does not exist; give a csv file, or a folder that holds one")
    tables = tables_in(table)
    caption_tables = [path for path in tables if path.stem == "captions"]
    if len(tables) == 1 or len(caption_tables) == 1:
        return caption_tables[0] if caption_tables else tables[0]
    content = f"{len(tables)} tables ({', '.join(path.name for path in tables)})" if tables else "no csv or tsv file"
    raise DataError(f"{table} holds {content}; give the one to read as annotations=PATH")


def _check_columns(columns: list[str], path: Path) -> None:
    if len(columns) > COLUMN_LIMIT:
        raise DataError(
            f"{path}, line 1: {len(columns)} columns exceed the limit of {COLUMN_LIMIT}; remove those that are not read"
        )
    duplicates = sorted(name for name, count in Counter(columns).items() if name and count > 1)
    if duplicates:
        raise DataError(f"{path}, line 1: duplicate column {duplicates[0]!r}; rename or remove one")
