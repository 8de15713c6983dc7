"""Seek points: the key frames from which a few frames of a long video can be decoded without decoding the rest.

Contract: packet metadata in, a list of `Jump`s out; no file is touched. Jumps exist only for files whose frames are
the packets in order of time and whose key frames are independent (H.264 and HEVC in MP4 or Matroska), and only if they
save enough decoding. Each jump lists the time stamps expected from its key frame to the last requested frame after it;
the decoder compares them and restarts from the first frame if any differs. Damage in skipped parts is not detected.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

CONTAINERS = ("mov", "matroska")
WARM_UP = 16
"""Cost of a jump, in frames: the decoder has to refill its threads and its reorder buffer."""
WORTH = 0.6
"""Largest cost of the jumps that is worth seeking, as a fraction of the frames decoded from the start."""


class Units(NamedTuple):
    """Properties of an H.264 or HEVC packet, read from its NAL (network abstraction layer) units."""

    one: bool
    """True if the packet holds exactly one picture, and that picture is output whatever was decoded before."""
    alone: bool
    """True if no picture shown after this one refers to a picture before it."""


class Packet(NamedTuple):
    """Metadata of one packet of the video stream."""

    time: float | None
    """Presentation time in seconds."""
    stamp: int | None
    """Presentation time in units of the stream's time base."""
    key: bool
    hidden: bool
    units: Units | None = None
    """NAL unit properties; None for codecs other than H.264 and HEVC."""
    order: int | None = None
    """Decoding time in units of the stream's time base."""
    duration: int = 0
    """Duration in units of the stream's time base; 0 if unknown."""


@dataclass(frozen=True)
class Jump:
    """A run of frames to decode, starting at a key frame."""

    first: int
    """Index of the key frame."""
    stamps: tuple[int, ...]
    """Time stamps that the decoder must output, from the key frame to the last requested frame, in time order."""


@dataclass(frozen=True)
class Ladder:
    """Time stamps of all frames in order of time, and the indices of the key frames that decoding can start from."""

    stamps: tuple[int, ...]
    starts: tuple[int, ...]

    def jumps(self, indices: Sequence[int]) -> list[Jump] | None:
        """Return jumps to the frames `indices`; None if they save too little or an index is out of range."""
        if not indices or not 0 <= min(indices) <= max(indices) < len(self.stamps):
            return None
        last_by_start: dict[int, int] = {}
        for index in sorted(set(indices)):
            last_by_start[self.starts[bisect_right(self.starts, index) - 1]] = index
        cost = sum(last - start + 1 + WARM_UP for start, last in last_by_start.items())
        if cost > WORTH * (max(indices) + 1):
            return None
        return [Jump(start, self.stamps[start : last + 1]) for start, last in last_by_start.items()]


def ladder(packets: Sequence[Packet], *, container: str, codec: str) -> Ladder | None:
    """Return the seek points of a file, or None if its packets do not determine the index of every frame."""
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
    """Return the properties of one packet (any object with the buffer protocol).

    NAL unit types are those of ITU-T H.264, table 7-1, and H.265, table 7-1. Containers also mark recovery points as
    key frames, although the picture is complete only some frames later; the unit types tell the two apart. After an
    end of sequence, and at a broken link, HEVC decoders drop pictures, so the index of a frame is not certain there.
    """
    nal_units = _split(memoryview(data))
    if codec == "h264":
        types = [unit[0] & 0x1F for unit in nal_units]
        first = [unit for unit, kind in zip(nal_units, types, strict=True) if kind in (1, 2, 5) and unit[1] & 0x80]
        ends, alone = {10, 11} & {*types}, 5 in types
    else:  # Pictures of a second layer (stereo) do not belong to the video.
        base = [unit for unit in nal_units if not ((unit[0] & 1) << 5 | unit[1] >> 3)]
        types = [(unit[0] >> 1) & 0x3F for unit in base]
        first = [unit for unit, kind in zip(base, types, strict=True) if kind < 32 and unit[2] & 0x80]
        ends, alone = {16, 17, 18, 36, 37} & {*types}, any(19 <= kind <= 21 for kind in types)
    return Units(len(first) == 1 and not ends, alone)


def _split(data: memoryview) -> list[bytes]:
    """Return the first three bytes of every NAL unit, delimited by four-byte lengths or else by start codes."""
    prefixes, offset = [], 0
    while offset + 5 <= len(data):
        prefixes.append(bytes(data[offset + 4 : offset + 7]).ljust(3, b"\0"))
        offset += 4 + int.from_bytes(data[offset : offset + 4], "big")
    if offset == len(data):
        return prefixes
    return [part[:3].ljust(3, b"\0") for part in bytes(data).split(b"\0\0\1")[1:] if part]
