"""When each frame of a video is shown: the only place where time stamps become seconds from the first frame.

Contract: stamps in units of the stream's time base in, `FrameTimes` out: seconds that never decrease, and the end of
the last frame. Stamps of joined recordings start again; each part then starts where the part before it ends. No file is
touched, and nothing is known of any container or decoder.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Rational
from statistics import median

REORDERED = 16
"""Number of frames by which a stamp may fall although the video goes on: H.264 and HEVC reorder at most 16 frames."""


@dataclass(frozen=True)
class FrameTimes:
    """Times of all frames of a video, in presentation order."""

    times: tuple[float, ...]
    """Start of each frame in seconds from the first frame, never decreasing."""
    end: float
    """End of the last frame in seconds from the first frame."""

    def between(self, start: int | float, end: int | float) -> range:
        """Return the frames that begin in [start, end), or else the one on screen at `start`; empty after the end."""
        part = range(bisect_left(self.times, start), bisect_left(self.times, end))
        if part or start >= self.end:
            return part
        on_screen = bisect_right(self.times, start) - 1
        return range(on_screen, on_screen + 1)


@dataclass(frozen=True)
class Stamps:
    """Time stamps of the frames of a stream, as packets in stored order or as decoded frames in presentation order."""

    shown: Sequence[int | None]
    """When each frame is shown; None if unknown."""
    durations: Sequence[int]
    """Duration of each frame; 0 if unknown."""
    unit: Rational | None
    """Seconds per unit of the stamps; None or 0 if unknown."""
    rate: float
    """Frames per second, for frames without stamps or durations."""
    decoded: Sequence[int | None] = ()
    """When each packet is decoded; None if unknown. Empty for decoded frames."""
    keys: Sequence[bool] = ()
    """True for each packet from which decoding can start. Empty for decoded frames."""

    def settled(self) -> tuple[FrameTimes, tuple[int | None, ...]]:
        """Return the times, and the stamps in the same order; all times come from `rate` if any stamp is missing.

        Some containers (AVI with B-frames) stamp frames in coding order, so the stamps of each part are sorted.
        """
        stamps = [stamp for stamp in self.shown if stamp is not None]
        number = len(self.shown)
        if not self.unit or not number or len(stamps) < number:
            return FrameTimes(tuple(i / self.rate for i in range(number)), number / self.rate), tuple(self.shown)
        top, bottom = int(self.unit.numerator), int(self.unit.denominator)
        begin: float = 0  # of the part, in units of the stamps
        units: list[float] = []
        ordered: list[int | None] = []
        for first, stop in pairwise([*self._part_starts(stamps), number]):
            part = sorted(zip(stamps[first:stop], self.durations[first:stop], strict=True))
            origin, (last, duration) = part[0][0], part[-1]
            units += [begin + (stamp - origin) for stamp, _ in part]
            ordered += [stamp for stamp, _ in part]
            mean = (last - origin) / max(1, len(part) - 1)
            begin += last - origin + (max(0, duration) or mean or bottom / (top * self.rate))
        # Integer division rounds once, like float(Fraction), in a fifteenth of the time.
        return FrameTimes(tuple(unit * top / bottom for unit in units), begin * top / bottom), tuple(ordered)

    def _part_starts(self, stamps: Sequence[int]) -> list[int]:
        """Return the number of the first frame, and of each frame whose stamps start again.

        The decoding order falls only there. Imprecise stamps fall a little as well, so a fall counts at a key frame, or
        if it is longer than any reordering of frames.
        """
        ordered = bool(self.decoded) and any(stamp is not None for stamp in self.decoded)
        order = self.decoded if ordered else stamps
        starts, before, longest = [0], None, 0.0
        for i, stamp in enumerate(order):
            if stamp is None:
                continue
            if before is not None and stamp < before:
                longest = longest or REORDERED * (median(abs(b - a) for a, b in pairwise(stamps)) or 1)
                if (ordered and self.keys[i]) or before - stamp > longest:
                    starts.append(i)
            before = stamp
        return starts


@dataclass(frozen=True)
class Timeline:
    """Times that the packets of a video promise, by which decoded frames get theirs."""

    shown: FrameTimes
    stamps: tuple[int | None, ...]
    """Stamp of each frame, in the order of the times."""
    unit: Rational | None
    rate: float
    by_number: bool = False
    """True if decoded frames come with the stamps of other frames (AVI), so that only their number tells the time."""

    def of(self, stamps: Sequence[int | None], durations: Sequence[int]) -> FrameTimes:
        """Return the times of all decoded frames: the promised ones if they have the promised stamps."""
        if len(stamps) == len(self.stamps) and Counter(stamps) == Counter(self.stamps):
            return self.shown
        return Stamps(stamps, durations, self.unit, self.rate).settled()[0]


class Follower:
    """Function of the stamp of one decoded frame after the other, which returns its time without waiting for the rest.

    A frame with the promised stamp has the promised time. From the first other frame on, times follow the stamps.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.agrees = True
        """True as long as every frame had the promised stamp."""
        self._timeline, self._count, self._time = timeline, 0, 0.0
        self._before: int | None = None
        self._origin: tuple[float, int] | None = None  # a time and the stamp that belongs to it

    def __call__(self, stamp: int | None) -> float:
        line, number = self._timeline, self._count
        self._count += 1
        promised = number < len(line.stamps)
        self.agrees = self.agrees and promised and stamp == line.stamps[number]
        if promised and (self.agrees or line.by_number):
            self._time = line.shown.times[number]
            self._origin = None
        else:
            self._time = max(self._time, self._followed(stamp, number))
        self._before = stamp
        return self._time

    def _followed(self, stamp: int | None, number: int) -> float:
        """Return the time of a frame that the packets did not promise."""
        line = self._timeline
        if stamp is None or not line.unit:
            return number / line.rate
        unit = int(line.unit.numerator) / int(line.unit.denominator)
        before = stamp if self._before is None else self._before
        if (before - stamp) * unit > REORDERED / line.rate:  # The stamps start again.
            self._origin = (self._time + 1 / line.rate, stamp)
        elif self._origin is None:
            self._origin = (self._time, before)
        time, origin = self._origin
        return time + (stamp - origin) * unit
