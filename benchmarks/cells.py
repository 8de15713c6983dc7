"""Cells of a long benchmark: one JSON file each, written atomically once it is measured, so a run can be interrupted.

Contract: cells with their dependencies and a function that measures each in; files out. Several processes may work on
the same folder: a cell belongs to the process that holds its lock, which the system frees when that process ends. Also
provides the commit and the machine for results. Knows nothing about what is measured.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import clipvid
from clipvid.runtime.files import atomic_file


@dataclass(frozen=True)
class Cell:
    """One measurement; `after` lists the files of the cells that it reads."""

    path: Path
    title: str
    measure: Callable[[], dict[str, Any]]
    after: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        """True if the file exists."""
        return self.path.exists()


def fill(cells: Sequence[Cell], *, wait: float = 2.0) -> None:
    """Measure every cell whose file is missing, in order, and skip those that another process is measuring.

    Each file also gets the elapsed seconds, the core seconds, the commit and the machine. Raises ValueError for a cell
    that depends on a file which no cell writes.
    """
    for cell in cells:
        if orphaned := [p for p in cell.after if not p.exists() and p not in {c.path for c in cells}]:
            raise ValueError(f"{cell.title} waits for {orphaned[0]}, which no cell of this run writes")
    while missing := [cell for cell in cells if not cell.done]:
        if not any(_filled(cell, len(cells) - len(missing) + 1, len(cells)) for cell in missing):
            time.sleep(wait)  # other processes are measuring the rest


def _filled(cell: Cell, number: int, total: int) -> bool:
    """Measure one cell unless it is done, must wait or is locked; return True if it was measured."""
    if cell.done or not all(path.exists() for path in cell.after):
        return False
    with _held(cell.path.with_suffix(".lock")) as mine:
        if not mine or cell.done:
            return False
        print(f"[{number}/{total}] {cell.title}", flush=True)
        elapsed, worked = time.perf_counter(), _worked()
        result = cell.measure()
        elapsed, worked = time.perf_counter() - elapsed, _worked() - worked
        circumstances = {"seconds": elapsed, "core_seconds": worked, "commit": COMMIT, **machine()}
        write_json(cell.path, {**result, **circumstances})
        print(f"  {result.get('metrics', '')}  {elapsed:.0f} s", flush=True)
    return True


def _worked() -> float:
    """Return the core seconds of this process and of the child processes it has waited for."""
    return sum(os.times()[:4])


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Yield True if this process gets the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def helpers(count: int, arguments: Sequence[str]) -> Iterator[None]:
    """Run `count` more processes of this interpreter with these arguments during the block.

    After the block they are waited for, or ended if the block failed. Raises RuntimeError if one of them failed.
    """
    started = [subprocess.Popen([sys.executable, *arguments]) for _ in range(count)]
    try:
        yield
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.terminate()
    if any(codes):
        raise RuntimeError(f"a child process ended with exit code {max(codes, key=abs)}; its error is printed above")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _commit() -> str:
    """Return the short hash of the imported clipvid's commit, with a + if its files differ from that commit."""
    git = ["git", "-C", str(Path(clipvid.__file__).parents[1])]
    result = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    status = [*git, "status", "--porcelain", "--untracked-files=no", "clipvid", "benchmarks/*.py"]
    changed = subprocess.run(status, capture_output=True, text=True, check=False).stdout.strip()
    return (result.stdout.strip() or "unknown") + ("+" if changed else "")


COMMIT = _commit()
"""Commit of the running code, read at import."""


def invocation() -> str:
    """Return the command that started this benchmark, without the path of its output."""
    words = sys.argv[1:]
    if "--out" in words:
        position = words.index("--out")
        words = words[:position] + words[position + 2 :]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def result_of(script: str, device: str) -> Path:
    """Return the result file of a benchmark, a separate one for each kind of device."""
    name = Path(script).stem + ("" if device == "cpu" else f"-{device}")
    return Path(script).parent / "results" / f"{name}.json"


def machine() -> dict[str, str]:
    """Return the machine and the versions that a measurement used."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {"machine": f"{os.cpu_count()} CPU cores{gpu}", "clipvid": clipvid.__version__, "torch": torch.__version__}


@contextmanager
def peak_memory(device: str) -> Iterator[list[float]]:
    """Yield a list that holds, after the block, its peak memory in MiB beyond the memory used before it."""
    gc.collect()
    peak: list[float] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        peak.append((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak to the resident size
    before = _resident("VmRSS")
    yield peak
    peak.append((_resident("VmHWM") - before) / 2**20)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
