"""Verdicts on whether another decoder reads a file like PyAV, remembered as long as the file stays unchanged.

Contract: a file's identity and a decoder in, its Verdict or None out. Each lookup takes an identity freshly read from
the disk, so a changed file has no verdict. The memory is bounded, thread-safe and safe across forks. Knows nothing of
decoding.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

from clipvid.runtime.storage.stamps import Stamp, stamp_of
from clipvid.video.container.times import FrameTimes

LIMIT = 64 << 20
"""Memory limit for verdicts, in bytes; enough for 100 000 files of constant frame rate."""
ENTRY = 600
"""Size of one verdict without its times, in bytes."""
FINEST = 1_000_000
"""Largest denominator of a constant frame duration in seconds."""


def identity(path: str | Path) -> Stamp | None:
    """Return the stamp of a file, or None if its attributes cannot be read."""
    try:
        return stamp_of(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """PyAV's metadata of a file that another decoder needs, or the reason why that decoder may not read it."""

    frames: int
    """Number of frames."""
    stream: int
    """Position of the video stream in the file."""
    step: Fraction | None
    """Duration of each frame in seconds if it is exactly constant, else None."""
    stamps: array[float] | None
    """Time of each frame in seconds if `step` is None, else None."""
    end: float
    """End of the last frame in seconds."""
    objection: str | None
    """Complete message for refusing the file, or None if the decoder reads it like PyAV."""

    @classmethod
    def of(cls, shown: FrameTimes, *, stream: int, objection: str | None) -> Verdict:
        """Build a verdict; constant frame durations are stored as one fraction, and a refused file without times."""
        times = shown.times
        if objection is not None:
            return cls(len(times), stream, None, None, shown.end, objection)
        step = _constant_step(times)
        return cls(len(times), stream, step, array("d", times) if step is None else None, shown.end, None)

    @property
    def times(self) -> tuple[float, ...]:
        """Time of each frame in seconds, bit for bit as given to `of`."""
        if self.step is None:
            return tuple(self.stamps or ())
        return _even_times(self.step, self.frames)

    @property
    def shown(self) -> FrameTimes:
        """Times of all frames, as given to `of`."""
        return FrameTimes(self.times, self.end)

    @property
    def cost(self) -> int:
        """Approximate memory, in bytes."""
        return ENTRY + (0 if self.stamps is None else 8 * len(self.stamps))


def _even_times(step: Fraction, frames: int) -> tuple[float, ...]:
    return tuple(k * step.numerator / step.denominator for k in range(frames))


def _constant_step(times: Sequence[float]) -> Fraction | None:
    """Return the constant frame duration that gives exactly these times, or None if there is none."""
    step = Fraction(times[1] if len(times) > 1 else 0).limit_denominator(FINEST)
    return step if _even_times(step, len(times)) == tuple(times) else None


Key = tuple[str, int, int]
"""Decoder, device and inode; a changed file replaces its previous entry."""
Entry = tuple[Stamp, Verdict]
"""State of a file and the verdict on it."""


class Memory:
    """Bounded memory of verdicts by file. When it is full, the newest entry is evicted.

    Every epoch reads the same files, so evicting the oldest would lose each verdict just before its next use.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._size, self._lock = limit, 0, threading.Lock()
        self._entries: dict[Key, Entry] = {}
        self.news: dict[Key, Entry] | None = None
        """Entries added since a worker last sent them to the main process; None to record none."""
        if hasattr(os, "register_at_fork"):  # a lock held by another thread at a fork would stay locked in the child
            release = self._lock.release
            os.register_at_fork(before=self._lock.acquire, after_in_parent=release, after_in_child=release)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, file: Stamp, decoder: str) -> Verdict | None:
        """Return the verdict on exactly this state of a file, or None."""
        entry = self._entries.get((decoder, file.device, file.inode))
        return entry[1] if entry is not None and entry[0] == file else None

    def put(self, file: Stamp, decoder: str, verdict: Verdict) -> None:
        """Remember a verdict, unless the file changed just now."""
        if file.is_settled:
            self.learn({(decoder, file.device, file.inode): (file, verdict)})

    def drop(self, file: Stamp, decoder: str) -> None:
        """Forget the verdict on a file."""
        with self._lock:
            self._remove((decoder, file.device, file.inode))

    def learn(self, entries: Mapping[Key, Entry]) -> None:
        """Add entries, also those of another process, in place of older ones on the same files."""
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
        """Return a copy of all entries, for another process."""
        with self._lock:
            return dict(self._entries)

    def _remove(self, key: Key) -> None:
        if (old := self._entries.pop(key, None)) is not None:
            self._size -= old[1].cost


@cache
def memory() -> Memory:
    """Return the verdict memory of this process."""
    return Memory()
