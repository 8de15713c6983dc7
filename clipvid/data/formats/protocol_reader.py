"""Reader of named protocols: exactly the videos and captions of a protocol, or an error with the actual numbers.

Contract: a protocol, a folder and a split in, a VideoDataset out. Annotation files are found by their usual names, read
in any layout (annotations.py), and matched by name with video files of any suffix. Opens no video.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from clipvid.data.files import exists
from clipvid.data.formats.annotations import Annotation, Entry, read_annotation
from clipvid.data.formats.protocols import Protocol, Split
from clipvid.data.formats.video_files import VideoFiles, expected_name, name_of, stem_of
from clipvid.data.records import ProtocolSpec, Record, VideoDataset
from clipvid.errors import DataError
from clipvid.registry import PROTOCOLS
from clipvid.runtime.text import pluralize

FOLDERS = ("", "annotations", "annotation", "anns", "msrvtt_data", "data", "splits", "labels")
OFFICIAL = ("testTrainMulti_7030_splits", "ucfTrainTestlist")  # folders in the archives of HMDB51 and UCF101
"""Folders searched for annotation files, in the root and beside it, besides a folder named after the data set."""
_GENERIC = {"train", "training", "val", "valid", "validation", "test", "testing", "data", "list", "split"}
"""Generic words in file names: a name made of these alone does not identify the protocol of a list."""


@dataclass(frozen=True)
class _Clip:
    """All entries of one clip, merged."""

    entry: Entry
    captions: list[str] = field(default_factory=list)


Clips = dict[tuple[str, float | None, float | None], _Clip]
"""Clips by (name without suffix, start, end)."""


def open_protocol(
    protocol: Protocol,
    root: Path,
    *,
    split: str | None,
    annotations: Path | None,
    classes: Sequence[str] | None,
    allow_missing: bool,
    check_files: bool,
) -> VideoDataset:
    """Read a split of a protocol; `annotations` is the file, or the folder of the files, if not in the usual folders.

    A file given without a split is read as the split whose usual name it has. A file of any other name is a custom
    list, and the result is named after it; without a split all of it is read, and evaluation refuses metrics over fewer
    videos than the default split has. `allow_missing` allows annotations with fewer videos than the protocol has;
    videos that are not on disk are listed in the result.
    """
    p = protocol
    name, chosen = _choose_split(p, split, annotations)
    finder = _AnnotationFinder(p, root, annotations)
    lists = finder.read_lists(chosen)
    is_custom = _is_custom_list(lists, chosen, finder)
    entries = _entries_of_split(lists, chosen, finder)
    if p.by_template:
        entries = [e if e.label is None else replace(e, captions=(e.label,)) for e in entries]
    clips = _group_entries(entries)
    if p.task == "retrieval":
        clips = _add_captions(clips, finder, source=lists[0].path)
    uncaptioned = [key for key, clip in clips.items() if p.task == "retrieval" and not clip.captions]
    if uncaptioned and (not allow_missing or len(uncaptioned) == len(clips)):
        advice = "" if len(uncaptioned) == len(clips) else ", or allow it (allow_missing) to continue without them"
        raise DataError(
            f"{lists[0].path}: no captions for {len(uncaptioned)} of {len(clips)} videos, such as {uncaptioned[0][0]}; "
            f"get those{advice}"
        )
    _check_counts(p, chosen, name, clips, source=lists[0].path, fewer=allow_missing)
    complete = lists if len(clips) == chosen.videos else ()
    names = _class_names(p, finder, given=classes, complete=complete) if p.task == "recognition" else ()
    labels = _Labels(p, names, lists)
    files = VideoFiles(root) if check_files else None
    records, missing = [], [Path(key[0]) for key in uncaptioned]
    for key, clip in clips.items():
        if key in uncaptioned:
            continue
        path = files.find(clip.entry) if files else root / expected_name(clip.entry)
        if path is None:
            missing.append(root / expected_name(clip.entry))
            continue
        captions = (" ".join(clip.captions),) if p.paragraph and clip.captions else tuple(clip.captions)
        label = labels.index_of(clip.entry) if names else None
        records.append(Record(path, captions if p.task == "retrieval" else (), label))
    full_name = f"{p.name}:{name}" if name else p.name
    full_name = f"{full_name}, list {lists[0].path.stem}" if is_custom else full_name
    fewer, n_listed = allow_missing, len(clips) if is_custom else None
    protocol_spec = ProtocolSpec(chosen.videos, p.frames, p.tokens, shared=p.by_template, fewer=fewer, listed=n_listed)
    return VideoDataset(tuple(records), names, full_name, tuple(missing), protocol_spec, lists[0].path)


def _choose_split(p: Protocol, split: str | None, annotations: Path | None) -> tuple[str, Split]:
    """Return name and split; for a custom list without split "" and a split with the default's number of videos.

    Raise DataError for a file with the usual name of another split or protocol, even if videos may be missing.
    """
    file = annotations if annotations is not None and annotations.is_file() else None
    matching = [
        name for name, candidate in p.splits.items() if file is not None and _is_list_name(candidate, file.name)
    ]
    if file is not None and not matching and not (split and file.name in p.captions_in):
        _refuse_others(p, file, split or p.default)
    name = split or (next(iter(matching), "") if file is not None else p.default)
    if name is None:
        raise DataError(f"{p.name} needs a split, one of {', '.join(p.splits)}, or one file as annotations")
    if not name:
        return "", Split((), None if p.default is None else p.splits[p.default].videos)
    if name not in p.splits:
        note = f"; {p.note}" if p.note else ""
        raise DataError(f"{p.name} has no split {name!r}; choose one of {', '.join(p.splits)}{note}")
    if matching and name not in matching:
        raise DataError(f"{file} is the list of {p.name} {' and '.join(matching)}, not of {name}; give another one")
    return name, p.splits[name]


def _refuse_others(p: Protocol, file: Path, split: str | None) -> None:
    """Raise DataError for a file whose name is specific to the lists of another protocol."""
    if _GENERIC.issuperset(re.findall("[a-z]+", file.stem.lower())):
        return
    for other in PROTOCOLS.values():
        if splits := [name for name, candidate in other.splits.items() if _is_list_name(candidate, file.name)]:
            files = p.splits[split].files if split and split in p.splits else ("one of its lists",)
            raise DataError(
                f"{file} is the list of {other.name} {', '.join(splits)}, not of {p.name}; give {' or '.join(files)}, "
                f"or name {other.name} as the protocol; a custom list needs another name"
            )


def _is_list_name(split: Split, name: str) -> bool:
    """Return True if files of this name list the split."""
    return any(fnmatchcase(name, pattern) for pattern in split.files)


class _AnnotationFinder:
    """Search for a protocol's annotation files in the usual folders."""

    def __init__(self, p: Protocol, root: Path, annotations: Path | None) -> None:
        self.p, self.file = p, annotations if annotations is not None and annotations.is_file() else None
        bases = [root, root.parent]
        if annotations is not None:
            bases = [annotations.parent if self.file else annotations, *([root] if self.file else [])]
        data_set = p.name.partition("-")[0]
        names = [
            *FOLDERS,
            *OFFICIAL,
            data_set,
            data_set.upper(),
            *(f"{data_set.upper()}/{name}" for name in FOLDERS[1:3]),
        ]
        self.folders = [base / name for base in bases for name in names]

    def read_lists(self, split: Split) -> list[Annotation]:
        """Return the parsed files that list the split's videos."""
        if self.file is not None:
            return [read_annotation(self.file)]
        return [read_annotation(path) for path in self.find(split.files)]

    def find(self, names: Sequence[str]) -> list[Path]:
        """Return the first existing file, or all files of a pattern in one folder; raise DataError if there is none."""
        if paths := self.find_if_any(names):
            return paths
        searched = " and the usual folders below and beside it" if len(self.folders) > 2 else ""
        is_split_list = any(names == split.files for split in self.p.splits.values())
        target = "the file or its folder" if is_split_list else "its folder"
        raise DataError(
            f"{self.p.name} needs {' or '.join(names)}, not found in {self.folders[0]}{searched}; "
            f"give {target} as annotations=PATH"
        )

    def find_if_any(self, names: Sequence[str]) -> list[Path]:
        """Return the same as `find`, but [] if there is none."""
        for folder in self.folders:
            for name in names:
                paths = sorted(folder.glob(name)) if "*" in name else [folder / name]
                if paths and all(exists(path) for path in paths):
                    return paths
        return []


