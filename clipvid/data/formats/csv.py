"""Reader "csv": a table with one row per caption or per labelled video.

Contract: columns `path` (or `file`, `video`), `caption` and/or `label`, and perhaps `start`, `end` (seconds) and
`split`; others are ignored. UTF-8, with commas, tabs or semicolons. Rows of one clip become one Record with several
captions, in table order; repeated captions of a clip are kept, since published protocols count them. Ambiguous content
raises DataError with file and line. Read with the csv module, not pandas: it gives the line of every row, and never
reads a caption such as "null" or "NA" as a missing value.
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
    """Read a table as described at the top of this file; `root` is the table, or the folder with it and the videos."""
    table = _find_table(root, annotations)
    folders = [table.parent] if root.is_file() else [root, table.parent]
    rows = list(_rows(table))
    names = _class_names(rows, table=table, given=classes)
    rows_of_split = _select_split(rows, split=split, table=table)
    clips = _merge(rows_of_split, table=table, folders=folders, names=names)
    absent = {clip.path for clip in clips if check_files and not clip_exists(clip.path)}
    present = [clip for clip in clips if clip.path not in absent]
    missing = tuple(dict.fromkeys(clip.path for clip in clips if clip.path in absent))
    records = tuple(
        Record(clip.path, tuple(clip.captions), clip.label, start=clip.start, end=clip.end) for clip in present
    )
    name = table.resolve().parent.name if table.stem == "captions" else table.stem
    return VideoDataset(records, names, f"{name}:{split}" if split else name, missing, source=table)


def text_of(path: Path) -> str:
    """Return the text of a UTF-8 annotation file without byte-order mark; raise DataError for other encodings."""
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


@dataclass
class _Row:
    """A row with the line it ends on; a field is None if the table lacks its column."""

    line: int
    path: str
    caption: str | None
    label: str | None
    split: str | None
    start: float | None
    end: float | None


@dataclass
class _Clip:
    """All rows of one clip, merged."""

    path: Path
    line: int
    label: int | None
    start: float | None
    end: float | None
    captions: list[str] = field(default_factory=list)


def splits_in(root: Path) -> list[str]:
    """Return the split names in the table at or in `root`, [] if it has no column of splits."""
    return list(dict.fromkeys(row.split for row in _rows(_find_table(root, None)) if row.split is not None))


def _find_table(root: Path, annotations: Path | None) -> Path:
    table = annotations or root
    if table.is_file():
        return table
    if not table.is_dir():
        raise DataError(f"{table} does not exist; give a csv file, or a folder that holds one")
    tables = sorted(path for path in table.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    caption_tables = [path for path in tables if path.stem == "captions"]
    if len(tables) == 1 or len(caption_tables) == 1:
        return caption_tables[0] if caption_tables else tables[0]
    content = f"{len(tables)} tables ({', '.join(path.name for path in tables)})" if tables else "no csv or tsv file"
    raise DataError(f"{table} holds {content}; name the one to read (annotations)")


def _check_columns(columns: list[str], path: Path) -> None:
    duplicates = sorted({name for name in columns if name and columns.count(name) > 1})
    if duplicates:
        raise DataError(f"{path}, line 1: duplicate column {duplicates[0]!r}")


def _rows(table: Path) -> Iterator[_Row]:
    """Yield the validated rows of a table."""
    columns, rows = read_table(table)
    path_column = next((name for name in PATH_COLUMNS if name in columns), None)
    if path_column is None or not {"caption", "label"} & set(columns):
        missing_columns = f"one of {', '.join(PATH_COLUMNS)}" if path_column is None else "caption or label"
        raise DataError(
            f"{table}, line 1: no column {missing_columns}; the columns are {', '.join(columns) or '(none)'}"
        )
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


def _seconds(text: str | None, location: str) -> float | None:
    """Return a time in seconds, None for an empty field."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise DataError(f"{location} must be a number of seconds >= 0, got {text!r}")
    return value


def _class_names(rows: Sequence[_Row], *, table: Path, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return class names in label order, from all splits of the table, so that its splits share their labels."""
    if given is not None:
        return tuple(given)
    labels = {row.label for row in rows if row.label is not None}
    if not all(label.isascii() and label.isdigit() for label in labels):
        return tuple(sorted(labels))
    largest = max((int(label) for label in labels), default=-1)
    if largest >= _MAX_CLASSES:
        raise DataError(f"{table}: label {largest} is too large to be a class number; name the classes (classes)")
    return tuple(str(number) for number in range(largest + 1))  # keeps each number as its own label index


def _select_split(rows: list[_Row], *, split: str | None, table: Path) -> list[_Row]:
    splits = list(dict.fromkeys(row.split for row in rows if row.split is not None))
    if split is None:
        return rows
    if split not in splits:
        raise DataError(f"{table} has no split {split!r}; it has {', '.join(splits) or 'no column split'}")
    return [row for row in rows if row.split == split]


def _merge(rows: Sequence[_Row], *, table: Path, folders: Sequence[Path], names: Sequence[str]) -> list[_Clip]:
    """Merge rows of equal path and times into clips; raise DataError for conflicting labels."""
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
    """Return the class index of a row, given by name or by number."""
    text = row.label or ""
    if text in index:
        return index[text]
    if text.isascii() and text.isdigit() and int(text) < len(index):  # a class number, given with a list of class names
        return int(text)
    raise DataError(f"{table}, line {row.line}: label {text!r} is none of the {len(index)} given classes")


def _locate(name: str, folders: Sequence[Path]) -> Path:
    """Return the first existing path below `folders`, or the expected path if none exists."""
    candidates = [folder / name for folder in folders]  # joining an absolute name gives the name itself
    return next((path for path in candidates if clip_exists(path)), candidates[0])
