"""The data set doctor: what a protocol expects against what is on the disk, file by file, before anything is measured.

Contract: a data set (its records, and the files it lacks) in, a Report out: expected and found, missing, unreadable
with the reason, twins, suspicious files and captions. Files are decoded once each, in processes of their own; what was
found of each is appended to a log at once, so an interrupted run goes on where it was. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clipvid.data.files import content_hash, files_of
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError, VideoError
from clipvid.runtime.concurrency import process_pool
from clipvid.runtime.files import atomic_file
from clipvid.runtime.text import pluralize

LOG, REPORT = "probes.jsonl", "report.json"
LOADS = ("clipvid.video.decode",)
FATAL = "ended the process that decoded it, twice"
ONCE = "ended the process that decoded it"
"""Error that earlier versions logged after one death, which may have had another cause; such a file is tried again."""
SHOWN = 10
"""Files that the summary names of each kind before it goes on to count."""


@dataclass(frozen=True)
class Report:
    """What was found; `str()` is the summary, `to_dict()` all of it."""

    name: str
    expected: int
    """Videos that the annotations name."""
    readable: int
    missing: tuple[str, ...]
    unreadable: Mapping[str, str]
    """Path -> reason."""
    duplicates: tuple[tuple[str, ...], ...]
    """Files with the same content."""
    suspicious: Mapping[str, str]
    """Path -> what is odd about it."""
    captions: Mapping[str, str]
    """Path -> what is odd about its captions."""
    kinds: Mapping[str, int]
    """Codec and container -> files."""
    probed: int
    """Files that this run decoded; the rest was known from an earlier one."""
    seconds: float
    protocol: int | None = None
    """Videos that the protocol has, which may be more than a list of one's own names; None for other data."""
    n_classes: int = 0
    n_captions: int = 0
    root: str = ""
    """Where the data set was opened, absolute; empty where that was not told."""

    @property
    def healthy(self) -> bool:
        """Nothing is missing or unreadable."""
        return not self.missing and not self.unreadable

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rate = f"{self.probed / self.seconds:.1f} files a second" if self.seconds > 0 and self.probed else "nothing new"
        other = self.protocol is not None and self.protocol != self.expected
        lines = [
            f"{self.name}: {self.readable} of {self.expected} videos can be read ({self.probed} decoded now, {rate})"
            + (f"; the protocol has {self.protocol}" if other else ""),
            *([self._told()] if len(self.missing) < self.expected else []),
        ]
        if kinds := sorted(self.kinds.items(), key=lambda kind: -kind[1]):
            lines.append("kinds: " + ", ".join(f"{name} {count}" for name, count in kinds))
        lines += _some("missing", [(path, "") for path in self.missing])
        lines += _some("unreadable", list(self.unreadable.items()))
        lines += _some("suspicious", list(self.suspicious.items()))
        lines += _some("captions", list(self.captions.items()))
        lines += _some(
            "duplicates",
            [(duplicates[0], "same content as " + ", ".join(duplicates[1:])) for duplicates in self.duplicates],
        )
        return "\n".join(lines)

    def _told(self) -> str:
        """What the videos come with, which decides what they can be used for."""
        if not self.n_classes and not self.n_captions:
            return (
                "no classes and no captions, enough for search and task selfsup; recognition wants one sub-folder a "
                "class, retrieval a csv file with captions"
            )
        return f"{pluralize(self.n_classes, 'class')}, {pluralize(self.n_captions, 'caption')}"


