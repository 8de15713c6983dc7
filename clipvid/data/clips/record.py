"""Record: one clip of a data set, as plain data; ProtocolSpec: what a named protocol requires of its data.

Contract: frozen, validated on construction, cheap to copy. Knows nothing of file formats or decoding, and does not
check that files exist (readers do). `clipvid.data.records` also offers these names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from clipvid.data.clips.arrays import ArrayClip


@dataclass(frozen=True)
class Record:
    """One clip: a file, its part from `start` to `end` seconds, or an array, with captions and label."""

    path: Path
    captions: tuple[str, ...] = ()
    label: int | None = None
    """Index into VideoDataset.classes; None for a clip without a class."""
    start: float | None = None
    end: float | None = None
    array: ArrayClip | None = field(default=None, repr=False)
    """Frames in memory, read in place of a file; `path` is then the name that messages and hits give."""

    def __post_init__(self) -> None:
        if isinstance(self.captions, str):
            raise ValueError(f"captions must be a tuple of strings, got {self.captions!r}; write ({self.captions!r},)")
        object.__setattr__(self, "path", Path(self.path))  # a string is accepted too
        object.__setattr__(self, "captions", tuple(self.captions))
        for caption in self.captions:
            if not caption.strip():
                raise ValueError(f"{self.path}: a caption is empty; leave captions=() for a clip without one")
        if self.label is not None and self.label < 0:
            raise ValueError(
                f"{self.path}: label must be an integer >= 0, got {self.label}; use None for a clip without a class"
            )
        self._check_times()

    def _check_times(self) -> None:
        start = 0.0 if self.start is None else self.start
        end = math.inf if self.end is None else self.end
        if self.array is not None and (self.start, self.end) != (None, None):
            raise ValueError(
                f"{self.path}: start and end must be None for an array, which has no times, got {self.start} and "
                f"{self.end}; cut the array instead"
            )
        if not (math.isfinite(start) and 0 <= start < end):
            raise ValueError(
                f"{self.path}: start and end must be seconds with 0 <= start < end, got {self.start} and {self.end}; "
                "use None for the start or end of the file"
            )


def checked_records(records: object) -> tuple[Record, ...]:
    """Return the records of a data set; raise ValueError for other objects."""
    items = tuple(cast(Iterable[object], records)) if isinstance(records, Iterable) else (records,)
    for item in items:
        if not isinstance(item, Record):
            raise ValueError(
                f"records must be Record objects, got {item!r:.80}; open files by clipvid.open_dataset, or build a "
                "data set by VideoDataset.from_arrays or from_frame"
            )
    return cast(tuple[Record, ...], items)


@dataclass(frozen=True)
class ProtocolSpec:
    """Requirements of a named protocol on the evaluated data; all defaults for other data."""

    videos: int | None = None
    """Number of videos that metrics are computed over."""
    frames: int | None = None
    """Frames per clip in common use."""
    tokens: int | None = None
    """Maximum caption length in tokens in common use."""
    shared: bool = False
    """True if equal captions are interchangeable: each is correct for every video that has it."""
    full_set: tuple[str, int] | None = None
    """Name and number of videos of the full data set that this is a subset of."""
    fewer: bool = False
    """True if the caller allowed fewer videos than the protocol has (allow_missing)."""
    listed: int | None = None
    """Number of videos in a custom list that replaces the protocol's; None without such a list."""

    @property
    def short_list_note(self) -> str:
        """Note that evaluation will refuse a short custom list too, so that both problems show at once; or ""."""
        if self.listed is None or self.videos is None or self.listed >= self.videos:
            return ""
        return f", as metrics need anyway: the list names {self.listed} videos, the protocol has {self.videos}"


NO_PROTOCOL = ProtocolSpec()
