"""Several data sets as one: the clips of many tables or folders, with the classes of all.

Contract: data sets in, one data set out, its clips in the order given. A clip that occurs in several of them becomes
one record with the captions of all, as rows of one table do; two labels for it are an error. Opens no file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from clipvid.data.clips.labels import is_number
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import DataError


def merge_datasets(parts: Sequence[VideoDataset], *, classes: Sequence[str] | None = None) -> VideoDataset:
    """Return the clips of all parts as one data set; a single part is returned unchanged.

    The classes are those given, or all classes of the parts, sorted. Raises DataError for a clip with two labels, and
    if some parts number their classes while others name them.
    """
    if len(parts) == 1:
        return parts[0]
    names = _all_classes(parts) if classes is None else tuple(classes)
    indices = {name: index for index, name in enumerate(names)}
    merged: dict[tuple[str, float | None, float | None], Record] = {}
    for part in parts:
        for record in part:
            label = None if record.label is None else indices[part.classes[record.label]]
            record = replace(record, label=label)
            key = (os.path.abspath(record.path), record.start, record.end)
            merged[key] = _joined(merged[key], record, names) if key in merged else record
    first = parts[0]
    return replace(
        first,
        records=tuple(merged.values()),
        classes=names,
        name=f"{first.name} and {len(parts) - 1} more",
        missing=tuple(dict.fromkeys(path for part in parts for path in part.missing)),
        left_out=tuple(dict.fromkeys(entry for part in parts for entry in part.left_out)),
        source=next((part.source for part in parts if part.source is not None), None),
    )


def _joined(record: Record, other: Record, names: Sequence[str]) -> Record:
    """Return one record with the captions of both; raise DataError for different labels."""
    if record.label != other.label:
        labels = ["none" if r.label is None else repr(names[r.label]) for r in (record, other)]
        raise DataError(f"{record.path} occurs twice, with labels {labels[0]} and {labels[1]}; leave one of them out")
    return replace(record, captions=(*record.captions, *other.captions))


def _all_classes(parts: Sequence[VideoDataset]) -> tuple[str, ...]:
    """Return the union of class names: sorted, or in the order of numbers where all parts number their classes."""
    labelled = [part for part in parts if part.classes]
    numbered = [part for part in labelled if part.classes == tuple(map(str, range(len(part.classes))))]
    if len(numbered) == len(labelled):
        return max((part.classes for part in numbered), key=len, default=())
    names = {name for part in labelled for name in part.classes}
    if numbered and not all(map(is_number, names)):
        titles = [part.source or part.name for part in (numbered[0], *(p for p in labelled if p not in numbered))]
        raise DataError(
            f"{titles[0]} numbers its classes and {titles[1]} names them; give all names, in the order of the numbers "
            "(classes)"
        )
    return tuple(sorted(names))
