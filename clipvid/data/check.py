"""Check of a data set, file by file, before training or evaluation.

Contract: a data set with its list of missing files in, a Report out: numbers of expected and readable videos, missing
files, unreadable files with the reason, duplicates, suspicious files and captions. Each file is decoded once, in a
worker process; its outcome is logged at once, so that an interrupted check resumes. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clipvid.data.probing.probe_file import probe_file, probe_stamp
from clipvid.data.probing.probe_log import ProbeLog
from clipvid.data.records import VideoDataset
from clipvid.runtime.concurrency import process_pool
from clipvid.runtime.display.names import show, show_several
from clipvid.runtime.display.progress import progress_bar
from clipvid.runtime.files import atomic_file, read_file
from clipvid.runtime.text import pluralize

LOG, REPORT = "probes.jsonl", "report.json"
LOADS = ("clipvid.video.decode",)
FATAL = "ended the process that decoded it, twice"
SHOWN = 10
"""Number of files that the summary lists per section before it only counts the rest."""


@dataclass(frozen=True)
class Report:
    """Outcome of a check; `str()` gives the summary, `to_dict()` everything."""

    name: str
    expected: int
    """Number of videos that the annotations name."""
    readable: int
    missing: tuple[str, ...]
    unreadable: Mapping[str, str]
    """Path -> reason."""
    duplicates: tuple[tuple[str, ...], ...]
    """Files with the same content."""
    suspicious: Mapping[str, str]
    """Path -> why the file is suspicious."""
    captions: Mapping[str, str]
    """Path -> why its captions are suspicious."""
    left_out: Mapping[str, str]
    """Path of a file or folder that is not read -> reason."""
    kinds: Mapping[str, int]
    """Codec, or "unreadable" -> number of files."""
    probed: int
    """Number of files decoded by this run; the outcomes of the others come from the log."""
    seconds: float
    protocol: int | None = None
    """Number of videos of the protocol, perhaps more than a custom list names; None for other data."""
    n_classes: int = 0
    n_captions: int = 0
    root: str = ""
    """Absolute path of the folder where the data set was opened, of several the first with a hash of all; empty if not
    given."""

    @property
    def healthy(self) -> bool:
        """True if no file is missing or unreadable."""
        return not self.missing and not self.unreadable

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rate = (
            f"{self.probed / self.seconds:.1f} files per second" if self.seconds > 0 and self.probed else "nothing new"
        )
        differs = self.protocol is not None and self.protocol != self.expected
        lines = [
            f"{self.name}: {self.readable} of {self.expected} videos can be read ({self.probed} decoded now, {rate})"
            + (f"; the protocol has {self.protocol}" if differs else ""),
            *([self._contents()] if len(self.missing) < self.expected else []),
        ]
        if kinds := sorted(self.kinds.items(), key=lambda kind: -kind[1]):
            lines.append("kinds: " + ", ".join(f"{name} {count}" for name, count in kinds))
        lines += _section("missing", [(path, "") for path in self.missing])
        lines += _section("unreadable", list(self.unreadable.items()))
        lines += _section("suspicious", list(self.suspicious.items()))
        lines += _section("captions", list(self.captions.items()))
        lines += _section("left out", list(self.left_out.items()))
        lines += _section(
            "duplicates",
            [(paths[0], f"same content as {show_several(paths[1:], SHOWN)}") for paths in self.duplicates],
        )
        return "\n".join(lines)

    def _contents(self) -> str:
        """Return the line on classes and captions, which decide the tasks that the videos can be used for."""
        if not self.n_classes and not self.n_captions:
            return (
                "no classes and no captions, enough for search and task selfsup; recognition needs one sub-folder "
                "per class, retrieval a csv file with captions"
            )
        return f"{pluralize(self.n_classes, 'class')}, {pluralize(self.n_captions, 'caption')}"


def check(
    data: VideoDataset,
    out: str | Path,
    *,
    workers: int = 0,
    limit: int | float = 60.0,
    longest: int | None = None,
    root: str | Path | Sequence[str | Path] | None = None,
    progress: bool = False,
) -> Report:
    """Check every file of `data`, as read by `read_dataset` with allow_missing, and write `out`/report.json.

    Args:
        out: folder for the log and the report; if it has the log of an earlier run, only new and changed files are
            decoded.
        workers: number of decoding processes; 0 starts one per core.
        limit: seconds of decoding after which a file counts as unreadable.
        longest: maximum caption length in words; longer captions are reported. None for no limit.
        root: folder where the data set was opened, or several folders; together with its name it identifies the data
            set.

    Raises ValueError for numbers out of range and for arrays, FileExistsError if `out` holds the report of another data
    set, and WorkerError if no worker process starts, as in a script without `if __name__ == "__main__":`.
    """
    _check_arguments(data, workers=workers, limit=limit, longest=longest)
    out, resolved_root = Path(out), "" if root is None else _resolved(root)
    _check_same(out / REPORT, name=data.name, root=resolved_root)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    paths = sorted({record.path for record in data})
    log = ProbeLog(out / LOG)
    stale = [path for path in paths if not log.is_current(path, probe_stamp(path), limit=limit)]
    workers = min(workers or os.cpu_count() or 1, len(stale))
    bar = progress_bar(
        len(paths),
        f"check {data.name}",
        unit="file",
        shown=bool(progress and paths),
        initial=len(paths) - len(stale),
        # Processes take seconds to start.
        postfix=f"starting {workers} {'worker' if workers == 1 else 'workers'}" if stale else None,
    )
    with bar:
        for outcome in _probed(stale, workers=workers, limit=limit):
            log.add(outcome)
            bar.set_postfix_str("", refresh=False)
            bar.update()
    current = {str(path): log.outcomes[str(path)] for path in paths}
    report = _report(data, current, probed=len(stale), seconds=time.perf_counter() - start, longest=longest)
    report = replace(report, root=resolved_root)
    with atomic_file(out / REPORT) as draft:
        draft.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def _resolved(root: str | Path | Sequence[str | Path]) -> str:
    """Return the absolute path of a folder; of several paths the first, their number and a hash of them all."""
    paths = [str(Path(path).resolve()) for path in ([root] if isinstance(root, str | Path) else root)]
    if len(paths) == 1:
        return paths[0]
    return f"{paths[0]} and {len(paths) - 1} more ({hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:8]})"


def _check_arguments(data: VideoDataset, *, workers: int, limit: int | float, longest: int | None) -> None:
    """Raise ValueError for numbers out of range, and for data in memory."""
    if workers < 0 or not 0 < limit < math.inf or (longest is not None and longest < 1):
        raise ValueError(
            "workers must be an integer >= 0 (0: one per core), limit a number of seconds > 0 and longest an integer "
            f">= 1 or None, got {workers}, {limit} and {longest}"
        )
    if arrays := [str(record.path) for record in data if record.array is not None]:
        raise ValueError(
            f"data must name files, got {data.name} with {arrays[0]}, an array in memory; open a data set of files"
        )


def _check_same(report: Path, *, name: str, root: str) -> None:
    """Raise FileExistsError if `report` is of another data set; ignore an unreadable file and an empty root."""
    try:
        earlier = json.loads(read_file(report))
        earlier_name, earlier_root = earlier["name"], earlier.get("root", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    if earlier_name != name or (earlier_root and root and earlier_root != root):
        raise FileExistsError(
            f"{report} is about {earlier_name}{f' in {earlier_root}' if earlier_root else ''}, and would be "
            "overwritten; give another folder as out=DIR"
        )


def _report(
    data: VideoDataset, outcomes: Mapping[str, Mapping[str, Any]], *, probed: int, seconds: float, longest: int | None
) -> Report:
    """Return the report on `data` from the outcome of each path."""
    unreadable = {path: outcome["error"] for path, outcome in outcomes.items() if "error" in outcome}
    suspicious: dict[str, str] = {}
    captions: dict[str, str] = {}
    kinds: dict[str, int] = {}
    for outcome in outcomes.values():
        kind = "unreadable" if "error" in outcome else outcome["info"]["codec"]
        kinds[kind] = kinds.get(kind, 0) + 1
    for record in data:
        path = str(record.path)
        info = outcomes[path].get("info")
        if info is not None and (reason := _oddity(info, record.end)):
            suspicious[path] = reason
        if longest is not None and (long := [c for c in record.captions if len(c.split()) > longest]):
            captions[path] = f"{len(long)} of {len(record.captions)} have more than {longest} words"
        if len(set(record.captions)) < len(record.captions):
            captions.setdefault(path, "the same caption more than once")
    by_content: dict[str, list[str]] = {}
    for path, outcome in outcomes.items():
        by_content.setdefault(outcome["content"], []).append(path)
    return Report(
        name=data.name,
        expected=data.n_files,
        readable=len(outcomes) - len(unreadable),
        missing=tuple(str(path) for path in data.missing),
        unreadable=unreadable,
        duplicates=tuple(tuple(paths) for paths in by_content.values() if len(paths) > 1),
        suspicious=suspicious,
        captions=captions,
        left_out={str(path): reason for path, reason in data.left_out},
        kinds=kinds,
        probed=probed,
        seconds=seconds,
        protocol=data.protocol_spec.videos,
        n_classes=len(data.classes),
        n_captions=data.n_captions,
    )


def _oddity(info: Mapping[str, Any], end: float | None) -> str | None:
    """Return why a readable video is suspicious, or None."""
    if info["frames"] == 1:
        return "a single frame"
    if end is not None and end > info["duration"] + 1:
        return f"the annotations use it up to {end:g} s, it ends at {info['duration']:.2f} s"
    if info["duration"] > 0 and info["frames"] / info["duration"] < 1:
        return f"{info['frames']} frames in {info['duration']:.1f} s"
    return None


def _probed(paths: Sequence[Path], *, workers: int, limit: int | float) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each file, in the order of completion.

    A worker that dies breaks the pool. Each file then being decoded is tried again, alone in a new worker, and is
    reported as fatal once two workers died with it as their only file.
    """
    remaining = deque(paths)
    while remaining:
        interrupted: list[Path] = []
        yield from _probe_in_pool(remaining, interrupted, workers=min(workers, len(remaining)), limit=limit)
        for path in interrupted:
            yield _probe_alone(path, limit=limit, tries=1 if len(interrupted) == 1 else 2)


