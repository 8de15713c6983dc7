"""Clips of equal content, such as copies of one file under two names, which must get equal scores.

Contract: records in, for each the position of the first clip with the same frames out. Only files of equal size are
hashed. Knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

from clipvid.data.clips.record import Record
from clipvid.data.probing.content import content_hash, stamp_of


def first_of_equals(records: Sequence[Record]) -> list[int] | None:
    """Return for each record the position of the first one with the same content, start and end; None if all differ.

    A file that cannot be read any more is equal to none.
    """
    candidates: dict[Hashable, list[int]] = {}
    for position, record in enumerate(records):
        candidates.setdefault((_size(record), record.start, record.end), []).append(position)
    first = list(range(len(records)))
    for positions in candidates.values():
        if len(positions) > 1:
            seen: dict[Hashable, int] = {}
            for position in positions:
                first[position] = seen.setdefault(_content(records[position], position), position)
    return None if first == list(range(len(records))) else first


def _size(record: Record) -> Hashable:
    """Return what equal clips have in common and costs nothing: the shape of an array, the bytes of a file."""
    if record.array is not None:
        return record.array.frames.shape
    try:
        return stamp_of(record.path)[2]
    except OSError:
        return None


def _content(record: Record, position: int) -> Hashable:
    if record.array is not None:
        return record.array.content
    try:
        return content_hash(Path(record.path))
    except OSError:
        return position
