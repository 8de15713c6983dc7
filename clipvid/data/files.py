"""Discovery of clips and tables on disk: the suffixes of their files and the search through folders.

Contract: a folder in, sorted paths out, hence the same on every machine, with everything else and why it is left out.
All commands find files by `discover`. Imports nothing heavy, and opens only files without a suffix. Knows nothing of
annotations.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clipvid.runtime.display.names import show
from clipvid.video.container.sniff import begins_like_video
from clipvid.video.picture_files import SUFFIXES, in_frame_order, pictures_in

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
"""Lower-case suffixes of video files."""
TABLE_SUFFIXES = (".csv", ".tsv")
"""Lower-case suffixes of tables."""


def is_video(path: Path) -> bool:
    """Return True if the suffix of `path` is that of a video, in lower or upper case."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_clip(path: Path) -> bool:
    """Return True if the suffix of `path` is that of a video or of a picture, which is a clip of one frame."""
    return is_video(path) or path.suffix.lower() in SUFFIXES


def is_table(path: Path) -> bool:
    """Return True if the suffix of `path` is that of a table, in lower or upper case."""
    return path.suffix.lower() in TABLE_SUFFIXES


def tables_in(folder: Path) -> list[Path]:
    """Return the tables directly in `folder`, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if is_table(path) and path.name[0] != "." and path.is_file())


def is_source(path: Path) -> bool:
    """Return True for a folder, a table and a clip: the matches of a pattern that a data set can be read from."""
    return path.is_dir() or is_table(path) or why_no_clip(path) is None


def why_no_clip(path: Path) -> str | None:
    """Return the reason for which a file is not read as a clip, by its name, its kind and, without a suffix, its start.

    None for a clip.
    """
    if path.suffix and not is_clip(path):
        return f"{path.suffix.lower()} is not the suffix of a video"
    if not path.exists():
        return "a link to a file that does not exist"
    if not path.is_file():
        return "not a regular file (a pipe, a device or a socket)"
    if not path.suffix and not begins_like_video(path):
        return "no suffix, and it does not begin like a video"
    return None


class LeftOut(NamedTuple):
    """A file or folder that is not read, with the reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Contents:
    """Contents of a folder: every file below it is in one of the three, or below a clip or folder that is."""

    clips: tuple[Path, ...] = ()
    """Videos, sorted; without any video, pictures and folders of pictures."""
    dangling: tuple[Path, ...] = ()
    """Links with the name of a video that lead to no file."""
    left_out: tuple[LeftOut, ...] = ()


def discover(folder: Path, *, deep: bool = True) -> Contents:
    """Return the clips below a folder, at any depth unless not `deep`, and all that is left out, with reasons.

    Videos are the regular files with the suffix of a video, and those without a suffix that begin like one. If there
    is none, a sub-folder that holds pictures and no deeper clips is one clip, and any other picture is a clip of one
    frame. Names that begin with a dot are left out. A linked folder is entered once.
    """
    tree = _Tree()
    tree.walk(folder, deep=deep)
    if tree.videos or tree.dangling:
        left_out = [*tree.left_out, *_beside_videos(folder, tree)]
        return Contents(tuple(sorted(tree.videos)), tuple(sorted(tree.dangling)), tuple(sorted(left_out)))
    return Contents(tuple(sorted(_picture_clips(folder, tree))), (), tuple(sorted(tree.left_out)))


def has_videos(folder: Path) -> bool:
    """Return True if there is anything below a folder that `discover` finds."""
    contents = discover(folder)
    return bool(contents.clips or contents.dangling)


