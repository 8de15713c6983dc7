"""The layouts in which annotation files circulate, told apart by what is in them and never by their name.

Contract: a file in; the videos that it lists, with captions, class and times where it says so, or the class names that
it lists; in its order, nothing merged and nothing dropped. What it does not say clearly is a DataError that names file
and line. Knows nothing of protocols, of expected numbers, or of the videos' files.
Official files: MSR-VTT, DiDeMo, LSMDC, ActivityNet Captions, Kinetics, Something-Something, UCF101, HMDB51. Others:
CLIP4Clip's csv lists, {file: captions} (STAN, X-Pool), {id: {text, start, end}} (mdmmt), lists of {video, caption}
(VindLU, VIOLET), and lists of "file number" (mmaction2, ViFi-CLIP, Text4Vis).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipvid.data.formats.csv import read_table, text_of
from clipvid.errors import DataError


@dataclass(frozen=True)
class Entry:
    """What a file says of one video, in one place."""

    video: str
    """File name, path or id."""
    captions: tuple[str, ...] = ()
    label: str | None = None
    """Class name, or number, as it stands there."""
    start: float | None = None
    end: float | None = None
    """Seconds of the video that the entry is about."""
    split: str | None = None
    line: int = 0
    """Of the file, from 1; 0 in JSON, where `Annotation.place` looks for it."""


@dataclass(frozen=True)
class Annotation:
    """All that a file says: entries of videos, or class names in label order."""

    path: Path
    layout: str
    entries: tuple[Entry, ...] = ()
    classes: tuple[str, ...] = ()

    def place(self, entry: Entry) -> str:
        """File and line of an entry, for what is said of it."""
        return f"{self.path}, line {entry.line or _line_of(text_of(self.path), entry.video)}"


def read_annotation(path: Path) -> Annotation:
    """Read a file in any layout; DataError with file and line for damage, and for a layout that is none of these."""
    text = text_of(path)
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    found = _from_json(path, text) if text.lstrip()[0] in "[{" else _from_text(path, text)
    if not found.entries and not found.classes:
        raise DataError(f"{path}: lists no video and no class")
    return found


def _from_json(path: Path, text: str) -> Annotation:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for name, value in pairs:
            if name in known:  # json keeps the last one in silence
                raise DataError(f"{path}, line {_line_of(text, name, 2)}: {name!r} stands there twice")
            known[name] = value
        return known

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    for layout, parse in _JSON.items():
        if (found := parse(path, text, content)) is not None:
            return Annotation(path, layout, *found)
    raise DataError(
        f"{path}, line 1: no layout that is known; expected one of {', '.join(_JSON)} "
        "(see clipvid.data.formats.annotations)"
    )


Found = tuple[tuple[Entry, ...], tuple[str, ...]]


def _msrvtt(path: Path, text: str, content: Any) -> Found | None:
    """MSRVTT_data.json: {"videos": [{video_id, split}], "sentences": [{video_id, caption}]}."""
    if not isinstance(content, dict) or not {"videos", "sentences"} <= set(content):
        return None
    splits: dict[str, str] = {}
    for video in content["videos"]:
        name = _field(video, "video_id", path, text)
        if name in splits:
            raise DataError(f"{path}, line {_line_of(text, name, 2)}: video {name!r} stands there twice")
        splits[name] = _field(video, "split", path, text)
    captions: dict[str, list[str]] = {name: [] for name in splits}
    for sentence in content["sentences"]:
        name, caption = _field(sentence, "video_id", path, text), _field(sentence, "caption", path, text)
        if name not in captions:
            raise DataError(f"{path}, line {_line_of(text, name)}: a sentence of {name!r}, which is no video there")
        captions[name].append(caption)
    return tuple(Entry(name, tuple(captions[name]), split=split) for name, split in splits.items()), ()


def _events(path: Path, text: str, content: Any) -> Found | None:
    """{id: {"timestamps", "sentences"}} (ActivityNet Captions), {id: {"text", "start", "end"}} (mdmmt)."""
    if not _is_dict_of(content, dict):
        return None
    entries = []
    for name, told in content.items():
        key = "sentences" if "sentences" in told else "text"
        if key not in told:
            raise DataError(f"{path}, line {_line_of(text, name)}: {name!r} has neither sentences nor text")
        entries.append(Entry(name, _captions(told[key], path, text, of=name)))
    return tuple(entries), ()


def _by_file(path: Path, text: str, content: Any) -> Found | None:
    """{file: [captions]} or {file: caption}; {class: number} where all values are numbers."""
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(v, str | int) and str(v).isascii() and str(v).isdigit() for v in content.values()):
        return (), _in_order([(int(number), name) for name, number in content.items()], path)
    if not all(isinstance(v, str | list) for v in content.values()):
        return None
    entries = []
    for name, lines in content.items():
        split = name if isinstance(lines, list) and lines and all(isinstance(line, dict) for line in lines) else None
        if split is not None:  # VIOLET: {split: [{video, caption}]}
            entries += [replace(entry, split=split) for entry in _pairs_of(lines, path, text)]
        else:
            entries.append(Entry(name, _captions(lines, path, text, of=name)))
    return tuple(entries), ()


def _pairs(path: Path, text: str, content: Any) -> Found | None:
    """[{video, caption or description}] (DiDeMo, VindLU), one entry a caption; [{id, template}] (SSv2)."""
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        return None
    if "id" in content[0] and "video" not in content[0]:
        return _labelled(path, text, content)
    return tuple(_pairs_of(content, path, text)), ()


def _labelled(path: Path, text: str, content: Sequence[Mapping[str, Any]]) -> Found:
    """Something-Something's lists: the class is the template without its brackets; the test list has ids alone."""
    entries, seen = [], set()
    for item in content:
        name = _field(item, "id", path, text)
        if name in seen:
            raise DataError(f"{path}, line {_line_of(text, name, 2)}: id {name!r} stands there twice")
        seen.add(name)
        template = str(item["template"]).replace("[", "").replace("]", "") if "template" in item else None
        captions = (str(item["label"]),) if item.get("label") else ()
        entries.append(Entry(name, captions, template))
    return tuple(entries), ()


