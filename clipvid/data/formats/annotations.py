"""Parsers of the common layouts of annotation files, recognised by content and never by file name.

Contract: a file in; its videos out, with captions, class and times if it has them, or its class names; in file order,
nothing merged and nothing dropped. Ambiguous content raises DataError with file and line. Knows nothing of protocols,
of expected numbers, or of the videos' files.
Official files: MSR-VTT, DiDeMo, LSMDC, ActivityNet Captions, Kinetics, Something-Something, UCF101, HMDB51. Others:
CLIP4Clip's csv lists, {file: captions} (STAN, X-Pool), {id: {text, start, end}} (mdmmt), lists of {video, caption}
(VindLU, VIOLET), and lists of "file number" (mmaction2, ViFi-CLIP, Text4Vis).
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipvid.data.formats.csv import read_table, text_of
from clipvid.errors import DataError


@dataclass(frozen=True)
class Entry:
    """One entry of an annotation file: a video with its captions, class and times."""

    video: str
    """File name, path or id of the video."""
    captions: tuple[str, ...] = ()
    label: str | None = None
    """Class name or number, as written in the file."""
    start: float | None = None
    end: float | None = None
    """Start and end in seconds of the part that the entry describes; None for the complete video."""
    split: str | None = None
    line: int = 0
    """Line in the file, from 1; 0 in JSON, whose lines `Annotation.location` searches for."""


@dataclass(frozen=True)
class Annotation:
    """Content of an annotation file: entries of videos, or class names in label order."""

    path: Path
    layout: str
    entries: tuple[Entry, ...] = ()
    classes: tuple[str, ...] = ()

    def location(self, entry: Entry) -> str:
        """Return file and line of an entry, for error messages."""
        return f"{self.path}, line {entry.line or _line_of(text_of(self.path), entry.video)}"


def read_annotation(path: Path) -> Annotation:
    """Read a file in any layout; raise DataError with file and line for damage and for unknown layouts."""
    text = text_of(path)
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    annotation = _from_json(path, text) if text.lstrip()[0] in "[{" else _from_text(path, text)
    if not annotation.entries and not annotation.classes:
        raise DataError(f"{path}: lists no video and no class")
    return annotation


def _from_json(path: Path, text: str) -> Annotation:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content_by_name: dict[str, Any] = {}
        for name, value in pairs:
            if name in content_by_name:  # json silently keeps only the last value
                raise DataError(f"{path}, line {_line_of(text, name, 2)}: duplicate entry {name!r}")
            content_by_name[name] = value
        return content_by_name

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        limit = sys.getrecursionlimit()
        raise DataError(
            f"{path}: lists and objects are nested deeper than the limit of {limit}; flatten them"
        ) from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{path}: holds a value that cannot be read ({error})") from error
    for layout, parse in _JSON.items():
        if (parsed := parse(path, text, content)) is not None:
            return Annotation(path, layout, *parsed)
    raise DataError(
        f"{path}, line 1: unknown layout; expected one of {', '.join(_JSON)} (see clipvid.data.formats.annotations)"
    )


Parsed = tuple[tuple[Entry, ...], tuple[str, ...]]


def _msrvtt(path: Path, text: str, content: Any) -> Parsed | None:
    """Parse MSRVTT_data.json: {"videos": [{video_id, split}], "sentences": [{video_id, caption}]}."""
    if not isinstance(content, dict) or not {"videos", "sentences"} <= set(content):
        return None
    splits: dict[str, str] = {}
    for video in content["videos"]:
        name = _field(video, "video_id", path, text)
        if name in splits:
            raise DataError(f"{path}, line {_line_of(text, name, 2)}: duplicate video {name!r}")
        splits[name] = _field(video, "split", path, text)
    captions: dict[str, list[str]] = {name: [] for name in splits}
    for sentence in content["sentences"]:
        name, caption = _field(sentence, "video_id", path, text), _field(sentence, "caption", path, text)
        if name not in captions:
            raise DataError(
                f"{path}, line {_line_of(text, name)}: a sentence is about {name!r}, which is not listed in videos"
            )
        captions[name].append(caption)
    return tuple(Entry(name, tuple(captions[name]), split=split) for name, split in splits.items()), ()


def _events(path: Path, text: str, content: Any) -> Parsed | None:
    """Parse {id: {"timestamps", "sentences"}} (ActivityNet Captions) or {id: {"text", "start", "end"}} (mdmmt)."""
    if not _is_dict_of(content, dict):
        return None
    entries = []
    for name, event in content.items():
        key = "sentences" if "sentences" in event else "text"
        if key not in event:
            raise DataError(f"{path}, line {_line_of(text, name)}: {name!r} has neither sentences nor text")
        entries.append(Entry(name, _captions(event[key], path, text, of=name)))
    return tuple(entries), ()


def _by_file(path: Path, text: str, content: Any) -> Parsed | None:
    """Parse {file: [captions]} or {file: caption}, or {class: number} if all values are numbers."""
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(v, str | int) and str(v).isascii() and str(v).isdigit() for v in content.values()):
        return (), _names_by_number([(int(number), name) for name, number in content.items()], path)
    if not all(isinstance(v, str | list) for v in content.values()):
        return None
    entries = []
    for name, lines in content.items():
        split = name if isinstance(lines, list) and lines and all(isinstance(line, dict) for line in lines) else None
        if split is not None:  # VIOLET: {split: [{video, caption}]}
            entries += [replace(entry, split=split) for entry in _pair_entries(lines, path, text)]
        else:
            entries.append(Entry(name, _captions(lines, path, text, of=name)))
    return tuple(entries), ()


def _pairs(path: Path, text: str, content: Any) -> Parsed | None:
    """Parse [{video, caption or description}] (DiDeMo, VindLU), one entry per caption, or [{id, template}] (SSv2)."""
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        return None
    if "id" in content[0] and "video" not in content[0]:
        return _labelled(path, text, content)
    return tuple(_pair_entries(content, path, text)), ()


def _labelled(path: Path, text: str, content: Sequence[Mapping[str, Any]]) -> Parsed:
    """Parse Something-Something's lists: the class is the template without brackets; the test list has only ids."""
    entries, seen = [], set()
    for item in content:
        name = _field(item, "id", path, text)
        if name in seen:
            raise DataError(f"{path}, line {_line_of(text, name, 2)}: duplicate id {name!r}")
        seen.add(name)
        template = str(item["template"]).replace("[", "").replace("]", "") if "template" in item else None
        captions = (str(item["label"]),) if item.get("label") else ()
        entries.append(Entry(name, captions, template))
    return tuple(entries), ()


