"""open_dataset: the entry point for all annotation formats, and the readers of class folders and plain folders.

Contract: a reader returns a VideoDataset of existing files, with the others in `missing`, or raises DataError naming
the wrong file, line or folder. `open_dataset` refuses missing files, `read_dataset` does not. The readers of tables
and protocols are in formats/. Opens no video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clipvid.data.files import advice_on_root as advice_on_root
from clipvid.data.files import find_clips, is_video, subfolders
from clipvid.data.formats.protocol_reader import open_protocol
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import DataError
from clipvid.registry import PROTOCOLS, READERS, load_plugins

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
        split: name of the split to read; formats without splits refuse it.
        annotations: the annotation file, or its folder, if it is not in or below `root`.
        classes: class names in label order, so that two data sets share their labels; default: sorted names.
        allow_missing: leave out missing videos and list them in `.missing`; an error only if all are missing.
        check_files: False reads only the annotations, without checking that the videos exist.
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
    data.require_files(root, allow_missing=allow_missing)
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
    """Read a data set like `open_dataset`, but list missing files in `missing` without raising, even if all are.

    `allow_missing` then only allows annotations with fewer videos or captions than the protocol has. Raises DataError
    for invalid annotations and unknown splits, ValueError for an unknown format.
    """
    reader = _reader(name)
    if isinstance(classes, str) or (classes is not None and len(set(classes)) < len(classes)):
        raise ValueError(f"classes must be a list of unique names, got {classes!r}")
    root, annotations = Path(root), None if annotations is None else Path(annotations)
    for path in (root, annotations):
        if path is not None and not path.exists() and (check_files or path == annotations):
            raise DataError(f"{path} does not exist; correct the path")
    return reader(
        root,
        split=split,
        annotations=annotations,
        classes=classes,
        allow_missing=allow_missing,
        check_files=check_files,
    )


def _reader(name: str) -> Callable[..., VideoDataset]:
    """Return the reader of a format or a protocol; raise ValueError for an unknown name."""
    if name not in READERS and name not in PROTOCOLS:
        load_plugins()
    if name in PROTOCOLS:
        return partial(open_protocol, PROTOCOLS[name])
    if name not in READERS:
        raise ValueError(READERS.unknown(name, [*READERS, *PROTOCOLS]))
    return READERS[name]


def read_folder(
    root: Path,
    *,
    split: str | None,
    annotations: Path | None,
    classes: Sequence[str] | None,
    allow_missing: bool,
    check_files: bool,
) -> VideoDataset:
    """Read a folder with one sub-folder per class, videos at any depth; a folder of videos alone has no labels.

    A class without videos may hold pictures, each a clip of one frame, or folders of pictures, each one clip.
    """
    del allow_missing, check_files  # files listed from the disk exist
    if annotations is not None:
        raise ValueError('"folder" reads no annotations; for a table use "csv"')
    folder = root / split if split else root
    if not folder.is_dir():
        splits = ", ".join(path.name for path in subfolders(root)) if root.is_dir() else ""
        raise DataError(f"{folder} is not a folder" + (f"; below {root} are {splits}" if splits else ""))
    name = f"{root.name}:{split}" if split else root.name
    loose = sorted(path for path in folder.iterdir() if is_video(path) and path.is_file() and path.name[0] != ".")
    groups = {path.name: find_clips(path) for path in subfolders(folder)}
    if not loose and not any(groups.values()):
        raise DataError(f"{folder} holds no video; expected files such as .mp4 or .webm, in one folder per class")
    if not groups:
        return VideoDataset(tuple(Record(path) for path in loose), name=name)
    _check_groups(folder, loose=loose, groups=groups)
    names = tuple(sorted(groups) if classes is None else classes)
    label_by_name = {class_name: index for index, class_name in enumerate(names)}
    unknown = sorted(set(groups) - set(label_by_name))
    if unknown:
        raise DataError(f"{folder / unknown[0]} is none of the {len(names)} given classes")
    records = [Record(path, label=label_by_name[class_name]) for class_name, paths in groups.items() for path in paths]
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
    """Read every video below a folder, at any depth, as clips without captions or labels.

    Self-supervision and search need no more. `split` is a folder in `root`.
    """
    del allow_missing, check_files  # files listed from the disk exist
    if annotations is not None or classes:
        raise ValueError('"videos" reads neither annotations nor classes; for class folders use "folder"')
    folder = root / split if split else root
    paths = find_clips(folder) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder} holds no video; expected a folder with files such as .mp4 or .webm, at any depth")
    return VideoDataset(tuple(Record(path) for path in paths), name=f"{root.name}:{split}" if split else root.name)


def _check_groups(folder: Path, *, loose: Sequence[Path], groups: dict[str, list[Path]]) -> None:
    """Raise DataError for loose videos beside classes, splits instead of classes, and empty classes."""
    if loose:
        raise DataError(f"{folder} holds class folders, but also {loose[0].name} beside them; move it into a class")
    if {name.lower() for name in groups} <= _SPLIT_NAMES and any(subfolders(folder / name) for name in groups):
        raise DataError(f"{folder} holds splits ({', '.join(groups)}), not classes; choose one (split)")
    empty = [name for name, paths in groups.items() if not paths]
    if empty:
        raise DataError(f"{folder / empty[0]} holds no video; remove it, or it would count as a class without clips")
