"""Rows of a table with one row per caption or per labelled clip: checked, and merged into records.

Contract: columns `path` (or `file`, `video`), `caption` and/or `label`, and perhaps `start`, `end` (seconds) and
`split`, under these names or those that `columns` gives; others are ignored. Rows of one clip become one Record with
several captions, in table order; repeated captions of a clip are kept, since published protocols count them. Ambiguous
content raises DataError with the table and the row. Knows nothing of how a table is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from clipvid.data.clips.labels import class_names, label_index
from clipvid.data.clips.record import Record
from clipvid.data.files import clip_exists
from clipvid.data.formats.table import Table
from clipvid.data.paths import local_path
from clipvid.errors import DataError

PATH_COLUMNS = ("path", "file", "video")
COLUMNS = ("path", "caption", "label", "start", "end", "split")
"""Columns that a table can have; `columns` maps them to the names that a table uses."""
_OTHER_NAMES = {
    "path": ("video_path", "filepath", "file_path", "filename", "file_name", "video_id", "clip", "uri", "url", "name"),
    "caption": ("text", "sentence", "description", "captions", "query", "title", "name"),
    "label": ("class", "category", "class_name", "target", "labels", "action"),
}
"""Names in common use for a column, which an error about a missing column suggests."""


@dataclass(frozen=True)
class Clips:
    """The clips of a table: records of the existing ones, class names, and the paths of missing files."""

    records: tuple[Record, ...]
    classes: tuple[str, ...]
    missing: tuple[Path, ...]


def read_clips(
    table: Table,
    folders: Sequence[Path],
    *,
    columns: Mapping[str, str] | None,
    split: str | None,
    classes: Sequence[str] | None,
    check_files: bool,
) -> Clips:
    """Return the clips of a table, whose relative paths are below one of `folders`."""
    rows = list(checked_rows(table, columns))
    # From all splits of the table, so that its splits share their labels.
    names = class_names((row.label for row in rows), classes, source=table.name)
    clips = _merge(_select_split(rows, split=split, table=table), table=table, folders=folders, names=names)
    absent = {clip.path for clip in clips if check_files and not clip_exists(clip.path)}
    records = tuple(
        Record(clip.path, tuple(clip.captions), clip.label, start=clip.start, end=clip.end)
        for clip in clips
        if clip.path not in absent
    )
    return Clips(records, names, tuple(dict.fromkeys(clip.path for clip in clips if clip.path in absent)))


@dataclass
class Row:
    """A row with its number; a field is None if the table lacks its column, or for a missing label."""

    number: int
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
    number: int
    label: int | None
    start: float | None
    end: float | None
    captions: list[str] = field(default_factory=list)


def checked_rows(table: Table, columns: Mapping[str, str] | None = None) -> Iterator[Row]:
    """Yield the validated rows of a table."""
    names = _column_names(table, columns or {})
    if not table.rows:
        raise DataError(f"{table.name}: no row below the header; add one per clip")
    for number, row in table.rows:
        values = {column: row[name] for column, name in names.items()}
        for column in (column for column in ("path", "caption", "label", "split") if column in names):
            if values[column] == "" or (values[column] is None and column != "label"):
                raise DataError(f"{table.at(number)}: the {names[column]} is empty; fill it in, or remove the row")
        start, end = (_seconds(values.get(c), f"{table.at(number)}: {names.get(c)}") for c in ("start", "end"))
        if not (start or 0.0) < (end if end is not None else float("inf")):
            raise DataError(f"{table.at(number)}: start must come before end, got {start} and {end}; correct the times")
        yield Row(
            number, values["path"] or "", values.get("caption"), values.get("label"), values.get("split"), start, end
        )


def _column_names(table: Table, given: Mapping[str, str]) -> dict[str, str]:
    """Return the table's name of each column that it has; raise DataError if a required one is missing."""
    if unknown := [column for column in given if column not in COLUMNS]:
        raise ValueError(f"columns must name some of {', '.join(COLUMNS)}, got {unknown[0]!r}; correct it")
    names = {column: name.strip().lower() for column, name in given.items()}
    for column, name in names.items():
        if name not in table.columns:
            near = get_close_matches(name, table.columns, n=1)
            raise DataError(
                f"{table.header}: no column {given[column]!r} for {column}; the columns are {_listed(table)}"
                + (f"; did you mean {near[0]!r}" if near else "")
            )
    defaults = {**{column: (column,) for column in COLUMNS}, "path": PATH_COLUMNS}
    for column in (column for column in COLUMNS if column not in names):
        if present := [name for name in defaults[column] if name in table.columns and name not in names.values()]:
            names[column] = present[0]
    if "path" not in names:
        raise DataError(_missing_column(table, "named path, file or video", ("path",), names))
    if "caption" not in names and "label" not in names:
        raise DataError(_missing_column(table, "caption or label", ("caption", "label"), names))
    return names


