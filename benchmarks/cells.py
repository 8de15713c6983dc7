"""Cells of a long benchmark: each a JSON file, written whole once it is measured, so that a run can be interrupted.

Contract: names of cells, what each waits for and a function that measures one in; files out. Several processes may work
on the same folder: a cell belongs to the one that holds its lock, which the system frees when that process ends. Also
what a result should say of where it was measured. Knows nothing of what is measured.
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
    """One measurement. `after` are the files of cells that it reads."""

    path: Path
    title: str
    measure: Callable[[], dict[str, Any]]
    after: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        return self.path.exists()


def fill(cells: Sequence[Cell], *, wait: float = 2.0) -> None:
    """Measure every cell whose file is missing, in order; one that another process holds is passed over.

    Each gets the seconds that passed, the seconds that cores worked for it, the commit and the machine. Raises
    ValueError for a cell that waits for a file which nothing here writes.
    """
    for cell in cells:
        if lost := [p for p in cell.after if not p.exists() and p not in {c.path for c in cells}]:
            raise ValueError(f"{cell.title} waits for {lost[0]}, which no cell of this run writes")
    while missing := [cell for cell in cells if not cell.done]:
        if not any(_filled(cell, len(cells) - len(missing) + 1, len(cells)) for cell in missing):
            time.sleep(wait)  # the rest is in other hands


def _filled(cell: Cell, place: int, total: int) -> bool:
    if cell.done or not all(path.exists() for path in cell.after):
        return False
    with _held(cell.path.with_suffix(".lock")) as mine:
        if not mine or cell.done:
            return False
        print(f"[{place}/{total}] {cell.title}", flush=True)
        passed, worked = time.perf_counter(), _worked()
        found = cell.measure()
        passed, worked = time.perf_counter() - passed, _worked() - worked
        where = {"seconds": passed, "core seconds": worked, "commit": COMMIT, **machine()}
        write_json(cell.path, {**found, **where})
        print(f"  {found.get('figures', '')}  {passed:.0f} s", flush=True)
    return True


def _worked() -> float:
    """Seconds that cores worked for this process and for those it has waited for."""
    return sum(os.times()[:4])


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """True for the one process that has the lock."""
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
    """So many more processes of this interpreter with other arguments, ended with the block.

    If the block went well they are waited for; RuntimeError where one of them failed.
    """
    started = [subprocess.Popen([sys.executable, *arguments]) for _ in range(count)]
    try:
        yield
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.terminate()
    if any(codes):
        raise RuntimeError(f"a helper ended with exit code {max(codes, key=abs)}; what it said stands above")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _commit() -> str:
    """Short hash of the clipvid that is imported, with a + where its files differ from that commit."""
    git = ["git", "-C", str(Path(clipvid.__file__).parents[1])]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    status = [*git, "status", "--porcelain", "--untracked-files=no", "clipvid", "benchmarks/*.py"]
    changed = subprocess.run(status, capture_output=True, text=True, check=False).stdout.strip()
    return (found.stdout.strip() or "unknown") + ("+" if changed else "")


COMMIT = _commit()
"""Of the code that runs, read when it was loaded."""


def invocation() -> str:
    """How this benchmark was started, but for where its result goes."""
    words = sys.argv[1:]
    if "--out" in words:
        place = words.index("--out")
        words = words[:place] + words[place + 2 :]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def result_of(script: str, device: str) -> Path:
    """The file that a benchmark writes, another for each kind of device."""
    name = Path(script).stem + ("" if device == "cpu" else f"-{device}")
    return Path(script).parent / "results" / f"{name}.json"


def machine() -> dict[str, str]:
    """Where and with what something was measured."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {"machine": f"{os.cpu_count()} CPU cores{gpu}", "clipvid": clipvid.__version__, "torch": torch.__version__}


@contextmanager
def peak_memory(device: str) -> Iterator[list[float]]:
    """A list that holds, after the block, the most MiB that it needed at once beyond what was held before."""
    gc.collect()
    found: list[float] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from what is resident
    before = _resident("VmRSS")
    yield found
    found.append((_resident("VmHWM") - before) / 2**20)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
