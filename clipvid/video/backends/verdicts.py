"""PyAV's verdicts on files that another decoder is to read, remembered for as long as the files stay the same.

Contract: a file's identity and a decoder in, its Verdict or None out. An identity is read from the disk at every
question, so a changed file has no verdict. Memory is bounded, and may be used from many threads and across forks.
Knows nothing of decoding.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import NamedTuple

LIMIT = 64 << 20
"""Bytes of memory for verdicts, enough for 100 000 files of constant frame rate."""
ENTRY = 600
"""Bytes of one verdict without its times."""
SETTLED = 2.0
"""Seconds after its last change from which a file's time stamps are trusted to show the next change."""
FINEST = 1_000_000
"""Largest denominator of a constant frame duration in seconds."""


class Identity(NamedTuple):
    """The facts by which the operating system tells a file, and a change of its content."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int
    """Nanoseconds, as `modified`."""

    @property
    def recent(self) -> bool:
        """Whether the file changed so lately that another change could leave the same time stamps."""
        now = time.time()
        return now - self.changed / 1e9 < SETTLED or abs(now - self.modified / 1e9) < SETTLED


def identity(path: str | Path) -> Identity | None:
    """Return the identity of a file, or None where there is none to be had."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):  # ValueError is for a NUL in the name
        return None
    return Identity(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Verdict:
    """PyAV's facts of a file that a decoder needs, or why that decoder may not read it."""

    frames: int
    stream: int
    """Position of the video stream in the file."""
    step: Fraction | None
    """Seconds from each frame to the next where these are exactly constant, else None."""
    stamps: array[float] | None
    """Seconds of each frame where `step` is None."""
    objection: str | None
    """The whole reason to refuse the file, or None where the decoder reads it as PyAV does."""

    @classmethod
    def of(cls, times: Sequence[float], *, stream: int, objection: str | None) -> Verdict:
        if objection is not None:
            return cls(len(times), stream, None, None, objection)
        step = _step(times)
        return cls(len(times), stream, step, array("d", times) if step is None else None, None)

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds of each frame, to the last bit those of the listing."""
        if self.step is None:
            return tuple(self.stamps or ())
        return _even(self.step, self.frames)

    @property
    def cost(self) -> int:
        """Bytes of memory, about."""
        return ENTRY + (0 if self.stamps is None else 8 * len(self.stamps))


def _even(step: Fraction, frames: int) -> tuple[float, ...]:
    return tuple(k * step.numerator / step.denominator for k in range(frames))


def _step(times: Sequence[float]) -> Fraction | None:
    """Return the duration of a frame that gives exactly these times, or None."""
    step = Fraction(times[1] if len(times) > 1 else 0).limit_denominator(FINEST)
    return step if _even(step, len(times)) == tuple(times) else None


Key = tuple[str, int, int]
"""Decoder, device and inode: a file that changed takes the place of what it was."""
Entry = tuple[Identity, Verdict]


class Memory:
    """Verdicts by file. When it is full, the newest makes room.

    Epochs read the same files in turn: giving up the oldest would lose each verdict just before it is needed again.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._size, self._lock = limit, 0, threading.Lock()
        self._entries: dict[Key, Entry] = {}
        self.news: dict[Key, Entry] | None = None
        """What was remembered since this was last set to a dict; None where nobody asks."""
        if hasattr(os, "register_at_fork"):  # a lock that another thread holds at a fork would stay locked in the child
            release = self._lock.release
            os.register_at_fork(before=self._lock.acquire, after_in_parent=release, after_in_child=release)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, file: Identity, decoder: str) -> Verdict | None:
        """Return the verdict on exactly this state of a file, or None."""
        entry = self._entries.get((decoder, file.device, file.inode))
        return entry[1] if entry is not None and entry[0] == file else None

    def put(self, file: Identity, decoder: str, verdict: Verdict) -> None:
        """Remember a verdict, unless the file changed just now."""
        if not file.recent:
            self.learn({(decoder, file.device, file.inode): (file, verdict)})

    def drop(self, file: Identity, decoder: str) -> None:
        """Forget the verdict on a file."""
        with self._lock:
            self._remove((decoder, file.device, file.inode))

    def learn(self, entries: Mapping[Key, Entry]) -> None:
        """Remember what another process found."""
        with self._lock:
            for key, entry in entries.items():
                if key in self._entries and self._entries[key][0] == entry[0]:
                    continue
                self._remove(key)
                cost = entry[1].cost
                while self._entries and self._size + cost > self._limit:
                    self._size -= self._entries.popitem()[1][1].cost
                if cost <= self._limit:
                    self._entries[key] = entry
                    self._size += cost
                if self.news is not None:
                    self.news[key] = entry

    def entries(self) -> dict[Key, Entry]:
        """Return all that is remembered, for another process."""
        with self._lock:
            return dict(self._entries)

    def _remove(self, key: Key) -> None:
        if (old := self._entries.pop(key, None)) is not None:
            self._size -= old[1].cost


@cache
def memory() -> Memory:
    """Return the memory of this process."""
    return Memory()
