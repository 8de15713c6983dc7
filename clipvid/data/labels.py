"""Class names of a data set from the labels in its annotations, and the index of each label.

Contract: labels as text in; names in label order and indices out, or DataError with the location that the caller gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from clipvid.errors import DataError

_MAX_CLASSES = 100_000  # a larger integer in the label column is an id, not a class


def class_names(labels: Iterable[str], given: Sequence[str] | None, *, source: str) -> tuple[str, ...]:
    """Return class names in label order: those given, the sorted labels, or every number up to the largest label."""
    if given is not None:
        return tuple(given)
    distinct = set(labels)
    if not all(is_number(label) for label in distinct):
        return tuple(sorted(distinct))
    largest = max((int(label) for label in distinct), default=-1)
    if largest >= _MAX_CLASSES:
        raise DataError(f"{source}: label {largest} is too large to be a class number; name the classes (classes)")
    return tuple(str(number) for number in range(largest + 1))  # keeps each number as its own label index


def label_index(label: str, indices: Mapping[str, int], *, location: str) -> int:
    """Return the class index of a label, given by name or by number."""
    if label in indices:
        return indices[label]
    if is_number(label) and int(label) < len(indices):  # a class number, given with a list of class names
        return int(label)
    raise DataError(f"{location}: label {label!r} is none of the {len(indices)} given classes")


def is_number(label: str) -> bool:
    """Return True for a label of decimal digits."""
    return label.isascii() and label.isdigit()
