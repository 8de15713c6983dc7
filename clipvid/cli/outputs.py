"""Outputs of commands: files that are refused early and written whole, JSON, profiles, notes on standard error.

Contract: paths and plain data in, files and text out. Heavy modules are imported when they are needed. Knows nothing of
models or data sets.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from clipvid.errors import UsageError
from clipvid.runtime import files
from clipvid.runtime.display.names import printable, show


def say(*parts: object, sep: str = " ", error: bool = False) -> None:
    """Print to standard output, or with `error` to standard error, without characters that control a terminal."""
    print(printable(sep.join(map(str, parts))), file=sys.stderr if error else sys.stdout)


def require_writable(path: str | Path, *, folder: bool = False) -> None:
    """Raise UsageError for a path where no file, or with `folder` no folder, can be written."""
    try:
        files.require_writable(path, folder=folder)
    except ValueError as error:
        raise UsageError(str(error)) from error


def require_new(*paths: str | Path | None, overwrite: bool) -> None:
    """Raise an error for a file that cannot be written, is named twice, or exists without `overwrite`; skip None."""
    given = [Path(path) for path in paths if path is not None]
    for i, path in enumerate(given):
        require_writable(path)
        if path.absolute() in [other.absolute() for other in given[:i]]:
            raise UsageError(f"{path} would be written twice; give each file a different name")
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(f"{path} already exists; give --overwrite to replace it, or another name")


def profile_path(path: str | Path | None, *, enabled: bool) -> Path | None:
    """Return the path of the profile next to the output file `path`; None without an output file or a profile."""
    return Path(path).with_suffix(".profile.json") if path is not None and enabled else None


@contextmanager
def profiled_to(path: str | Path | None, *, enabled: bool) -> Iterator[None]:
    """Profile the block if `enabled`: print its stages, and write them as JSON to `path` unless that is None."""
    if not enabled:
        yield
        return
    from clipvid.runtime.files import atomic_file
    from clipvid.runtime.profiling import profiled

    with profiled() as measured:
        yield
    say(measured)
    if path is not None:
        with atomic_file(path) as draft:
            draft.write_text(json.dumps(measured.plain(), indent=2) + "\n", encoding="utf-8")
        say(f"profile: {path}")


@contextmanager
def json_printed(enabled: bool) -> Iterator[Callable[[Any], None]]:
    """Yield a function that prints data as JSON if `enabled`; all else in the block then goes to standard error."""
    if not enabled:
        yield lambda _: None
        return
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        yield lambda content: print(json.dumps(_finite(content), indent=2, allow_nan=False), file=stdout)


def _finite(content: Any) -> Any:
    """Return plain data with null for numbers that JSON cannot write, such as NaN."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def at_least(option: str, value: int | None, bound: int, advice: str) -> None:
    """Raise UsageError for an integer option below its bound; None stands for an option not given."""
    if value is not None and value < bound:
        raise UsageError(f"{option} must be an integer >= {bound}, got {value}; {advice}")


def check_seed(seed: int) -> None:
    """Raise UsageError for a negative seed."""
    at_least("--seed", seed, 0, "any will do")


TABLES: dict[str, Callable[[Any, Path], object]] = {
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".json": lambda frame, path: frame.to_json(
        path, orient="records", indent=2, force_ascii=False, double_precision=15
    ),
}
"""Functions that write a DataFrame, by the suffix of the file."""


def check_table(option: str, path: str | None) -> None:
    """Raise UsageError for the path of a table whose suffix names no format; the option may be left out."""
    if path is not None and Path(path).suffix.lower() not in TABLES:
        raise UsageError(f"{option} must end in {', '.join(TABLES)}, got {path}; rename it")


def write_table(frame: Any, path: str | Path) -> None:
    """Write a DataFrame as a file of the format that its suffix names, whole or not at all."""
    from clipvid.runtime.files import atomic_file

    with atomic_file(path) as draft:
        TABLES[Path(path).suffix.lower()](frame, draft)


@contextmanager
def notes_shown() -> Iterator[None]:
    """Print clipvid's warnings in the block to standard error as one line each; other warnings stay as they are."""
    from clipvid.errors import ClipvidWarning

    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def show_note(message: Any, category: type[Warning], *details: Any) -> None:
            if issubclass(category, ClipvidWarning):
                say(f"note: {show(str(message))}", error=True)
            else:
                show_other(message, category, *details)

        warnings.showwarning = show_note
        warnings.simplefilter("default", ClipvidWarning)
        yield


def show_unreadable(unreadable: Sequence[Any]) -> None:
    """Print the unreadable files and the reasons on standard error."""
    if unreadable:
        from clipvid.data.batches.batch import describe_unreadable

        say(describe_unreadable(unreadable), error=True)
