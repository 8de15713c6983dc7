"""Where the time of a run goes: a stopwatch that stages of the work switch, by name, while a block is profiled.

Contract: `profiled()` around a run; `stage`, `awaited` and `beside` inside the library report to it and do nothing
where nobody profiles. Stages of the thread that profiles never overlap, so their seconds add up to the run's. Work of
other threads and processes is told apart, since it goes on beside the rest. Imports nothing of clipvid.
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
    """Seconds by stage. Printing it gives a table, `plain()` what a JSON file should say."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Of the run's own thread, by stage; they add up to `total`."""
        self.beside: dict[str, float] = {}
        """Of threads and processes that work beside it (decode, transform), summed over all of them."""
        self._stages, self._whole = [OTHER], False
        self._since = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds that the run took."""
        return sum(self.seconds.values())

    def plain(self) -> dict[str, Any]:
        """The figures as JSON takes them."""
        return {"total seconds": self.total, "seconds": self.seconds, "beside": self.beside}

    def __str__(self) -> str:
        whole = self.total or 1.0
        rows = [(name, f"{s:9.2f} s {100 * s / whole:5.1f} %") for name, s in self.seconds.items()]
        rows += [("in all", f"{self.total:9.2f} s")]
        rows += [(f"{name}, beside", f"{s:9.2f} s") for name, s in self.beside.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}} {told}" for name, told in rows)

    def _charge(self) -> None:
        """Put the time since the last switch to the stage that it was spent in."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # or a kernel would count for the stage that waits for it
        now, name = time.perf_counter(), self._stages[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def _stage(self, name: str, *, whole: bool) -> Iterator[None]:
        self._charge()
        self._stages.append(name)
        self._whole = whole
        try:
            yield
        finally:
            self._charge()
            self._stages.pop()
            self._whole = False


class _Running(threading.local):
    """The profile of each thread, None where it measures nothing."""

    profile: Profile | None = None


_running = _Running()


@contextmanager
def profiled() -> Iterator[Profile]:
    """Measure the block: what the library does in it, stage by stage; complete when the block ends.

    Threads may each profile a block of their own. Raises ValueError inside another profiled block of the same thread.

    >>> with profiled() as found:
    ...     time.sleep(0.01)
    >>> list(found.seconds)
    ['other']
    """
    if _running.profile is not None:
        raise ValueError("a block is profiled already; its profile has what this one would have")
    profile = _running.profile = Profile()
    try:
        yield profile
    finally:
        profile._charge()
        _running.profile = None


def stage(name: str, *, whole: bool = False) -> AbstractContextManager[None]:
    """The block is a stage of this name; a stage inside it takes its time out of it, unless it is a `whole` one."""
    here = _running.profile
    if here is None or here._whole:
        return nullcontext()
    return here._stage(name, whole=whole)


def beside(**seconds: float) -> None:
    """Add seconds that other threads or processes worked, by name of the stage."""
    here = _running.profile
    if here is None or here._whole:
        return
    for name, value in seconds.items():
        here.beside[name] = here.beside.get(name, 0.0) + value


def awaited(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items; the time until each comes counts as waiting for data."""
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
