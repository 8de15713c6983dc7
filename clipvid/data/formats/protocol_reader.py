"""Reader of named protocols: exactly the videos and captions that a protocol says, or a count of what is there instead.

Contract: a protocol, a folder and a split in, a VideoDataset out. Annotation files are found by their usual names,
read in
any layout (layouts.py), and matched with files of any suffix by name. Opens no video.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from clipvid.data.files import exists, find_clips, is_video
from clipvid.data.formats.annotations import Annotation, Entry, read_annotation
from clipvid.data.formats.protocols import PROTOCOLS, Protocol, Split
from clipvid.data.records import ProtocolSpec, Record, VideoDataset
from clipvid.errors import DataError
from clipvid.runtime.text import pluralize

FOLDERS = ("", "annotations", "annotation", "anns", "msrvtt_data", "data", "splits", "labels")
OFFICIAL = ("testTrainMulti_7030_splits", "ucfTrainTestlist")  # as HMDB51's and UCF101's archives unpack
"""Where annotation files lie, in the root or beside it, and in a folder named as the data set."""
_PLAIN = {"train", "training", "val", "valid", "validation", "test", "testing", "data", "list", "split"}
"""Words of which anybody may make a file's name: one of these alone does not tell of which protocol a list is."""


@dataclass(frozen=True)
class _Clip:
    """All entries of one clip."""

    entry: Entry
    captions: list[str] = field(default_factory=list)


Clips = dict[tuple[str, float | None, float | None], _Clip]
"""By name without suffix, start and end."""


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
    """Read a split of a protocol. `annotations` names the file, or the folder of the files, where they lie elsewhere.

    A file given without a split is the split whose usual name it has. One of another name is a list of one's own, which
    the result is named for; without a split it is read whole, and figures over fewer videos than the protocol's usual
    split has are refused where they are made.
    `allow_missing` allows fewer videos in the annotations than the protocol has; those that are not on the disk are
    listed in the result.
    """
    p = protocol
    name, part = _split_of(p, split, annotations)
    where = _Places(p, root, annotations)
    listed = where.listed(part)
    own = _is_own(listed, part, where)
    entries = _kept(listed, part, where)
    if p.by_template:
        entries = [e if e.label is None else replace(e, captions=(e.label,)) for e in entries]
    clips = _clips(entries)
    if p.task == "retrieval":
        clips = _captioned(clips, where, source=listed[0].path)
    without = [key for key, clip in clips.items() if p.task == "retrieval" and not clip.captions]
    if without and (not allow_missing or len(without) == len(clips)):
        allow = "" if len(without) == len(clips) else ", or allow it (allow_missing) to go on without them"
        raise DataError(
            f"{listed[0].path}: no captions for {len(without)} of {len(clips)} videos, such as {without[0][0]}; "
            f"get those{allow}"
        )
    _check_counts(p, part, name, clips, source=listed[0].path, fewer=allow_missing)
    whole = listed if len(clips) == part.videos else ()
    names = _classes(p, where, given=classes, whole=whole) if p.task == "recognition" else ()
    labels = _Labels(p, names, listed)
    files = _Files(root) if check_files else None
    records, missing = [], [Path(key[0]) for key in without]
    for key, clip in clips.items():
        if key in without:
            continue
        path = files.find(clip.entry) if files else root / _named(clip.entry)
        if path is None:
            missing.append(root / _named(clip.entry))
            continue
        captions = (" ".join(clip.captions),) if p.paragraph and clip.captions else tuple(clip.captions)
        label = labels.of(clip.entry) if names else None
        records.append(Record(path, captions if p.task == "retrieval" else (), label))
    told = f"{p.name}:{name}" if name else p.name
    told = f"{told}, list {listed[0].path.stem}" if own else told
    fewer, n_listed = allow_missing, len(clips) if own else None
    protocol_spec = ProtocolSpec(part.videos, p.frames, p.tokens, shared=p.by_template, fewer=fewer, listed=n_listed)
    return VideoDataset(tuple(records), names, told, tuple(missing), protocol_spec, listed[0].path)


def _split_of(p: Protocol, split: str | None, annotations: Path | None) -> tuple[str, Split]:
    """Name and split; of a file of one's own "", and a split without files that has the usual one's number of videos.

    A file under the usual name of another split or protocol is refused, however many videos may be missing.
    """
    file = annotations if annotations is not None and annotations.is_file() else None
    listing = [name for name, known in p.splits.items() if file is not None and _has(known, file.name)]
    if file is not None and not listing and not (split and file.name in p.captions_in):
        _refuse_others(p, file, split or p.default)
    name = split or (next(iter(listing), "") if file is not None else p.default)
    if name is None:
        raise DataError(f"{p.name} needs a split, one of {', '.join(p.splits)}, or one file as annotations")
    if not name:
        return "", Split((), None if p.default is None else p.splits[p.default].videos)
    if name not in p.splits:
        note = f"; {p.note}" if p.note else ""
        raise DataError(f"{p.name} has no split {name!r}; choose one of {', '.join(p.splits)}{note}")
    if listing and name not in listing:
        raise DataError(f"{file} is the list of {p.name} {' and '.join(listing)}, not of {name}; give another one")
    return name, p.splits[name]


