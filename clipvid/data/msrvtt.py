"""Readers "msrvtt" and "msrvtt-1ka": the annotation files that MSR-VTT results are computed from.

Contract: told apart by content, not by name: the official MSRVTT_data.json (`videos` and `sentences`), a csv of video
ids, the JSFusion csv (one caption a video), and {file: [captions]} as the authors of STAN use. Captions and their order
stay as published, repeated ones too. A named split must have the published size, or the reader says what it lacks.
Knows the usual folder layouts; opens no video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipvid.data.files import check_missing, exists
from clipvid.data.record import Record, VideoData
from clipvid.data.tables import read_table, text_of
from clipvid.errors import DataError

SUFFIXES = (".mp4", ".avi", ".webm", ".mkv")
_JSON = "MSRVTT_data.json"
_FILES = {
    "train-9k": ("MSRVTT_train.9k.csv", "train_9k.json"),
    "train-7k": ("MSRVTT_train.7k.csv", "train_7k.json"),
    "test-1ka": ("MSRVTT_JSFUSION_test.csv", "test_JSFUSION.json"),
}
_SIZES = {"train-9k": (9000, 180_000), "train-7k": (7010, 140_200), "test-1ka": (1000, 1000)}
_SIZES |= {"train": (6513, 130_260), "val": (497, 9940), "test": (2990, 59_800)}
_FIELD = {"train": ("train",), "val": ("validate", "val"), "test": ("test",)}  # values of `split` in the json
_ANNOTATION_FOLDERS = (
    ".",
    "annotations",
    "annotation",
    "anns",
    "msrvtt_data",
    "MSRVTT",
    "MSRVTT/annotations",
    "MSRVTT/annotation",
)
_VIDEO_FOLDERS = (".", "all", "video", "videos", "videos/all", "MSRVTT", "MSRVTT/videos", "MSRVTT/videos/all")
_VIDEO_FOLDERS += ("TrainValVideo", "TestVideo", "train-video", "test-video", "videos/train", "videos/test")

Captions = dict[str, tuple[str, ...]]  # by video id, such as "video7010"


def read_msrvtt_1ka(root: Path, *, split: str | None, **options) -> VideoData:
    """The 1k-A protocol: "test" (the default) is the JSFusion list of 1000 pairs, "train" the 9000 other videos."""
    names = {None: "test-1ka", "test": "test-1ka", "train": "train-9k", "train-9k": "train-9k", "train-7k": "train-7k"}
    if split not in names:
        raise DataError(
            f"msrvtt-1ka has no split {split!r}; it has test, train (9k) and train-7k, and no validation set"
        )
    return read_msrvtt(root, split=names[split], **options)


def read_msrvtt(
    root: Path,
    *,
    split: str | None,
    annotations: Path | None,
    classes: Sequence[str] | None,
    allow_missing: bool,
    check_files: bool,
) -> VideoData:
    """Read MSR-VTT. `split`: train, val, test (the official one), train-9k, train-7k or test-1ka.

    Without `split`, `annotations` must be a file, and all that it holds is read.
    """
    if classes is not None:
        raise ValueError("msrvtt has captions and no classes; leave classes= out")
    if split is not None and split not in _SIZES:
        raise DataError(f"msrvtt has no split {split!r}; choose one of {', '.join(_SIZES)}")
    source, captions = _captions(root, split=split, annotations=annotations)
    without = [video for video, lines in captions.items() if not lines]
    if without and (not allow_missing or len(without) == len(captions)):
        raise DataError(f"{source}: no captions for {len(without)} of {len(captions)} videos, such as {without[0]}")
    if split and not allow_missing:
        _check_size(captions, split=split, source=source)
    files = _video_files(root)
    records, missing = [], [Path(video) for video in without]
    for video, lines in captions.items():
        path = files.get(video.lower(), root / f"{video}{SUFFIXES[0]}")
        if check_files and video.lower() not in files:
            missing += [path] if lines else []
        elif lines:
            records.append(Record(path, lines))
    check_missing(missing, total=len(captions), source=source, allow=allow_missing)
    return VideoData(
        tuple(records), name=f"msrvtt:{split}" if split else f"msrvtt:{source.stem}", missing=tuple(missing)
    )


@dataclass(frozen=True)
class _Official:
    """MSRVTT_data.json: captions of every video, and the official split that it is in."""

    captions: Captions
    split: dict[str, str]

    def of_split(self, split: str) -> Captions:
        return {video: lines for video, lines in self.captions.items() if self.split.get(video) in _FIELD[split]}


def _captions(root: Path, *, split: str | None, annotations: Path | None) -> tuple[Path, Captions]:
    """The file that defines the split, and the captions of its videos; () for a listed video that has none."""
    if annotations is not None and annotations.is_file():
        return annotations, _from_file(annotations, split=split)
    if split is None:
        raise DataError(f"msrvtt needs a split, one of {', '.join(_SIZES)}, or annotations= that names one file")
    folders = (
        [annotations] if annotations else [base / name for base in (root, root.parent) for name in _ANNOTATION_FOLDERS]
    )
    if split in _FIELD:
        found = _first(folders, (_JSON,), split=split)
        return found, _from_file(found, split=split)
    found = _first(folders, _FILES[split], split=split)
    return found, _from_file(found, split=None, beside=folders)


def _from_file(path: Path, *, split: str | None, beside: Sequence[Path] | None = None) -> Captions:
    """Captions that one annotation file gives, cut down to `split` where the file is the official json."""
    folders = [path.parent, *(beside or ())]
    if path.suffix.lower() == ".json":
        content = _load_json(path)
        if not isinstance(content, _Official):
            return content
        if split is None or split in _FIELD:
            return content.of_split(split) if split else content.captions
        listed = _first(folders, _FILES[split], split=split)
        ids = _from_table(listed)
        return ids if any(ids.values()) else {video: content.captions.get(video, ()) for video in ids}
    ids = _from_table(path)
    if any(ids.values()):
        return ids
    content = _load_json(_first(folders, (_JSON,), split=split or path.stem))
    official = content.captions if isinstance(content, _Official) else content
    return {video: official.get(video, ()) for video in ids}


def _from_table(path: Path) -> Captions:
    """Captions of the JSFusion csv; a csv of ids alone gives () for each."""
    columns, rows = read_table(path)
    if "video_id" not in columns:
        raise DataError(f"{path}, line 1: no column video_id; the columns are {', '.join(columns)}")
    captions: dict[str, list[str]] = {}
    for line, row in rows:
        if not row["video_id"] or row.get("sentence") == "":
            raise DataError(f"{path}, line {line}: an empty field in {row}")
        known = captions.setdefault(row["video_id"], [])
        known += [row["sentence"]] if "sentence" in row else []
    return {video: tuple(lines) for video, lines in captions.items()}


def _load_json(path: Path) -> _Official | Captions:
    try:
        content = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    if isinstance(content, dict) and {"videos", "sentences"} <= set(content):
        return _official(content, path)
    captions: Captions = {}
    for name, lines in content.items() if isinstance(content, dict) else ():
        lines = [lines] if isinstance(lines, str) else lines
        if (
            not isinstance(lines, list)
            or not lines
            or not all(isinstance(line, str) and line.strip() for line in lines)
        ):
            raise DataError(f"{path}: {name!r} must have a list of captions, got {str(lines)[:80]}")
        captions[_video_id(name)] = tuple(lines)
    if not captions:
        raise DataError(f"{path}: expected videos and sentences (MSRVTT_data.json), or {{file: [captions]}}")
    return captions


def _official(content: Mapping, path: Path) -> _Official:
    try:
        splits = {str(video["video_id"]): str(video["split"]) for video in content["videos"]}
        captions: dict[str, list[str]] = {video: [] for video in splits}
        for number, sentence in enumerate(content["sentences"]):
            if sentence["video_id"] not in captions or not sentence["caption"].strip():
                raise DataError(f"{path}: sentence {number} is empty or of an unknown video: {sentence}")
            captions[sentence["video_id"]].append(sentence["caption"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the layout of MSRVTT_data.json ({type(error).__name__}: {error})") from error
    return _Official({video: tuple(lines) for video, lines in captions.items()}, splits)


def _video_id(name: str) -> str:
    """ "video7010.mp4" -> "video7010"; an id without a suffix stays."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name


def _first(folders: Sequence[Path], names: Sequence[str], *, split: str) -> Path:
    places = [folder / name for folder in folders for name in names]
    found = next((place for place in places if exists(place)), None)
    if found is None:
        below = f"{folders[0]}" + (" and the usual folders below and beside it" if len(folders) > 2 else "")
        raise DataError(f"msrvtt {split} needs {' or '.join(names)}, not in {below}; name its place with annotations=")
    return found


def _video_files(root: Path) -> dict[str, Path]:
    """Video files of the usual folders by lower-case id; the first folder that has one wins."""
    files: dict[str, Path] = {}
    for folder in (root / name for name in _VIDEO_FOLDERS):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in SUFFIXES:
                files.setdefault(path.stem.lower(), path)
    return files


def _check_size(captions: Captions, *, split: str, source: Path) -> None:
    size = (len(captions), sum(len(lines) for lines in captions.values()))
    if size != _SIZES[split]:
        raise DataError(
            f"{source}: msrvtt {split} has {_SIZES[split][0]} videos and {_SIZES[split][1]} captions, but here are "
            f"{size[0]} and {size[1]}; get the complete file, or pass allow_missing=True"
        )