def check(
    data: VideoDataset,
    out: str | Path,
    *,
    workers: int = 0,
    limit: int | float = 60.0,
    longest: int | None = None,
    root: str | Path | None = None,
    progress: bool = False,
) -> Report:
    """Look at every file of `data`, as `read_dataset` gives them with allow_missing, and write `out`/report.json.

    Args:
        out: folder for the log and the report; with the log of an earlier run there, only new and changed files are
            decoded.
        workers: processes that decode; 0 takes one a core.
        limit: seconds that a file may take before it counts as unreadable.
        longest: captions of more words are listed; None for no limit.
        root: where the data were opened; with their name it tells this data set from others.

    Raises ValueError for numbers that these cannot be, FileExistsError where `out` has another data set's report, and
    WorkerError where no worker process starts, as in a script without `if __name__ == "__main__":`.
    """
    from tqdm import tqdm

    if workers < 0 or not 0 < limit < math.inf or (longest is not None and longest < 1):
        raise ValueError(
            "workers starts at 0 (one a core), limit is in seconds above 0 and longest in words from 1 on, got "
            f"{workers}, {limit} and {longest}"
        )
    out, place = Path(out), "" if root is None else str(Path(root).resolve())
    _check_same(out / REPORT, name=data.name, root=place)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    paths = sorted({record.path for record in data})
    known = dict(_logged(out / LOG))
    todo = [path for path in paths if _stale(path, known.get(str(path), {}), limit=limit)]
    workers = min(workers or os.cpu_count() or 1, len(todo))
    bar = tqdm(
        total=len(paths),
        initial=len(paths) - len(todo),
        desc=f"check {data.name}",
        unit="file",
        disable=not (progress and paths),
        postfix=f"starting {workers} {'worker' if workers == 1 else 'workers'}" if todo else None,  # takes seconds
    )
    with bar, (out / LOG).open("a", encoding="utf-8") as log:
        for found in _probed(todo, workers=workers, limit=limit):
            log.write(json.dumps(found) + "\n")
            log.flush()
            known[found["path"]] = found
            bar.set_postfix_str("", refresh=False)
            bar.update()
    facts = {str(path): known[str(path)] for path in paths}
    report = _report(data, facts, probed=len(todo), seconds=time.perf_counter() - start, longest=longest)
    report = replace(report, root=place)
    with atomic_file(out / REPORT) as beside:
        beside.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def _check_same(report: Path, *, name: str, root: str) -> None:
    """FileExistsError for a report of another data set; one that cannot be read, or is older than roots, is no such."""
    try:
        told = json.loads(report.read_text(encoding="utf-8"))
        other, place = told["name"], told.get("root", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if other != name or (place and root and place != root):
        raise FileExistsError(
            f"{report} is about {other}{f' in {place}' if place else ''}, and would be overwritten; give another --out"
        )


def _stale(path: Path, known: Mapping[str, Any], *, limit: int | float) -> bool:
    """It changed since, or took longer than it was given then and may take longer now."""
    return known.get("stamp") != _stamp(path) or known.get("limit", limit) < limit or known.get("error") == ONCE


def _report(
    data: VideoDataset, facts: Mapping[str, Mapping[str, Any]], *, probed: int, seconds: float, longest: int | None
) -> Report:
    unreadable = {path: found["error"] for path, found in facts.items() if "error" in found}
    suspicious: dict[str, str] = {}
    captions: dict[str, str] = {}
    kinds: dict[str, int] = {}
    for found in facts.values():
        kind = "unreadable" if "error" in found else found["info"]["codec"]
        kinds[kind] = kinds.get(kind, 0) + 1
    for record in data:
        path = str(record.path)
        info = facts[path].get("info")
        if info is not None and (odd := _odd(info, record.end)):
            suspicious[path] = odd
        if longest is not None and (long := [c for c in record.captions if len(c.split()) > longest]):
            captions[path] = f"{len(long)} of {len(record.captions)} have more than {longest} words"
        if len(set(record.captions)) < len(record.captions):
            captions.setdefault(path, "the same caption more than once")
    by_content: dict[str, list[str]] = {}
    for path, found in facts.items():
        by_content.setdefault(found["content"], []).append(path)
    return Report(
        name=data.name,
        expected=data.n_files,
        readable=len(facts) - len(unreadable),
        missing=tuple(str(path) for path in data.missing),
        unreadable=unreadable,
        duplicates=tuple(tuple(paths) for paths in by_content.values() if len(paths) > 1),
        suspicious=suspicious,
        captions=captions,
        kinds=kinds,
        probed=probed,
        seconds=seconds,
        protocol=data.protocol_spec.videos,
        n_classes=len(data.classes),
        n_captions=data.n_captions,
    )


def _odd(info: Mapping[str, Any], end: float | None) -> str | None:
    """What makes a readable video suspicious."""
    if info["frames"] == 1:
        return "a single frame"
    if end is not None and end > info["duration"] + 1:
        return f"the annotations use it up to {end:g} s, it ends at {info['duration']:.2f} s"
    if info["duration"] > 0 and info["frames"] / info["duration"] < 1:
        return f"{info['frames']} frames in {info['duration']:.1f} s"
    return None


def _probed(paths: Sequence[Path], *, workers: int, limit: int | float) -> Iterator[dict[str, Any]]:
    """Yield the facts of each file, as they come.

    A worker that dies ends the pool. Each file that was in work then is tried again, alone in a fresh worker, and is
    blamed once two workers died with it as their only file.
    """
    left = deque(paths)
    while left:
        interrupted: list[Path] = []
        yield from _in_pool(left, interrupted, workers=min(workers, len(left)), limit=limit)
        for path in interrupted:
            yield _alone(path, limit=limit, tries=1 if len(interrupted) == 1 else 2)


def _in_pool(
    left: deque[Path], interrupted: list[Path], *, workers: int, limit: int | float
) -> Iterator[dict[str, Any]]:
    """Yield the facts of files taken off `left`, until a worker dies: `interrupted` gets the files in work then."""
    pool = process_pool(workers, loads=LOADS)
    pending: dict[Future[dict[str, Any]], Path] = {}
    try:
        while (left and not interrupted) or pending:
            while left and not interrupted and len(pending) < workers:  # no more: what waits would be interrupted too
                path = left.popleft()
                try:
                    pending[pool.submit(_probe, path, limit)] = path
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


def _alone(path: Path, *, limit: int | float, tries: int) -> dict[str, Any]:
    """Return the facts of a file from a worker of its own, or that it ended that many of them."""
    for _ in range(tries):
        pool = process_pool(1, loads=LOADS)
        try:
            return pool.submit(_probe, path, limit).result()
        except BrokenProcessPool:
            continue
        finally:
            pool.shutdown(cancel_futures=True)
    return {"path": str(path), "stamp": _stamp(path), "content": content_hash(path), "error": FATAL}


def _probe(path: Path, limit: int | float) -> dict[str, Any]:
    """One file, in a process of its own: its facts, or why it cannot be read."""
    from clipvid.video.decode import probe

    found: dict[str, Any] = {"path": str(path), "stamp": _stamp(path), "content": content_hash(path)}
    try:
        with _limited(limit):
            info = asdict(probe(path))
            return {**found, "info": {k: v for k, v in info.items() if k not in ("path", "times")}}
    except VideoError as error:
        return {**found, "error": error.reason}
    except _TookTooLongError:
        return {**found, "limit": limit, "error": f"took more than {limit:g} s to decode"}


class _TookTooLongError(BaseException):
    """Not an OSError, as TimeoutError is, which readers of files handle."""


class _limited:  # noqa: N801  # reads as a word where it is used
    """_TookTooLongError after so many seconds; only where a signal can be had (not on Windows)."""

    def __init__(self, seconds: int | float) -> None:
        self.seconds = seconds if hasattr(signal, "setitimer") else 0.0

    def __enter__(self) -> None:
        if self.seconds:
            signal.signal(signal.SIGALRM, self._raise)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        if self.seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _raise(self, *_: object) -> None:
        raise _TookTooLongError


def _logged(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What earlier runs found; a last line that was cut off is none."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
            yield found["path"], found
        except (ValueError, KeyError, TypeError):
            continue


def _stamp(path: Path) -> list[int]:
    """Size and time of change: a file with the same is not decoded again."""
    try:
        facts = [file.stat() for file in files_of(path)]
    except OSError as error:
        raise DataError(f"{path} was there when the data set was opened and is not any more; run it again") from error
    return [sum(fact.st_size for fact in facts), max(fact.st_mtime_ns for fact in facts)]


def _some(kind: str, found: Sequence[tuple[str, str]]) -> list[str]:
    if not found:
        return []
    lines = [f"{kind}: {len(found)}"]
    lines += [f"  {path}" + (f": {reason}" if reason else "") for path, reason in found[:SHOWN]]
    return lines + ([f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])
