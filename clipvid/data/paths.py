"""Resolution of the paths of videos and tables that users give: paths, file URLs and patterns with *, several at once.

Contract: names in, paths out, in the order given and without duplicates; the matches of a pattern are sorted, hence the
same on every machine. DataError for a pattern that matches nothing and for a URL of another scheme. Opens no file.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote

from clipvid.config import checks
from clipvid.errors import DataError

Paths = str | Path | Iterable[str | Path]
"""A path, a file URL or a pattern ("videos/**/*.mp4"), or several of them."""
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://?")


def expand_paths(
    paths: Paths, *, wanted: Callable[[Path], bool] | None = None, left_out: list[Path] | None = None
) -> list[Path]:
    """Return the paths that `paths` name: each pattern as its matches, sorted; of duplicates only the first.

    A name that exists is never a pattern. Matches of a pattern that are not `wanted` are left out, and appended to the
    list `left_out` if it is given. Whether other paths exist is left to the caller. Raise DataError for an empty list,
    a pattern without a match, and a URL that names no local file.
    """
    advice = "give a text or a pathlib.Path"
    checks.of_type("paths", paths, (str, Path, Iterable), must="a path or several paths", advice=advice)
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    if not names:
        raise DataError("no videos were given; name files, folders or patterns such as 'videos/**/*.mp4'")
    unique: dict[str, Path] = {}
    for name in names:
        for path in _matches(local_path(name), wanted, left_out):
            unique.setdefault(os.path.abspath(path), path)
    return list(unique.values())


def is_pattern(path: str | Path) -> bool:
    """Return True for a path with *, ? or [ that is not the name of an existing file or folder."""
    return bool(glob.has_magic(str(path))) and not os.path.lexists(path)


def local_path(name: str | Path, *, location: str = "") -> Path:
    """Return the path of a local file that is named by its path or by a file:// URL.

    Raise DataError for a URL of another scheme or machine, with the `location` in front of the message.
    """
    checks.path("a path", name, must="a path, a file URL or a pattern")
    text = str(name)
    scheme = _SCHEME.match(text)
    is_file = scheme is not None and scheme[1].lower() == "file"
    if scheme is None or not (is_file or "://" in scheme[0]):  # Path turns file:///a into file:/a
        return Path(name)
    prefix = f"{location}: " if location else ""
    if not is_file:
        raise DataError(
            f"{prefix}{text} is a URL, and clipvid reads local files; download it, or mount its storage, and give the "
            "path"
        )
    machine, slash, path = text[scheme.end() :].partition("/") if "://" in text else ("", "/", text[scheme.end() :])
    if machine not in ("", "localhost") or not slash:
        raise DataError(
            f"{prefix}{text} names a file on the machine {machine!r}; write file:///absolute/path for a local file"
        )
    return Path(f"/{unquote(path)}")


def _matches(path: Path, wanted: Callable[[Path], bool] | None, left_out: list[Path] | None) -> list[Path]:
    """Return the path itself, or the sorted matches of a pattern."""
    if not is_pattern(path):
        return [path]
    matches = sorted(Path(match) for match in glob.iglob(str(path), recursive=True))
    if wanted is not None:
        others = [match for match in matches if not wanted(match)]
        matches = sorted(set(matches).difference(others))
        if left_out is not None:
            left_out += others
    if not matches:
        raise DataError(f"no file to read matches the pattern {str(path)!r}; correct it (** stands for any depth)")
    return matches