def _strings(path: Path, text: str, content: Any) -> Found | None:
    """[id] or [class name]: which of the two, the reader knows."""
    if not isinstance(content, list) or not content or not all(isinstance(item, str) for item in content):
        return None
    return tuple(_once([(item, 0) for item in content], path, text)), tuple(content)


_JSON: dict[str, Callable[[Path, str, Any], Found | None]] = {
    "MSRVTT_data.json": _msrvtt,
    "{id: {sentences or text}}": _events,
    "{file: captions}": _by_file,
    "[{video, caption}]": _pairs,
    "[names]": _strings,
}


def _from_text(path: Path, text: str) -> Annotation:
    """Tables and lists that are no JSON."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    first = lines[0][1]
    if first.count("\t") >= 5:
        return Annotation(path, "LSMDC", tuple(_lsmdc(path, lines)))
    head = {name.strip().lower() for name in re.split(r"[,;\t]", first)}
    if head & {"video_id", "youtube_id"} or {"id", "name"} <= head:
        return _table(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        raise DataError(
            f"{path}, line 1: expected a column video_id or youtube_id, or id and name, got {', '.join(sorted(head))}"
        )
    found = [(number, *_two(line)) for number, line in lines]
    if all(name and last.isdigit() for _, name, last in found):
        return Annotation(path, "file number", tuple(Entry(name, label=n, line=number) for number, name, n in found))
    if all(line.split(maxsplit=1)[0].isdigit() and len(line.split(maxsplit=1)) == 2 for _, line in lines):
        pairs = [line.strip().split(maxsplit=1) for _, line in lines]
        return Annotation(path, "number class", (), _in_order([(int(n), name) for n, name in pairs], path))
    names = tuple(_once([(line.strip(), number) for number, line in lines], path, text))
    return Annotation(path, "names", names, tuple(entry.video for entry in names))


def _table(path: Path) -> Annotation:
    """Tables with a header: MSR-VTT's lists and pairs, Kinetics' clips, class names by number."""
    columns, rows = read_table(path)
    if {"id", "name"} <= set(columns):
        pairs = []
        for line, row in rows:
            if not row["id"].isdigit() or not row["name"]:
                raise DataError(f"{path}, line {line}: expected a number and a class name, got {row}")
            pairs.append((int(row["id"]), row["name"]))
        return Annotation(path, "id,name", (), _in_order(pairs, path))
    key = "video_id" if "video_id" in columns else "youtube_id"
    entries: list[Entry] = []
    seen: dict[tuple[Any, ...], int] = {}
    for line, row in rows:
        if not row[key] or row.get("sentence") == "":
            raise DataError(f"{path}, line {line}: an empty field in {row}")
        start, end = (_time(row.get(name), path, line) for name in ("time_start", "time_end"))
        captions = (row["sentence"],) if "sentence" in row else ()
        own = (row[key], start, end, captions)
        if own in seen:
            raise DataError(f"{path}, line {line}: {row[key]!r} stands in line {seen[own]} already")
        seen[own] = line
        entries.append(Entry(row[key], captions, row.get("label"), start, end, row.get("split"), line))
    return Annotation(path, ",".join(columns), tuple(entries))


def _lsmdc(path: Path, lines: Sequence[tuple[int, str]]) -> list[Entry]:
    """LSMDC's tab-separated lists without header: clip, four times, sentence."""
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) < 6 or not fields[0].strip() or not fields[-1].strip():
            raise DataError(f"{path}, line {number}: expected clip, four times and a sentence, got {line[:80]!r}")
        if fields[0] in seen:
            raise DataError(f"{path}, line {number}: clip {fields[0]!r} stands in line {seen[fields[0]]} already")
        seen[fields[0]] = number
        entries.append(Entry(fields[0].strip(), (fields[-1].strip(),), line=number))
    return entries