def _entries_of_split(lists: Sequence[Annotation], split: Split, finder: _AnnotationFinder) -> list[Entry]:
    """Return the entries of the split from files that may hold other splits too."""
    if finder.p.coded:
        return [e for a in lists for e in _entries_by_code(a, split)]
    entries = [entry for annotation in lists for entry in annotation.entries]
    if not any(entry.split for entry in entries) or not split.files:
        return entries
    if split.keep:
        return [entry for entry in entries if entry.split in split.keep]
    by_name = {entry.video: entry for entry in entries}  # the official file of all videos, from which a list selects
    return [
        replace(entry, captions=by_name[entry.video].captions) if entry.video in by_name else entry
        for path in finder.find(split.files)
        for entry in read_annotation(path).entries
    ]


def _is_custom_list(lists: Sequence[Annotation], split: Split, finder: _AnnotationFinder) -> bool:
    """Return True for a custom list: a given file that has no usual name and is not the official file of all videos."""
    if finder.file is None or _is_list_name(split, finder.file.name):
        return False
    return not split.files or bool(split.keep) or not any(entry.split for a in lists for entry in a.entries)


def _entries_by_code(annotation: Annotation, split: Split) -> list[Entry]:
    """Select HMDB51 entries: the file name holds the class, column 2 is 1 for training, 2 for testing, else 0."""
    if annotation.layout == "names":
        raise DataError(f"{annotation.path}, line 1: expected file and code, such as 'x.avi 1'")
    label = _class_of(annotation)
    wrong = next((e for e in annotation.entries if label and e.label not in ("0", "1", "2")), None)
    if wrong is not None:
        raise DataError(f"{annotation.location(wrong)}: code {wrong.label!r} is none of 0, 1 and 2")
    if not label:  # a list of files with class numbers
        return list(annotation.entries)
    return [replace(entry, label=label) for entry in annotation.entries if entry.label in split.keep or not split.keep]