def _strings(path: Path, text: str, content: Any) -> Parsed | None:
    """Parse [id] or [class name]; return the strings as both, since only the caller can tell them apart."""
    if not isinstance(content, list) or not content or not all(isinstance(item, str) for item in content):
        return None
    return tuple(_unique_entries([(item, 0) for item in content], path, text)), tuple(content)


_JSON: dict[str, Callable[[Path, str, Any], Parsed | None]] = {
    "MSRVTT_data.json": _msrvtt,
    "{id: {sentences or text}}": _events,
    "{file: captions}": _by_file,
    "[{video, caption}]": _pairs,
    "[names]": _strings,
}


def _from_text(path: Path, text: str) -> Annotation:
    """Parse tables and lists that are not JSON."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    first = lines[0][1]
    if first.count("\t") >= 5:
        return Annotation(path, "LSMDC", tuple(_lsmdc(path, lines)))
    header = {name.strip().lower() for name in re.split(r"[,;\t]", first)}
    if header & {"video_id", "youtube_id"} or {"id", "name"} <= header:
        return _table(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        raise DataError(
            f"{path}, line 1: expected a column video_id or youtube_id, or id and name, got "
            f"{', '.join(sorted(header))[:200]}"
        )
    numbered = [(number, *_split_last_word(line)) for number, line in lines]
    if all(name and last.isdigit() for _, name, last in numbered):
        return Annotation(path, "file number", tuple(Entry(name, label=n, line=number) for number, name, n in numbered))
    if all(line.split(maxsplit=1)[0].isdigit() and len(line.split(maxsplit=1)) == 2 for _, line in lines):
        pairs = [line.strip().split(maxsplit=1) for _, line in lines]
        return Annotation(path, "number class", (), _names_by_number([(int(n), name) for n, name in pairs], path))
    names = tuple(_unique_entries([(line.strip(), number) for number, line in lines], path, text))
    return Annotation(path, "names", names, tuple(entry.video for entry in names))


def _table(path: Path) -> Annotation:
    """Parse tables with a header: MSR-VTT's lists and pairs, Kinetics' clips, class names by number."""
    columns, rows = read_table(path)
    if {"id", "name"} <= set(columns):
        pairs = []
        for line, row in rows:
            if not row["id"].isdigit() or not row["name"]:
                raise DataError(f"{path}, line {line}: expected a number and a class name, got {str(row)[:120]}")
            pairs.append((int(row["id"]), row["name"]))
        return Annotation(path, "id,name", (), _names_by_number(pairs, path))
    key = "video_id" if "video_id" in columns else "youtube_id"
    entries: list[Entry] = []
    seen: dict[tuple[Any, ...], int] = {}
    for line, row in rows:
        if not row[key] or row.get("sentence") == "":
            raise DataError(f"{path}, line {line}: an empty field in {str(row)[:120]}")
        start, end = (_time(row.get(name), path, line) for name in ("time_start", "time_end"))
        captions = (row["sentence"],) if "sentence" in row else ()
        identity = (row[key], start, end, captions)
        if identity in seen:
            raise DataError(f"{path}, line {line}: duplicate entry {row[key]!r} (first on line {seen[identity]})")
        seen[identity] = line
        entries.append(Entry(row[key], captions, row.get("label"), start, end, row.get("split"), line))
    return Annotation(path, ",".join(columns), tuple(entries))


def _lsmdc(path: Path, lines: Sequence[tuple[int, str]]) -> list[Entry]:
    """Parse LSMDC's tab-separated lists without header: clip, four times, sentence."""
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) < 6 or not fields[0].strip() or not fields[-1].strip():
            raise DataError(f"{path}, line {number}: expected clip, four times and a sentence, got {line[:80]!r}")
        if fields[0] in seen:
            raise DataError(f"{path}, line {number}: duplicate clip {fields[0]!r} (first on line {seen[fields[0]]})")
        seen[fields[0]] = number
        entries.append(Entry(fields[0].strip(), (fields[-1].strip(),), line=number))
    return entries


