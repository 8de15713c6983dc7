"""open_dataset: one door to every annotation format, and the readers of class folders and of plain ones.

Contract: a reader returns a VideoDataset whose records' files exist, with those that do not in `missing`, or raises
DataError that says which file, line or folder is wrong. `open_dataset` refuses missing files, `read_dataset` does not.
Formats with more to them have their own file: tables.py ("csv") and protocols.py. Opens no video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clipvid.data.files import find_clips, is_video, subfolders
from clipvid.data.formats.csv import read_csv
from clipvid.data.formats.protocol_reader import open_protocol
from clipvid.data.formats.protocols import PROTOCOLS
from clipvid.data.records import ProtocolSpec, Record, VideoDataset
from clipvid.errors import DataError

_SHOWN = 5  # files that an error names before it goes on to count
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


def open_dataset(
    name: str,
    root: str | Path,
    *,
    split: str | None = None,
    annotations: str | Path | None = None,
    classes: Sequence[str] | None = None,
    allow_missing: bool = False,
    check_files: bool = True,
) -> VideoDataset:
    """Open a data set in the format `name`: "csv", "folder", "videos", or a protocol ("msrvtt-1ka", ...).

    Args:
        root: the folder of the videos; for "csv" also the table itself.
        split: which part to read; the formats without splits refuse it.
        annotations: the annotation file, or its folder, where it is not in or below `root`.
        classes: class names in label order, so that two data sets share their labels; default: sorted names.
        allow_missing: leave out the videos that do not exist (they are listed in `.missing`) instead of an error, where
            some do.
        check_files: False reads the annotations alone and does not look whether the videos exist.
    """
    data = read_dataset(
        name,
        root,
        split=split,
        annotations=annotations,
        classes=classes,
        allow_missing=allow_missing,
        check_files=check_files,
    )
    _refuse_missing(data, root, allow=allow_missing)
    return data


def read_dataset(
    name: str,
    root: str | Path,
    *,
    split: str | None = None,
    annotations: str | Path | None = None,
    classes: Sequence[str] | None = None,
    allow_missing: bool = False,
    check_files: bool = True,
) -> VideoDataset:
    """As `open_dataset`, but missing files never raise, even where all are: `missing` lists them.

    `allow_missing` then allows annotations with fewer videos or captions than the protocol has. Raises DataError for
    annotations that cannot be read, ValueError for a name or split that is not known.
    """
    if name not in READERS:
        raise ValueError(f"unknown data set format {name!r}; choose one of {', '.join(READERS)}")
    if isinstance(classes, str) or (classes is not None and len(set(classes)) < len(classes)):
        raise ValueError(f"classes must be a list of different names, got {classes!r}")
    root, annotations = Path(root), None if annotations is None else Path(annotations)
    for path in (root, annotations):
        if path is not None and not path.exists() and (check_files or path == annotations):
            raise DataError(f"{path} does not exist")
    return READERS[name](
        root,
        split=split,
        annotations=annotations,
        classes=classes,
        allow_missing=allow_missing,
        check_files=check_files,
    )


def none_there(root: str | Path) -> str:
    """What to say where none of the data's videos exists."""
    folder = root if Path(root).is_dir() else Path(root).parent
    return f"none of them is in {folder}; is it the folder of the videos?"


def _refuse_missing(data: VideoDataset, root: str | Path, *, allow: bool) -> None:
    """DataError that counts the missing files and names the first, unless they are allowed and some remain."""
    if not data.missing or (allow and len(data)):
        return
    more = f" and {len(data.missing) - _SHOWN} more" if len(data.missing) > _SHOWN else ""
    advice = none_there(root)
    if len(data):
        advice = f"fetch them, or allow it (allow_missing) to go on without them{_anyway(data.protocol_spec)}"
    raise DataError(
        f"{data.source}: {len(data.missing)} of {data.n_files} videos are missing: "
        f"{', '.join(str(path) for path in data.missing[:_SHOWN])}{more}; {advice}"
    )