def _class_of(annotation: Annotation) -> str:
    """Return the class in the name of an official HMDB51 file, "" for other files."""
    return annotation.path.name.rpartition("_test_split")[0]


def _group_entries(entries: Sequence[Entry]) -> Clips:
    """Merge the entries of each clip, in the order of their first entries."""
    clips: Clips = {}
    for entry in entries:
        clips.setdefault((stem_of(entry.video), entry.start, entry.end), _Clip(entry)).captions.extend(entry.captions)
    return clips


def _add_captions(clips: Clips, finder: _AnnotationFinder, *, source: Path) -> Clips:
    """Return clips with captions from the file of all captions if their list has none, else unchanged."""
    if any(clip.captions for clip in clips.values()) or not finder.p.captions_in:
        return clips
    if finder.file is not None and not finder.find_if_any(finder.p.captions_in):
        raise DataError(
            f"{source} lists {pluralize(len(clips), 'name')}, such as {next(iter(clips))[0]!r}, without captions; if "
            f"they are videos of {finder.p.name}, put {' or '.join(finder.p.captions_in)} beside it"
        )
    captions_by_name: dict[str, tuple[str, ...]] = {}
    for path in finder.find(finder.p.captions_in):
        captions_by_name |= {stem_of(entry.video): entry.captions for entry in read_annotation(path).entries}
    return {key: _Clip(clip.entry, list(captions_by_name.get(key[0], ()))) for key, clip in clips.items()}


