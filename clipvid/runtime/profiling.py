"""Wall-clock profile of a run: seconds per named stage.

Contract: `profiled()` wraps a run; `stage`, `awaited` and `beside` inside the library report to it and do nothing when
no profile is active. Stages of the profiled thread never overlap, so their seconds add up to the run's. Parallel work
of other threads and processes is counted separately. Imports nothing of clipvid.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

T = TypeVar("T")
WAITING, OTHER = "waiting for data", "other"


class Profile:
    """Seconds by stage. Printing it gives a table, `plain()` a dictionary of JSON types."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds of the run's own thread, by stage; they add up to `total`."""
        self.beside: dict[str, float] = {}
        """Seconds of parallel threads and processes by stage (decode, transform), summed over all of them."""
        self._stages = [OTHER]
        self.in_complete_stage: bool = False
        """True inside a stage that counts the time of the stages inside it."""
        self._since = time.perf_counter()

    @property
    def total(self) -> float:
        """Duration of the run in seconds."""
        return sum(self.seconds.values())

    def plain(self) -> dict[str, Any]:
        """Return the seconds as a dictionary of JSON types."""
        return {"total_seconds": self.total, "seconds": self.seconds, "beside": self.beside}

    def __str__(self) -> str:
        total = self.total or 1.0
        rows = [(name, f"{s:9.2f} s {100 * s / total:5.1f} %") for name, s in self.seconds.items()]
        rows += [("total", f"{self.total:9.2f} s")]
        rows += [(f"{name}, in parallel", f"{s:9.2f} s") for name, s in self.beside.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}} {value}" for name, value in rows)

    def charge(self) -> None:
        """Add the time since the last switch to the stage in which it was spent."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # else a kernel counts for the stage that waits for it
        now, name = time.perf_counter(), self._stages[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str, *, complete: bool) -> Iterator[None]:
        """Count the block's time for the stage `name`; with `complete`, that of stages inside it too."""
        self.charge()
        self._stages.append(name)
        self.in_complete_stage = complete
        try:
            yield
        finally:
            self.charge()
            self._stages.pop()
            self.in_complete_stage = False


class _Running(threading.local):
    """The active profile of each thread, or None."""

    profile: Profile | None = None


_running = _Running()


@contextmanager
def profiled() -> Iterator[Profile]:
    """Measure the library's work in the block, stage by stage; the profile is complete when the block ends.

    Each thread may profile its own block. Raises ValueError inside another profiled block of the same thread.

    >>> with profiled() as profile:
    ...     time.sleep(0.01)
    >>> list(profile.seconds)
    ['other']
    """
    if _running.profile is not None:
        raise ValueError("this thread is profiled already; use the profile of the outer block")
    profile = _running.profile = Profile()
    try:
        yield profile
    finally:
        profile.charge()
        _running.profile = None


def stage(name: str, *, complete: bool = False) -> AbstractContextManager[None]:
    """Count the block's time for the stage `name`, without that of stages inside it; with `complete`, all of it."""
    profile = _running.profile
    if profile is None or profile.in_complete_stage:
        return nullcontext()
    return profile.stage(name, complete=complete)


def beside(**seconds: float) -> None:
    """Add seconds of work in other threads or processes, by name of the stage."""
    profile = _running.profile
    if profile is None or profile.in_complete_stage:
        return
    for name, value in seconds.items():
        profile.beside[name] = profile.beside.get(name, 0.0) + value


def awaited(items: Iterable[T]) -> Generator[T, None, None]:
    """Yield the items; count the time until each arrives as waiting for data."""
    source = iter(items)
    try:
        while True:
            with stage(WAITING):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item
    finally:
        if isinstance(source, Generator):
            source.close()