def _pairs_of(items: Sequence[Mapping[str, Any]], path: Path, text: str) -> list[Entry]:
    entries = []
    for item in items:
        name = _field(item, "video", path, text)
        key = next((key for key in ("caption", "description") if key in item), None)
        if key is None:
            raise DataError(f"{path}, line {_line_of(text, name)}: {name!r} has neither caption nor description")
        entries.append(Entry(name, _captions(item[key], path, text, of=name)))
    return entries


def _captions(lines: Any, path: Path, text: str, *, of: str) -> tuple[str, ...]:
    lines = [lines] if isinstance(lines, str) else lines
    if not isinstance(lines, list) or not lines or not all(isinstance(c, str) and c.strip() for c in lines):
        raise DataError(f"{path}, line {_line_of(text, of)}: {of!r} must have captions, got {str(lines)[:80]}")
    return tuple(line.strip() for line in lines)


def _field(item: Mapping[str, Any], name: str, path: Path, text: str) -> str:
    value = item.get(name) if isinstance(item, Mapping) else None
    if value is None or not str(value).strip():
        near = next((str(v) for v in item.values() if isinstance(v, str)), "") if isinstance(item, Mapping) else ""
        raise DataError(f"{path}, line {_line_of(text, near)}: an entry without {name}: {str(item)[:120]}")
    return str(value)


def _once(names: Sequence[tuple[str, int]], path: Path, text: str) -> Iterator[Entry]:
    """An entry a name, with its line; an error for one that stands there twice."""
    seen: dict[str, int] = {}
    for name, line in names:
        if name in seen:
            raise DataError(f"{path}, line {line or _line_of(text, name, 2)}: {name!r} stands there twice")
        seen[name] = line
        yield Entry(name, line=line)


def _in_order(pairs: Sequence[tuple[int, str]], path: Path) -> tuple[str, ...]:
    """Class names by their numbers, which must run on without gaps from 0 or 1."""
    ordered = sorted(pairs)
    numbers = [number for number, _ in ordered]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        raise DataError(f"{path}: the {len(numbers)} class numbers do not run from 0 or 1 on without gaps")
    names = tuple(name for _, name in ordered)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: class {twice!r} stands there twice")
    return names


def _two(line: str) -> tuple[str, str]:
    """All but the last word, and the last."""
    name, _, last = line.strip().replace("\t", " ").rpartition(" ")
    return name.strip(), last


def _time(text: str | None, path: Path, line: int) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {text!r} is no time in seconds") from error


def _is_dict_of(content: Any, kind: type) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, kind) for v in content.values())


def _line_of(text: str, name: str, occurrence: int = 1) -> int:
    """The line in which a string stands for the first time, or a later one; 1 where it does not stand as it is."""
    place, quoted = -1, json.dumps(name)
    for _ in range(occurrence):
        found = text.find(quoted, place + 1)
        if found < 0:
            break
        place = found
    return 1 if place < 0 else text.count("\n", 0, place) + 1