def _check_counts(p: Protocol, split: Split, name: str, clips: Clips, *, source: Path, fewer: bool) -> None:
    """Raise DataError if the numbers differ from the split's; `fewer` allows smaller ones, never larger."""
    if not split.files:
        return
    actual = (len(clips), sum(len(clip.captions) for clip in clips.values()))
    expected = (split.videos, split.captions)
    counts = [
        (n_expected, n_actual) for n_expected, n_actual in zip(expected, actual, strict=True) if n_expected is not None
    ]
    too_many = any(n_actual > n_expected for n_expected, n_actual in counts)
    if too_many or (not fewer and any(n_actual < n_expected for n_expected, n_actual in counts)):
        captions = f" and {split.captions} captions" if split.captions is not None else ""
        advice = "it lists something else" if too_many else "get the complete file, or allow it (allow_missing)"
        raise DataError(
            f"{source}: {p.name} {name} has {split.videos} videos{captions}, but got {actual[0]} and {actual[1]}; "
            f"{advice}"
        )


def _class_names(
    p: Protocol, finder: _AnnotationFinder, *, given: Sequence[str] | None, complete: Sequence[Annotation]
) -> tuple[str, ...]:
    """Return class names in label order, as words for prompts; `complete` holds the files of a complete split."""
    if given is not None:
        return tuple(given)
    if p.coded and not finder.find_if_any(p.class_files) and (names := sorted({_class_of(a) for a in complete} - {""})):
        return tuple(names)  # HMDB51's archive has one file per class and no list of classes
    annotation = read_annotation(finder.find(p.class_files)[0])
    if not annotation.classes:
        raise DataError(f"{annotation.path}: lists no classes; {p.name} takes them from {' or '.join(p.class_files)}")
    return tuple(name.replace("[", "").replace("]", "") for name in annotation.classes)


class _Labels:
    """Class indices of entries, by the folder of the video, by class name or by number."""

    def __init__(self, p: Protocol, names: Sequence[str], lists: Sequence[Annotation]) -> None:
        self.p, self.names, self.lists = p, names, lists
        self.index = {_normalize(name): number for number, name in enumerate(names)}
        patterns = sorted((name.strip().replace(" ", "_") for name in names), key=len, reverse=True)
        self.name_pattern = (
            re.compile(f"_({'|'.join(map(re.escape, patterns))}){p.class_in_name}") if p.class_in_name else None
        )

    def index_of(self, entry: Entry) -> int | None:
        """Return the class index, None without a class; DataError if it is unknown or contradicts the file name."""
        folder = _normalize(name_of(os.path.dirname(entry.video.rstrip("/"))))
        label = _normalize(entry.label or "")
        if folder in self.index:
            return self.index[folder]
        if not label or label in self.index:
            return self.index.get(label)
        if not label.isdigit() or int(label) >= len(self.names):
            raise DataError(
                f"{self._location(entry)}: class {entry.label!r} of {entry.video} is none of {len(self.names)}"
            )
        match = self.name_pattern.search(entry.video) if self.name_pattern else None
        if match is not None and self.index[_normalize(match[1])] != int(label):
            raise DataError(
                f"{self._location(entry)}: {entry.video} has number {label}, {self.names[int(label)]}, and shows "
                f"{match[1]}: the list counts classes in another order; {self.p.note or 'take the official files'}"
            )
        return int(label)

    def _location(self, entry: Entry) -> str:
        return next((a.location(entry) for a in self.lists if entry in a.entries), str(self.lists[0].path))


@lru_cache(maxsize=4096)  # the names of a list are those of a few hundred classes
def _normalize(name: str) -> str:
    """Return the lower-case letters and digits of a class name: "brush_hair" and "BrushHair" are equal."""
    return "".join(c for c in name.lower() if c.isalnum())
