"""Command to check a data set: data check. Its docstring is the help text.

Contract: plain arguments in; prints a report and writes it to a folder, or raises. Heavy modules are imported when the
command runs. Knows nothing of models, parsing or exit codes.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipvid.cli import datasets, outputs
from clipvid.cli.parsing import names
from clipvid.cli.parsing.options import Columns, DataOptions
from clipvid.data.paths import is_pattern
from clipvid.errors import DataError, UsageError
from clipvid.runtime.text import pluralize


def check_data(
    name: Annotated[str, Parameter(metavar="NAME", completer=lambda _: names.allowed("format"))],
    root: Annotated[tuple[str, ...], Parameter(metavar="ROOT")] = (),
    /,
    *,
    split: str | None = None,
    columns: Columns = (),
    annotations: Annotated[str | None, Parameter(metavar="PATH")] = None,
    out: Annotated[str | None, Parameter(metavar="DIR")] = None,
    workers: int = 0,
    limit: float = 60.0,
    longest: int | None = None,
) -> None:
    """Decode every video of a data set and report missing, unreadable, suspicious and duplicate ones.

    Examples:
        clipvid data check my-videos
        clipvid data check folder my-videos
        clipvid data check csv "tables/*.csv" --columns path=video_path
        clipvid data check msrvtt-1ka MSRVTT/videos --out msrvtt-check

    Args:
        name: format of the data, or a protocol; when left out, csv for tables and folders that hold one, videos for
            files of videos, folder for others.
        root: folder of the videos; for csv the table, for videos also files. Several are checked as one data set;
            patterns in quotes, such as "clips/*.mp4", are expanded.
        split: split of the data; a protocol's default one when left out.
        columns: names of a table's columns where they differ, such as path=video_path caption=text.
        annotations: the annotation file, or the folder of the files, if they are not in or beside root.
        out: folder for report.json and the log; clipvid-check/NAME of the data set when left out. A second run decodes
            only new and changed files.
        workers: processes that decode; 0 for one per core.
        limit: time limit per file in seconds.
        longest: list captions with more words than this.
    """
    _check_numbers(workers=workers, limit=limit, longest=longest)
    name, root = _format_and_roots(name, root)
    options = DataOptions(format=name, columns=columns, split=split)
    sources = datasets.data_of(root, options)
    from clipvid.data.check import REPORT, check
    from clipvid.data.open import advice_on_root, read_dataset

    outputs.require_writable(Path(out or "clipvid-check") / REPORT)
    roots = [sources] if isinstance(sources, str) else sources
    data = read_dataset(
        name, roots, split=split, annotations=annotations, columns=options.column_names(), allow_missing=True
    )
    if out is None:
        title = data.name if data.name.startswith(name) else f"{name} {data.name}"
        out = str(Path("clipvid-check", re.sub(r"[^\w.]+", "-", title).strip("-.")))
    report = check(data, out, workers=workers, limit=limit, longest=longest, root=roots, progress=True)
    outputs.say(report)
    outputs.say(f"report: {Path(out) / REPORT}")
    if data.missing and not len(data):
        raise DataError(f"{report.expected} of {report.expected} videos are missing; {advice_on_root(roots[0])}")
    if not report.healthy:
        lacking = f"{pluralize(len(report.missing), 'video')} {'is' if len(report.missing) == 1 else 'are'} missing"
        raise DataError(
            f"{lacking} and {len(report.unreadable)} cannot be read; metrics over fewer videos are not comparable"
        )


def _format_and_roots(name: str, root: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the format of the data and their paths, of which the first is in `name` if the format was left out.

    Raises UsageError for a name that is neither a format nor a path, and for a format without a path.
    """
    try:
        names.check("format", name)
        is_format = bool(root) or not os.path.exists(name)
    except ValueError as error:
        if not os.path.exists(name) and not is_pattern(name):
            message = f"NAME {error}" if root else f"{name} is neither a format nor a path that exists; correct it"
            raise UsageError(message) from error
        is_format = False
    if not is_format:
        from clipvid.data.open import guess_format

        return guess_format(datasets.sources_of((name, *root))), (name, *root)
    if not root:
        raise UsageError("ROOT is missing; write clipvid data check NAME ROOT... [options]")
    return name, root


def _check_numbers(*, workers: int, limit: float, longest: int | None) -> None:
    """Raise UsageError for numbers out of range, before anything is read."""
    outputs.at_least("--workers", workers, 0, "0 starts one per core")
    if not 0 < limit < math.inf:
        raise UsageError(f"--limit must be a finite number of seconds > 0, got {limit}; correct it")
    outputs.at_least("--longest", longest, 1, "leave it out for no limit")