def _pair_entries(items: Sequence[Mapping[str, Any]], path: Path, text: str) -> list[Entry]:
    """Return one entry per {video, caption or description}."""
    entries = []
    for item in items:
        name = _field(item, "video", path, text)
        key = next((key for key in ("caption", "description") if key in item), None)
        if key is None:
            raise DataError(f"{path}, line {_line_of(text, name)}: {name!r} has neither caption nor description")
        entries.append(Entry(name, _captions(item[key], path, text, of=name)))
    return entries


def _captions(lines: Any, path: Path, text: str, *, of: str) -> tuple[str, ...]:
    """Return the captions of video `of`; raise DataError if there are none or one is empty."""
    lines = [lines] if isinstance(lines, str) else lines
    if not isinstance(lines, list) or not lines or not all(isinstance(c, str) and c.strip() for c in lines):
        raise DataError(f"{path}, line {_line_of(text, of)}: {of!r} must have captions, got {str(lines)[:80]}")
    return tuple(line.strip() for line in lines)


def _field(item: Mapping[str, Any], name: str, path: Path, text: str) -> str:
    """Return a field as text; raise DataError if it is missing or empty."""
    value = item.get(name) if isinstance(item, Mapping) else None
    if value is None or not str(value).strip():
        neighbour = next((str(v) for v in item.values() if isinstance(v, str)), "") if isinstance(item, Mapping) else ""
        raise DataError(f"{path}, line {_line_of(text, neighbour)}: an entry without {name}: {str(item)[:120]}")
    return str(value)


def _unique_entries(names: Sequence[tuple[str, int]], path: Path, text: str) -> Iterator[Entry]:
    """Yield one entry per name, with its line; raise DataError for a duplicate."""
    seen: dict[str, int] = {}
    for name, line in names:
        if name in seen:
            raise DataError(f"{path}, line {line or _line_of(text, name, 2)}: duplicate entry {name!r}")
        seen[name] = line
        yield Entry(name, line=line)


def _names_by_number(pairs: Sequence[tuple[int, str]], path: Path) -> tuple[str, ...]:
    """Return class names ordered by number; raise DataError unless the numbers run from 0 or 1 without gaps."""
    ordered = sorted(pairs)
    numbers = [number for number, _ in ordered]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        raise DataError(f"{path}: the {len(numbers)} class numbers do not run from 0 or 1 without gaps")
    names = tuple(name for _, name in ordered)
    if len(set(names)) < len(names):
        duplicate = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path}: duplicate class {duplicate!r}")
    return names


def _split_last_word(line: str) -> tuple[str, str]:
    """Return the line without its last word, and the last word."""
    name, _, last = line.strip().replace("\t", " ").rpartition(" ")
    return name.strip(), last


def _time(text: str | None, path: Path, line: int) -> float | None:
    """Return a time in seconds, None for an empty field."""
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {text!r} is not a time in seconds") from error


def _is_dict_of(content: Any, kind: type) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, kind) for v in content.values())


def _line_of(text: str, name: str, occurrence: int = 1) -> int:
    """Return the line of the n-th occurrence of a JSON string, or of the last one before it; 1 if there is none."""
    position, quoted = -1, json.dumps(name)
    for _ in range(occurrence):
        match = text.find(quoted, position + 1)
        if match < 0:
            break
        position = match
    return 1 if position < 0 else text.count("\n", 0, position) + 1
