"""Reader "csv": a table with one row per caption or per labelled video.

Contract: columns `path` (or `file`, `video`), `caption` and/or `label`, and perhaps `start`, `end` (seconds) and
`split`; others are ignored. UTF-8, with commas, tabs or semicolons. Rows of one clip become one Record with several
captions, in the order of the table; a caption that is repeated for a clip is kept, since published protocols count
such. Whatever the table does not say clearly is a DataError that names the file and the line.
Read with the csv module, not pandas: it knows the line of every row and takes no caption ("null", "NA") for a gap.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipvid.data.files import clip_exists
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import DataError

PATH_COLUMNS = ("path", "file", "video")
_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = (",", "\t", ";")
_MAX_CLASSES = 100_000  # a larger integer in the label column is an id, not a class


def read_csv(
    root: Path,
    *,
    split: str | None,
    annotations: Path | None,
    classes: Sequence[str] | None,
    allow_missing: bool,
    check_files: bool,
) -> VideoDataset:
    """Read a table, see the head of this file. `root` is the table, or the folder that holds it and the videos."""
    table = _find_table(root, annotations)
    folders = [table.parent] if root.is_file() else [root, table.parent]
    rows = list(_rows(table))
    names = _class_names(rows, table=table, given=classes)
    chosen = _of_split(rows, split=split, table=table)
    clips = _merge(chosen, table=table, folders=folders, names=names)
    absent = {clip.path for clip in clips if check_files and not clip_exists(clip.path)}
    present = [clip for clip in clips if clip.path not in absent]
    missing = tuple(dict.fromkeys(clip.path for clip in clips if clip.path in absent))
    records = tuple(
        Record(clip.path, tuple(clip.captions), clip.label, start=clip.start, end=clip.end) for clip in present
    )
    name = table.resolve().parent.name if table.stem == "captions" else table.stem
    return VideoDataset(records, names, f"{name}:{split}" if split else name, missing, source=table)


def text_of(path: Path) -> str:
    """The text of an annotation file in UTF-8, without its byte-order mark; another encoding is a DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        kind = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8{kind}; save the file as UTF-8"
        ) from error


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names in lower case, and (line, row) pairs; blank lines are left out and fields are stripped."""
    text = text_of(path)
    head = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=head.count)  # the header has names only, so what stands between them delimits
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


@dataclass
class _Row:
    """A row as text, with the line it ends on; None for a column that the table does not have."""

    line: int
    path: str
    caption: str | None
    label: str | None
    split: str | None
    start: float | None
    end: float | None


@dataclass
class _Clip:
    """The rows of one clip, put together."""

    path: Path
    line: int
    label: int | None
    start: float | None
    end: float | None
    captions: list[str] = field(default_factory=list)


def splits_in(root: Path) -> list[str]:
    """Names of the splits in the table that `root` is or holds; none where it has no such column."""
    return list(dict.fromkeys(row.split for row in _rows(_find_table(root, None)) if row.split is not None))


def _find_table(root: Path, annotations: Path | None) -> Path:
    table = annotations or root
    if table.is_file():
        return table
    if not table.is_dir():
        raise DataError(f"{table} does not exist; give a csv file, or a folder that holds one")
    tables = sorted(path for path in table.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    named = [path for path in tables if path.stem == "captions"]
    if len(tables) == 1 or len(named) == 1:
        return named[0] if named else tables[0]
    found = f"{len(tables)} tables ({', '.join(path.name for path in tables)})" if tables else "no csv or tsv file"
    raise DataError(f"{table} holds {found}; name the one to read (annotations)")


def _check_columns(columns: list[str], path: Path) -> None:
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: column {twice[0]!r} comes more than once")


def _rows(table: Path) -> Iterator[_Row]:
    columns, rows = read_table(table)
    path_column = next((name for name in PATH_COLUMNS if name in columns), None)
    if path_column is None or not {"caption", "label"} & set(columns):
        lacks = f"one of {', '.join(PATH_COLUMNS)}" if path_column is None else "caption or label"
        raise DataError(f"{table}, line 1: no column {lacks}; the columns are {', '.join(columns) or '(none)'}")
    if not rows:
        raise DataError(f"{table}: no row below the header")
    for line, row in rows:
        for name in (path_column, "caption", "label", "split"):
            if row.get(name) == "":
                raise DataError(f"{table}, line {line}: the {name} is empty; fill it in, or remove the row")
        start, end = (_seconds(row.get(name), f"{table}, line {line}: {name}") for name in ("start", "end"))
        if not (start or 0.0) < (end if end is not None else float("inf")):
            raise DataError(f"{table}, line {line}: start must come before end, got {start} and {end}")
        yield _Row(line, row[path_column], row.get("caption"), row.get("label"), row.get("split"), start, end)


def _seconds(text: str | None, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise DataError(f"{where} must be seconds from 0, got {text!r}")
    return value


def _class_names(rows: Sequence[_Row], *, table: Path, given: Sequence[str] | None) -> tuple[str, ...]:
    """Class names in label order. Taken over all splits, so that the splits of one table share their labels."""
    if given is not None:
        return tuple(given)
    labels = {row.label for row in rows if row.label is not None}
    if not all(label.isascii() and label.isdigit() for label in labels):
        return tuple(sorted(labels))
    most = max((int(label) for label in labels), default=-1)
    if most >= _MAX_CLASSES:
        raise DataError(f"{table}: label {most} is too large to be a class number; name the classes (classes)")
    return tuple(str(number) for number in range(most + 1))  # a number stays the index it is


def _of_split(rows: list[_Row], *, split: str | None, table: Path) -> list[_Row]:
    splits = list(dict.fromkeys(row.split for row in rows if row.split is not None))
    if split is None:
        return rows
    if split not in splits:
        raise DataError(f"{table} has no split {split!r}; it has {', '.join(splits) or 'no column split'}")
    return [row for row in rows if row.split == split]


def _merge(rows: Sequence[_Row], *, table: Path, folders: Sequence[Path], names: Sequence[str]) -> list[_Clip]:
    clips: dict[tuple[str, float | None, float | None], _Clip] = {}
    index = {name: number for number, name in enumerate(names)}
    for row in rows:
        label = None if row.label is None else _label(row, index=index, table=table)
        key = (row.path, row.start, row.end)
        if key not in clips:
            clips[key] = _Clip(_locate(row.path, folders), row.line, label, row.start, row.end)
        clip = clips[key]
        if clip.label != label:
            raise DataError(
                f"{table}, line {row.line}: {row.path} has label {row.label!r}, but line {clip.line} says "
                f"{'none' if clip.label is None else repr(names[clip.label])}"
            )
        if row.caption is not None:
            clip.captions.append(row.caption)
    return list(clips.values())


def _label(row: _Row, *, index: dict[str, int], table: Path) -> int:
    text = row.label or ""
    if text in index:
        return index[text]
    if text.isascii() and text.isdigit() and int(text) < len(index):  # numbers beside a list of class names
        return int(text)
    raise DataError(f"{table}, line {row.line}: label {text!r} is none of the {len(index)} classes given")


def _locate(name: str, folders: Sequence[Path]) -> Path:
    """The first folder's file that exists; where none does, the path that a user would expect."""
    places = [folder / name for folder in folders]  # an absolute name stays as it is
    return next((place for place in places if clip_exists(place)), places[0])