def _probe_in_pool(
    remaining: deque[Path], interrupted: list[Path], *, workers: int, limit: int | float
) -> Iterator[dict[str, Any]]:
    """Yield outcomes of files taken off `remaining`; when a worker dies, add unfinished files to `interrupted`."""
    pool = process_pool(workers, loads=LOADS)
    pending: dict[Future[dict[str, Any]], Path] = {}
    try:
        while (remaining and not interrupted) or pending:
            while remaining and not interrupted and len(pending) < workers:  # a queued file would be interrupted too
                path = remaining.popleft()
                try:
                    pending[pool.submit(probe_file, path, limit)] = path
                except BrokenProcessPool:
                    interrupted.append(path)
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                path = pending.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    interrupted.append(path)
                else:
                    yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _probe_alone(path: Path, *, limit: int | float, tries: int) -> dict[str, Any]:
    """Return the outcome of a file decoded alone in a worker, or a fatal one after `tries` workers died."""
    for _ in range(tries):
        pool = process_pool(1, loads=LOADS)
        try:
            return pool.submit(probe_file, path, limit).result()
        except BrokenProcessPool:
            continue
        finally:
            pool.shutdown(cancel_futures=True)
    return {"path": str(path), "stamp": probe_stamp(path), "content": f"unread {path}", "error": FATAL}


def _section(kind: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return the lines of one section of the summary, none if it has no entries."""
    if not entries:
        return []
    lines = [f"{kind}: {len(entries)}"]
    lines += [f"  {show(path)}" + (f": {reason}" if reason else "") for path, reason in entries[:SHOWN]]
    return lines + ([f"  and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else [])