@dataclass
class _Tree:
    """The files below a folder, by kind; pictures by their folder."""

    videos: list[Path] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)
    pictures: dict[Path, list[Path]] = field(default_factory=dict)
    children: dict[Path, list[Path]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    entered: set[str] = field(default_factory=set)

    def walk(self, folder: Path, *, deep: bool) -> None:
        """Add everything below a folder, or with `deep` False what is directly in it."""
        folders, links = [folder], list[Path]()
        while folders or links:
            current = folders.pop() if folders else links.pop()  # a link never hides the folder that it leads to
            real = os.path.realpath(current)
            if real in self.entered:
                self.left_out.append(LeftOut(current, "a link to a folder that is read already"))
                continue
            self.entered.add(real)
            try:
                with os.scandir(current) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.left_out.append(LeftOut(current, f"cannot be opened: {(error.strerror or 'error').lower()}"))
                continue
            below = [path for entry in listed if (path := self._add(entry, current)) is not None]
            if deep:
                self.children[current] = below
                folders += [path for path in reversed(below) if not path.is_symlink()]
                links += [path for path in reversed(below) if path.is_symlink()]

    def _add(self, entry: os.DirEntry[str], folder: Path) -> Path | None:
        """Add a file by its kind; return the path of a folder that is to be entered."""
        path, is_link = folder / entry.name, entry.is_symlink()
        if entry.name.startswith("."):
            self.left_out.append(LeftOut(path, "hidden"))
        elif entry.is_dir(follow_symlinks=False) or (is_link and os.path.isdir(path)):
            return path
        elif is_video(path) and entry.is_file(follow_symlinks=False):  # most files, without another system call
            self.videos.append(path)
        elif is_link and is_video(path) and not path.exists():
            self.dangling.append(path)
        elif (reason := why_no_clip(path)) is not None:
            self.left_out.append(LeftOut(path, reason))
        elif path.suffix and not is_video(path):
            self.pictures.setdefault(folder, []).append(path)
        else:
            self.videos.append(path)
        return None


def _beside_videos(top: Path, tree: _Tree) -> Iterator[LeftOut]:
    """Yield the pictures of a tree that holds videos; those of a folder with no video below it together."""
    if not tree.pictures:
        return
    parents = {video.parent for video in (*tree.videos, *tree.dangling)}
    with_videos = {folder for parent in parents for folder in (parent, *parent.parents)}
    for folder, pictures in tree.pictures.items():
        if folder == top or folder in with_videos:
            yield from (LeftOut(path, "a picture beside videos") for path in pictures)
        else:
            yield LeftOut(folder, "a folder of pictures beside videos")


def _picture_clips(top: Path, tree: _Tree) -> list[Path]:
    """Return the picture clips of a tree without videos."""

    def clips_of(folder: Path) -> list[Path]:
        deeper = [clip for child in tree.children.get(folder, ()) for clip in clips_of(child)]
        pictures = tree.pictures.get(folder, [])
        return [folder] if pictures and not deeper and folder != top else [*pictures, *deeper]

    return clips_of(top)


def describe_left_out(left_out: Sequence[LeftOut]) -> str:
    """Return one line on what was left out: the number of files for each reason, with the first of them."""
    groups: dict[str, list[Path]] = {}
    for path, reason in left_out:
        groups.setdefault(reason, []).append(path)
    parts = [
        f"{show(paths[0])}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''} ({reason})"
        for reason, paths in groups.items()
    ]
    return f"left out: {', '.join(parts)}"


def clip_exists(path: Path) -> bool:
    """Return True if `path` is a file or a folder of pictures."""
    return exists(path) or (path.is_dir() and bool(pictures_in(path)))


def files_of(clip: Path) -> list[Path]:
    """Return the files of a clip: the file itself, or the pictures of a folder in the order of the frames."""
    return in_frame_order(pictures_in(clip)) if clip.is_dir() else [clip]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def exists(path: Path) -> bool:
    """Return True if `path` is a file; False also for a name that the file system does not support."""
    try:
        return path.is_file()
    except OSError:
        return False


def advice_on_root(root: str | Path) -> str:
    """Return the advice for a data set of which no video exists."""
    folder = root if Path(root).is_dir() else Path(root).parent
    return f"none of them is in {folder}; is it the folder of the videos?"
