"""open_dataset: the entry point for all annotation formats, and the readers of class folders and plain folders.

Contract: a reader returns a VideoDataset of existing files, with the others in `missing`, or raises DataError naming
the wrong file, line or folder; it reads one path, and the data of several paths are merged. `open_dataset` refuses
missing files, `read_dataset` does not. The readers of tables and protocols are in formats/. Opens no video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from clipvid.config import checks
from clipvid.data.clips.merge import merge_datasets
from clipvid.data.files import (
    Contents,
    LeftOut,
    describe_left_out,
    discover,
    is_clip,
    is_source,
    is_table,
    subfolders,
    tables_in,
    why_no_clip,
)
from clipvid.data.files import advice_on_root as advice_on_root
from clipvid.data.formats.protocol_reader import open_protocol
from clipvid.data.paths import Paths, expand_paths, local_path
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import DataError
from clipvid.registry import PROTOCOLS, READERS, load_plugins
from clipvid.video.picture_files import SUFFIXES as PICTURE_SUFFIXES

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


_WANTED: dict[str, Callable[[Path], bool]] = {
    "csv": lambda path: path.is_dir() or is_table(path),
    "folder": Path.is_dir,
    "videos": lambda path: path.is_dir() or why_no_clip(path) is None,
}
"""Matches of a pattern that a format reads; the others are left out, as below a folder."""


def open_dataset(
    name: Paths,
    root: Paths | None = None,
    *,
    split: str | None = None,
    annotations: str | Path | None = None,
    classes: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    check_files: bool = True,
) -> VideoDataset:
    """Open a data set: `open_dataset("msrvtt-1ka", "MSRVTT")`, `open_dataset("captions.csv")`, `open_dataset("clips")`.

    Args:
        name: the format: "csv", "folder", "videos", or a protocol ("msrvtt-1ka", ...). Without `root`, the paths
            themselves, whose format is then guessed (`guess_format`).
        root: the folder of the videos; for "csv" also the table itself; for "videos" also files. Several paths are
            read as one data set, and so are the matches of a pattern such as `part-*.csv` or `clips/**/*.mp4`.
        split: name of the split to read; formats without splits refuse it.
        annotations: the annotation file, or its folder, if it is not in or below `root`.
        classes: class names in label order, so that two data sets share their labels; default: sorted names.
        columns: names of a table's columns, where they differ: {"path": "video_path", "caption": "text"}.
        allow_missing: leave out missing videos and list them in `.missing`; an error only if all are missing.
        check_files: False reads only the annotations, without checking that the videos exist.

    Raises DataError for invalid annotations, for a pattern that matches nothing and for missing files.
    """
    data, paths = _read(
        name,
        root,
        split=split,
        annotations=annotations,
        classes=classes,
        columns=columns,
        allow_missing=allow_missing,
        check_files=check_files,
    )
    data.require_files(paths[0], allow_missing=allow_missing)
    return data


def read_dataset(
    name: Paths,
    root: Paths | None = None,
    *,
    split: str | None = None,
    annotations: str | Path | None = None,
    classes: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    allow_missing: bool = False,
    check_files: bool = True,
) -> VideoDataset:
    """Read a data set like `open_dataset`, but list missing files in `missing` without raising, even if all are.

    `allow_missing` then only allows annotations with fewer videos or captions than the protocol has. Raises DataError
    for invalid annotations and unknown splits, ValueError for an unknown format.
    """
    data, _ = _read(
        name,
        root,
        split=split,
        annotations=annotations,
        classes=classes,
        columns=columns,
        allow_missing=allow_missing,
        check_files=check_files,
    )
    return data


def guess_format(sources: Paths, *, default: str = "folder") -> str:
    """Return "csv" for tables and folders that hold one, "videos" for other files, else `default`, for folders.

    Raise DataError if tables lie beside other paths, since they are read in different ways.
    """
    paths = expand_paths(sources, wanted=is_source)
    kinds = {path: _kind(path, default) for path in paths}
    if len(set(kinds.values())) > 1 and "csv" in kinds.values():
        table, other = (next(p for p in paths if (kinds[p] == "csv") is is_csv) for is_csv in (True, False))
        raise DataError(f"{table} is or holds a table and {other} is none; open them one by one, or name the format")
    return "videos" if "videos" in kinds.values() else kinds[paths[0]]


def _kind(path: Path, default: str) -> str:
    if path.is_dir():
        return "csv" if tables_in(path) else default
    return "csv" if is_table(path) or not is_clip(path) else "videos"


def _read(
    name: Paths,
    root: Paths | None,
    *,
    annotations: str | Path | None,
    classes: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    check_files: bool,
    **options: Any,
) -> tuple[VideoDataset, list[Path]]:
    """Return the data set, and the paths that it was read from."""
    if root is None:
        if isinstance(name, str) and (name in READERS or name in PROTOCOLS) and not Path(name).exists():
            raise ValueError(f"{name} is a format and needs a root; give the folder: open_dataset({name!r}, root)")
        name, root = guess_format(name), name
    if not isinstance(name, str):
        raise ValueError(f"the name of a data set format must be a text, got {name!r}; give one such as csv")
    reader = _reader(name)
    if classes is not None:
        listed = checks.texts("classes", classes, must="a list of class names", advice="give them in label order")
        if len(set(listed)) < len(listed):
            raise ValueError(f"classes must be a list of unique names, got {classes!r}; remove the duplicates")
    if columns is not None and name != "csv":
        raise ValueError(f'columns names the columns of a table, format "csv", got it for {name!r}; leave it out')
    others: list[Path] = []
    paths = expand_paths(root, wanted=_WANTED.get(name), left_out=others)
    if len(paths) > 1 and (name in PROTOCOLS or annotations is not None):
        raise ValueError(
            f"root must be one folder for a protocol and with annotations, got {len(paths)}; open them one by one"
        )
    annotation_path = None if annotations is None else local_path(annotations)
    for path in (*paths, annotation_path):
        if path is not None and not path.exists() and (check_files or path == annotation_path):
            raise DataError(f"{path} does not exist; correct the path")
    options |= {"annotations": annotation_path, "classes": classes, "check_files": check_files}
    options |= {} if columns is None else {"columns": columns}
    data = merge_datasets([reader(path, **options) for path in paths], classes=classes)
    unread = [LeftOut(path, _why_left_out(path, name)) for path in others]
    return replace(data, left_out=(*data.left_out, *unread)), paths


def _why_left_out(path: Path, format: str) -> str:
    """Return the reason for which a format does not read a match of a pattern."""
    return why_no_clip(path) or {"csv": "no table", "folder": "no folder"}.get(format, "not read")


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
    loose = discover(folder, deep=False)
    groups = {path.name: discover(path) for path in subfolders(folder)}
    if not groups:
        return _unlabelled(loose, folder, name)
    _check_groups(folder, loose=loose, groups=groups)
    names = tuple(sorted(groups) if classes is None else classes)
    label_by_name = {class_name: index for index, class_name in enumerate(names)}
    unknown = sorted(set(groups) - set(label_by_name))
    if unknown:
        raise DataError(
            f"{folder / unknown[0]} is none of the {len(names)} given classes; move it away, or add it to classes"
        )
    records = [Record(path, label=label_by_name[key]) for key, contents in groups.items() for path in contents.clips]
    beside = [LeftOut(path, "a picture beside class folders") for path in loose.clips]
    return VideoDataset(
        tuple(records),
        names,
        name,
        missing=tuple(path for contents in groups.values() for path in contents.dangling),
        left_out=(*beside, *loose.left_out, *(entry for contents in groups.values() for entry in contents.left_out)),
    )


def _unlabelled(contents: Contents, folder: Path, name: str) -> VideoDataset:
    """Return the clips of a folder as a data set without labels; raise DataError if there is none."""
    if not contents.clips and not contents.dangling:
        note = f"; {describe_left_out(contents.left_out)}" if contents.left_out else ""
        raise DataError(f"{folder} holds no video; expected files such as .mp4 or .webm{note}")
    records = tuple(Record(path) for path in contents.clips)
    return VideoDataset(records, name=name, missing=contents.dangling, left_out=contents.left_out)


def read_videos(
    root: Path,
    *,
    split: str | None,
    annotations: Path | None,
    classes: Sequence[str] | None,
    allow_missing: bool,
    check_files: bool,
) -> VideoDataset:
    """Read every video below a folder, at any depth, or a file of any suffix, as clips without captions or labels.

    Self-supervision and search need no more. `split` is a folder in `root`.
    """
    del allow_missing, check_files  # files listed from the disk exist
    if annotations is not None or classes:
        raise ValueError('"videos" reads neither annotations nor classes; for class folders use "folder"')
    folder = root / split if split else root
    contents = discover(folder) if folder.is_dir() else Contents((folder,) if folder.exists() else ())
    return _unlabelled(contents, folder, f"{root.name}:{split}" if split else root.name)


def _check_groups(folder: Path, *, loose: Contents, groups: Mapping[str, Contents]) -> None:
    """Raise DataError for loose videos beside classes, splits instead of classes, and empty classes."""
    videos = [path for path in (*loose.clips, *loose.dangling) if path.suffix.lower() not in PICTURE_SUFFIXES]
    if not videos and not any(contents.clips or contents.dangling for contents in groups.values()):
        raise DataError(f"{folder} holds no video; expected files such as .mp4 or .webm, in one folder per class")
    if videos:
        raise DataError(f"{folder} holds class folders, but also {videos[0].name} beside them; move it into a class")
    if {name.lower() for name in groups} <= _SPLIT_NAMES and any(subfolders(folder / name) for name in groups):
        raise DataError(f"{folder} holds splits ({', '.join(groups)}), not classes; give one as split=NAME")
    empty = [name for name, contents in groups.items() if not contents.clips and not contents.dangling]
    if empty:
        raise DataError(f"{folder / empty[0]} holds no video; remove it, or it would count as a class without clips")
