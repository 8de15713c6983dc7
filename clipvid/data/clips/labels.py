"""Class names of a data set from the labels in its annotations, and the index of each label.

Contract: labels as text in; names in label order and indices out, or DataError with the location that the caller gives.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipvid.errors import DataError

_MAX_CLASSES = 100_000  # a larger integer in the label column is an id, not a class


def class_names(labels: Iterable[str | None], given: Sequence[str] | None, *, source: str) -> tuple[str, ...]:
    """Return class names in label order: those given, the sorted labels, or every number up to the largest label.

    None is no label and adds no class.
    """
    if given is not None:
        return tuple(given)
    distinct = {label for label in labels if label is not None}
    if not all(is_number(label) for label in distinct):
        return tuple(sorted(distinct))
    largest = max((int(label) for label in distinct), default=-1)
    if largest >= _MAX_CLASSES:
        raise DataError(f"{source}: label {largest} is too large to be a class number; name the classes (classes)")
    return tuple(str(number) for number in range(largest + 1))  # keeps each number as its own label index


def label_index(label: str | None, indices: Mapping[str, int], *, location: str) -> int | None:
    """Return the class index of a label, given by name or by number; None for a clip without a label."""
    if label is None:
        return None
    if label in indices:
        return indices[label]
    if is_number(label) and int(label) < len(indices):  # a class number, given with a list of class names
        return int(label)
    raise DataError(
        f"{location}: label {label!r} is none of the {len(indices)} given classes; correct it, or add it to classes"
    )


def is_missing(value: Any) -> bool:
    """Return True for None and NaN, which stand for a missing value."""
    return value is None or (isinstance(value, numbers.Real) and math.isnan(value))


def as_text(value: Any) -> str:
    """Return a value as a table has it; whole floats lose their ".0", which a missing value beside them adds."""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and float(value).is_integer():
        return str(int(float(value)))
    return str(value)


def is_number(label: str) -> bool:
    """Return True for a label of decimal digits."""
    return label.isascii() and label.isdigit()
