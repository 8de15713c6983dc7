"""When a few frames of a long video are wanted: which key frames to start from, so that the rest is never decoded.

Contract: pure facts of packets in, a plan out; no file is touched. A plan exists only for files whose frames are the
packets in order of time and whose key frames stand alone (H.264 and HEVC in MP4 or Matroska), and only if it saves
enough. It says which stamps must come out between a key frame and the last frame wanted of it: the decoder compares,
and starts over from the first frame if anything differs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

CONTAINERS = ("mov", "matroska")
WARM_UP = 16
"""What a jump costs, in frames: the decoder fills its threads and its reordering again."""
WORTH = 0.6
"""A plan is taken if it decodes at most this share of what decoding from the start would."""


class Packet(NamedTuple):
    """What matters of one packet of the video stream."""

    time: float | None
    stamp: int | None
    """Presentation time in the stream's own unit."""
    key: bool
    hidden: bool
    alone: bool
    """Whether all that is shown from this packet on can be decoded without what came before."""


@dataclass(frozen=True)
class Jump:
    """Frames to decode from one key frame on."""

    first: int
    """Index of the key frame."""
    stamps: tuple[int, ...]
    """Of the frames from it to the last one wanted, in order of time: what the decoder must give."""


@dataclass(frozen=True)
class Ladder:
    """Stamps of all frames in order of time, and the indices of those that decoding can start from."""

    stamps: tuple[int, ...]
    starts: tuple[int, ...]

    def jumps(self, wanted: Sequence[int]) -> list[Jump] | None:
        """How to get the `wanted` frames; None if decoding from the start is about as fast, or one is out of range."""
        if not wanted or not 0 <= min(wanted) <= max(wanted) < len(self.stamps):
            return None
        last_of: dict[int, int] = {}
        for index in sorted(set(wanted)):
            last_of[self.starts[bisect_right(self.starts, index) - 1]] = index
        cost = sum(last - start + 1 + WARM_UP for start, last in last_of.items())
        if cost > WORTH * (max(wanted) + 1):
            return None
        return [Jump(start, self.stamps[start : last + 1]) for start, last in last_of.items()]


def ladder(packets: Sequence[Packet], *, container: str, codec: str) -> Ladder | None:
    """The ladder of a file, or None if its packets do not say for certain which frame is which."""
    if codec not in ("h264", "hevc") or container.split(",")[0] not in CONTAINERS:
        return None
    if not packets or not packets[0].alone or any(packet.hidden or packet.stamp is None for packet in packets):
        return None
    stamps = sorted(packet.stamp for packet in packets if packet.stamp is not None)
    if len(set(stamps)) < len(stamps) or packets[0].stamp != stamps[0]:
        return None
    place = {stamp: index for index, stamp in enumerate(stamps)}
    return Ladder(tuple(stamps), tuple(sorted(place[p.stamp] for p in packets if p.alone and p.stamp is not None)))


def stands_alone(codec: str, data: bytes) -> bool:
    """Whether a key packet of H.264 or HEVC is one that nothing shown after it looks back across.

    Containers also mark recovery points, from which the picture only heals over some frames; the types of the units
    inside tell them apart: 5 in H.264 (ITU-T H.264, table 7-1), 16 to 21 in HEVC (H.265, table 7-1).
    """
    if codec == "h264":
        return any(unit & 0x1F == 5 for unit in _units(data))
    return codec == "hevc" and any(16 <= (unit >> 1) & 0x3F <= 21 for unit in _units(data))


def _units(data: bytes) -> list[int]:
    """First bytes of the network units of a packet, split by their four-byte lengths or by start codes."""
    if data[:3] == b"\0\0\1" or data[:4] == b"\0\0\0\1":
        return [part[0] for part in data.split(b"\0\0\1")[1:] if part]
    units, at = [], 0
    while at + 5 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        units.append(data[at + 4])
        at += 4 + size
    return units if at == len(data) else []