def _missing_column(table: Table, constraint: str, wanted: Sequence[str], names: Mapping[str, str]) -> str:
    """Return the message on a missing column, with a `columns` that fits the names of the table."""
    free = [name for name in table.columns if name and name not in names.values()]
    suggested: dict[str, str] = {}
    for column in (column for column in ("path", "caption", "label") if column not in names):
        usual = [name for name in _OTHER_NAMES[column] if name in free]
        if near := usual or get_close_matches(column, free, n=1):
            suggested[column] = near[0]
            free.remove(near[0])
    example = suggested if set(suggested) & set(wanted) else {wanted[0]: "NAME"}
    return (
        f"{table.header}: no column {constraint}; the columns are {_listed(table)}; "
        f"to read other names, give columns={example}"
    )


def _listed(table: Table) -> str:
    more = f" and {len(table.columns) - 40} more" if len(table.columns) > 40 else ""
    return ", ".join(table.columns[:40]) + more or "(none)"


def _seconds(text: str | None, location: str) -> float | None:
    """Return a time in seconds, None for an empty field."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise DataError(f"{location} must be a number of seconds >= 0, got {text!r}; correct it, or leave it empty")
    return value


def _select_split(rows: list[Row], *, split: str | None, table: Table) -> list[Row]:
    splits = list(dict.fromkeys(row.split for row in rows if row.split is not None))
    if split is None:
        return rows
    if split not in splits:
        raise DataError(f"{table.name} has no split {split!r}; it has {', '.join(splits) or 'no column split'}")
    return [row for row in rows if row.split == split]


def _merge(rows: Sequence[Row], *, table: Table, folders: Sequence[Path], names: Sequence[str]) -> list[_Clip]:
    """Merge rows of equal path and times into clips; raise DataError for conflicting labels."""
    clips: dict[tuple[str, float | None, float | None], _Clip] = {}
    indices = {name: number for number, name in enumerate(names)}
    for row in rows:
        location = table.at(row.number)
        label = label_index(row.label, indices, location=location)
        key = (row.path, row.start, row.end)
        if key not in clips:
            path = _locate(local_path(row.path, location=location), folders)
            clips[key] = _Clip(path, row.number, label, row.start, row.end)
        clip = clips[key]
        if clip.label != label:
            row_label = "no label" if row.label is None else f"label {row.label!r}"
            raise DataError(
                f"{location}: {row.path} has {row_label}, but {table.unit} {clip.number} says "
                f"{'none' if clip.label is None else repr(names[clip.label])}; keep one of the two"
            )
        if row.caption is not None:
            clip.captions.append(row.caption)
    return list(clips.values())


def _locate(name: Path, folders: Sequence[Path]) -> Path:
    """Return the first existing path below `folders`, or the expected path if none exists."""
    candidates = [folder / name for folder in folders]  # joining an absolute name gives the name itself
    return next((path for path in candidates if clip_exists(path)), candidates[0])