def _refuse_others(p: Protocol, file: Path, split: str | None) -> None:
    """DataError for a file under a name by which lists of another protocol circulate, and which tells so."""
    if _PLAIN.issuperset(re.findall("[a-z]+", file.stem.lower())):
        return
    for other in PROTOCOLS.values():
        if splits := [name for name, known in other.splits.items() if _has(known, file.name)]:
            files = p.splits[split].files if split and split in p.splits else ("one of its own",)
            raise DataError(
                f"{file} is the list of {other.name} {', '.join(splits)}, not of {p.name}; give {' or '.join(files)}, "
                f"or name {other.name} as the protocol; a list of your own needs another name"
            )


def _has(split: Split, name: str) -> bool:
    """A file of this name lists the split."""
    return any(fnmatchcase(name, known) for known in split.files)


class _Places:
    """Where annotation files of a protocol are looked for."""

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

    def listed(self, split: Split) -> list[Annotation]:
        """The files that list the split's videos."""
        if self.file is not None:
            return [read_annotation(self.file)]
        return [read_annotation(path) for path in self.find(split.files)]

    def find(self, names: Sequence[str]) -> list[Path]:
        """The first of the files that exists; of a pattern all of its folder. DataError where there is none."""
        if found := self.look(names):
            return found
        more = " and the usual folders below and beside it" if len(self.folders) > 2 else ""
        listing = any(names == split.files for split in self.p.splits.values())
        what = "the file or its folder" if listing else "its folder"
        raise DataError(
            f"{self.p.name} needs {' or '.join(names)}, not in {self.folders[0]}{more}; name {what} with --annotations"
        )

    def look(self, names: Sequence[str]) -> list[Path]:
        for folder in self.folders:
            for name in names:
                found = sorted(folder.glob(name)) if "*" in name else [folder / name]
                if found and all(exists(path) for path in found):
                    return found
        return []


def _kept(listed: Sequence[Annotation], split: Split, where: _Places) -> list[Entry]:
    """The entries of the split, of files that may hold others too."""
    if where.p.coded:
        return [e for a in listed for e in _of_code(a, split)]
    entries = [entry for annotation in listed for entry in annotation.entries]
    if not any(entry.split for entry in entries) or not split.files:
        return entries
    if split.keep:
        return [entry for entry in entries if entry.split in split.keep]
    by_name = {entry.video: entry for entry in entries}  # the official file, of which a list takes a part
    return [
        replace(entry, captions=by_name[entry.video].captions) if entry.video in by_name else entry
        for path in where.find(split.files)
        for entry in read_annotation(path).entries
    ]


def _is_own(listed: Sequence[Annotation], split: Split, where: _Places) -> bool:
    """It is a list of one's own: given by name, not by a usual one, and no file of all videos of which a list takes a
    part.
    """
    if where.file is None or _has(split, where.file.name):
        return False
    return not split.files or bool(split.keep) or not any(entry.split for a in listed for entry in a.entries)


def _of_code(annotation: Annotation, split: Split) -> list[Entry]:
    """HMDB51: the file's name has the class, its second column 1 for training, 2 for testing and 0 for neither."""
    if annotation.layout == "names":
        raise DataError(f"{annotation.path}, line 1: expected file and code, such as 'x.avi 1'")
    label = _class_of(annotation)
    wrong = next((e for e in annotation.entries if label and e.label not in ("0", "1", "2")), None)
    if wrong is not None:
        raise DataError(f"{annotation.place(wrong)}: code {wrong.label!r} is none of 0, 1 and 2")
    if not label:  # a list of file and class number
        return list(annotation.entries)
    return [replace(entry, label=label) for entry in annotation.entries if entry.label in split.keep or not split.keep]


def _class_of(annotation: Annotation) -> str:
    """The class that the name of one of HMDB51's official files tells, "" for another file."""
    return annotation.path.name.rpartition("_test_split")[0]


def _clips(entries: Sequence[Entry]) -> Clips:
    """Entries of one clip together, in the order in which clips are first named."""
    clips: Clips = {}
    for entry in entries:
        clips.setdefault((_stem(entry.video), entry.start, entry.end), _Clip(entry)).captions.extend(entry.captions)
    return clips


