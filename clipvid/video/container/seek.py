"""When a few frames of a long video are wanted: which key frames to start from, so that the rest is never decoded.

Contract: pure facts of packets in, a plan out; no file is touched. A plan exists only for files whose frames are the
packets in order of time and whose key frames stand alone (H.264 and HEVC in MP4 or Matroska), and only if it saves
enough. It says which stamps must come out between a key frame and the last frame wanted of it: the decoder compares,
and starts over from the first frame if anything differs. Damage before the key frame is not met, and not seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

CONTAINERS = ("mov", "matroska")
WARM_UP = 16
"""What a jump costs, in frames: the decoder fills its threads and its reordering again."""
WORTH = 0.6
"""A plan is taken if it decodes at most this share of what decoding from the start would."""


class Units(NamedTuple):
    """What the network units of an H.264 or HEVC packet say of it."""

    one: bool
    """Whether it holds exactly one picture, which comes out whatever was decoded before."""
    alone: bool
    """Whether nothing shown after that picture looks back across it."""


class Packet(NamedTuple):
    """What matters of one packet of the video stream."""

    time: float | None
    stamp: int | None
    """Presentation time in the stream's own unit."""
    key: bool
    hidden: bool
    units: Units | None = None
    """Of H.264 and HEVC."""


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
    stamps = sorted(p.stamp for p in packets if p.stamp is not None and p.units is not None and p.units.one)
    if len(set(stamps)) < len(packets) or any(packet.hidden for packet in packets):
        return None
    starts = {p.stamp for p in packets if p.key and p.units is not None and p.units.alone}
    if not packets or packets[0].stamp not in starts or packets[0].stamp != stamps[0]:
        return None
    return Ladder(tuple(stamps), tuple(index for index, stamp in enumerate(stamps) if stamp in starts))


def units(codec: str, data: Any) -> Units:
    """Facts of one packet, of anything with a buffer. H.264: ITU-T H.264, table 7-1; HEVC: H.265, table 7-1.

    Containers also call a recovery point a key frame, from which the picture only heals over some frames; the types
    tell them apart. After an end of sequence, and at a broken link, HEVC's decoder drops pictures: no index is safe.
    """
    found = _split(memoryview(data))
    if codec == "h264":
        types = [unit[0] & 0x1F for unit in found]
        first = [unit for unit, kind in zip(found, types, strict=True) if kind in (1, 2, 5) and unit[1] & 0x80]
        ends, alone = {10, 11} & {*types}, 5 in types
    else:  # pictures of a second layer (stereo) are none of the video's
        base = [unit for unit in found if not ((unit[0] & 1) << 5 | unit[1] >> 3)]
        types = [(unit[0] >> 1) & 0x3F for unit in base]
        first = [unit for unit, kind in zip(base, types, strict=True) if kind < 32 and unit[2] & 0x80]
        ends, alone = {16, 17, 18, 36, 37} & {*types}, any(19 <= kind <= 21 for kind in types)
    return Units(len(first) == 1 and not ends, alone)


def _split(data: memoryview) -> list[bytes]:
    """The first three bytes of every network unit of a packet, by their four-byte lengths or else by start codes."""
    found, at = [], 0
    while at + 5 <= len(data):
        found.append(bytes(data[at + 4 : at + 7]).ljust(3, b"\0"))
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    if at == len(data):
        return found
    return [part[:3].ljust(3, b"\0") for part in bytes(data).split(b"\0\0\1")[1:] if part]