def _anyway(protocol_spec: ProtocolSpec) -> str:
    """Why a short list of one's own would be refused next, so that it is said at once."""
    if protocol_spec.listed is None or protocol_spec.videos is None or protocol_spec.listed >= protocol_spec.videos:
        return ""
    listed, expected = protocol_spec.listed, protocol_spec.videos
    return f", as figures need anyway: the list names {listed} videos, the protocol has {expected}"


def read_folder(
    root: Path,
    *,
    split: str | None,
    annotations: Path | None,
    classes: Sequence[str] | None,
    allow_missing: bool,
    check_files: bool,
) -> VideoDataset:
    """Sub-folder = class, with its videos at any depth; a folder of videos alone gives clips without labels.

    A class without videos may hold pictures, which are clips of one frame, or folders of pictures, which are one clip.
    """
    del allow_missing, check_files  # what is listed from the disk exists
    if annotations is not None:
        raise ValueError('"folder" reads no annotations; for a table use "csv"')
    folder = root / split if split else root
    if not folder.is_dir():
        splits = ", ".join(path.name for path in subfolders(root)) if root.is_dir() else ""
        raise DataError(f"{folder} is no folder" + (f"; below {root} are {splits}" if splits else ""))
    name = f"{root.name}:{split}" if split else root.name
    loose = sorted(path for path in folder.iterdir() if is_video(path) and path.is_file() and path.name[0] != ".")
    groups = {path.name: find_clips(path) for path in subfolders(folder)}
    if not loose and not any(groups.values()):
        raise DataError(f"{folder} holds no video; expected files such as .mp4 or .webm, in one folder per class")
    if not groups:
        return VideoDataset(tuple(Record(path) for path in loose), name=name)
    _check_groups(folder, loose=loose, groups=groups)
    names = tuple(sorted(groups) if classes is None else classes)
    number = {label: index for index, label in enumerate(names)}
    unknown = sorted(set(groups) - set(number))
    if unknown:
        raise DataError(f"{folder / unknown[0]} is none of the {len(names)} classes given")
    records = [Record(path, label=number[label]) for label, paths in groups.items() for path in paths]
    return VideoDataset(tuple(records), names, name)


def read_videos(
    root: Path,
    *,
    split: str | None,
    annotations: Path | None,
    classes: Sequence[str] | None,
    allow_missing: bool,
    check_files: bool,
) -> VideoDataset:
    """Every video below a folder, at any depth and whatever the folders are called: clips without captions or labels.

    For self-supervision, search and anything else that asks for no more. `split` is a folder in `root`.
    """
    del allow_missing, check_files  # what is listed from the disk exists
    if annotations is not None or classes:
        raise ValueError('"videos" reads neither annotations nor classes; for class folders use "folder"')
    folder = root / split if split else root
    paths = find_clips(folder) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder} holds no video; expected a folder with files such as .mp4 or .webm, at any depth")
    return VideoDataset(tuple(Record(path) for path in paths), name=f"{root.name}:{split}" if split else root.name)


def _check_groups(folder: Path, *, loose: Sequence[Path], groups: dict[str, list[Path]]) -> None:
    if loose:
        raise DataError(f"{folder} holds class folders, but also {loose[0].name} beside them; move it into a class")
    if {name.lower() for name in groups} <= _SPLIT_NAMES and any(subfolders(folder / name) for name in groups):
        raise DataError(f"{folder} holds splits ({', '.join(groups)}), not classes; choose one (split)")
    empty = [name for name, paths in groups.items() if not paths]
    if empty:
        raise DataError(f"{folder / empty[0]} holds no video; remove it, or it would count as a class without clips")


READERS: dict[str, Callable[..., VideoDataset]] = {
    "csv": read_csv,
    "folder": read_folder,
    "videos": read_videos,
    **{name: partial(open_protocol, protocol) for name, protocol in PROTOCOLS.items()},
}