def _captioned(clips: Clips, where: _Places, *, source: Path) -> Clips:
    """Clips with captions from the file that has those of all videos, where their own list has none."""
    if any(clip.captions for clip in clips.values()) or not where.p.captions_in:
        return clips
    if where.file is not None and not where.look(where.p.captions_in):
        raise DataError(
            f"{source} lists {pluralize(len(clips), 'name')}, such as {next(iter(clips))[0]!r}, without captions; if "
            f"they are videos of {where.p.name}, put {' or '.join(where.p.captions_in)} beside it"
        )
    known: dict[str, tuple[str, ...]] = {}
    for path in where.find(where.p.captions_in):
        known |= {_stem(entry.video): entry.captions for entry in read_annotation(path).entries}
    return {key: _Clip(clip.entry, list(known.get(key[0], ()))) for key, clip in clips.items()}


def _check_counts(p: Protocol, split: Split, name: str, clips: Clips, *, source: Path, fewer: bool) -> None:
    """DataError for another number than the split's; `fewer` allows less of it, but never more."""
    if not split.files:
        return
    found = (len(clips), sum(len(clip.captions) for clip in clips.values()))
    wanted = (split.videos, split.captions)
    pluralize = [(want, have) for want, have in zip(wanted, found, strict=True) if want is not None]
    more = any(have > want for want, have in pluralize)
    if more or (not fewer and any(have < want for want, have in pluralize)):
        captions = f" and {split.captions} captions" if split.captions is not None else ""
        advice = "it lists something else" if more else "get the complete file, or allow it (allow_missing)"
        raise DataError(
            f"{source}: {p.name} {name} has {split.videos} videos{captions}, but here are {found[0]} and {found[1]}; "
            f"{advice}"
        )


def _classes(
    p: Protocol, where: _Places, *, given: Sequence[str] | None, whole: Sequence[Annotation]
) -> tuple[str, ...]:
    """Class names in label order; as words, for prompts. `whole` are the files of a split that lacks nothing."""
    if given is not None:
        return tuple(given)
    if p.coded and not where.look(p.class_files) and (named := sorted({_class_of(a) for a in whole} - {""})):
        return tuple(named)  # HMDB51's archive has a file a class, and no list
    found = read_annotation(where.find(p.class_files)[0])
    if not found.classes:
        raise DataError(f"{found.path}: lists no classes; {p.name} takes them from {' or '.join(p.class_files)}")
    return tuple(name.replace("[", "").replace("]", "") for name in found.classes)


class _Labels:
    """Of an entry the place of its class: by name, by the folder that it lies in, or by number."""

    def __init__(self, p: Protocol, names: Sequence[str], listed: Sequence[Annotation]) -> None:
        self.p, self.names, self.listed = p, names, listed
        self.index = {_plain(name): number for number, name in enumerate(names)}
        told = sorted((name.strip().replace(" ", "_") for name in names), key=len, reverse=True)
        self.told = re.compile(f"_({'|'.join(map(re.escape, told))}){p.class_in_name}") if p.class_in_name else None

    def of(self, entry: Entry) -> int | None:
        """None for an entry without a class; DataError for one that is not known, or that the video's name denies."""
        folder = _plain(Path(entry.video).parent.name)
        label = _plain(entry.label or "")
        if folder in self.index:
            return self.index[folder]
        if not label or label in self.index:
            return self.index.get(label)
        if not label.isdigit() or int(label) >= len(self.names):
            raise DataError(
                f"{self._place(entry)}: class {entry.label!r} of {entry.video} is none of {len(self.names)}"
            )
        found = self.told.search(entry.video) if self.told else None
        if found is not None and self.index[_plain(found[1])] != int(label):
            raise DataError(
                f"{self._place(entry)}: {entry.video} has number {label}, {self.names[int(label)]}, and shows "
                f"{found[1]}: the list counts classes in another order; {self.p.note or 'take the official files'}"
            )
        return int(label)

    def _place(self, entry: Entry) -> str:
        return next((a.place(entry) for a in self.listed if entry in a.entries), str(self.listed[0].path))


def _plain(name: str) -> str:
    """A class name by its letters alone: "brush_hair", "brush hair" and "BrushHair" are one."""
    return "".join(c for c in name.lower() if c.isalnum())


def _stem(video: str) -> str:
    """The name without folder and, where it has that of a video or none behind its last dot, suffix."""
    path = Path(video)
    return path.stem if is_video(path) else path.name.rstrip(".")  # ids may hold dots


def _named(entry: Entry) -> str:
    """The file that a user would expect."""
    return entry.video if is_video(Path(entry.video)) else f"{entry.video.rstrip('.')}.mp4"


class _Files:
    """Video files below a folder by name, whatever their suffix and case; the first in sorted order wins."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in find_clips(root):
            name = path.name if path.is_dir() else path.stem  # names of clips may hold dots
            self.files.setdefault(name.lower(), path)

    def find(self, entry: Entry) -> Path | None:
        stem = _stem(entry.video).lower()
        names = [stem]
        if entry.start is not None and entry.end is not None:  # Kinetics' files carry their times
            times = f"{round(entry.start):06d}_{round(entry.end):06d}"
            names = [f"{stem}_{times}", stem]
        return next((self.files[name] for name in names if name in self.files), None)
