"""Checks of settings: fields of an options object against what is allowed. Imports nothing of clipvid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def choices(settings: Any, allowed: Mapping[str, Sequence[str]]) -> None:
    """ValueError for a field that is none of its names."""
    for field, names in allowed.items():
        if (value := getattr(settings, field)) not in names:
            raise ValueError(f"unknown {field} {value!r}; choose one of {', '.join(names)}")


def least(settings: Any, **bounds: int) -> None:
    """ValueError for a field that is no whole number, or is below its bound."""
    for field, bound in bounds.items():
        value = getattr(settings, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise ValueError(f"{field} is a whole number from {bound} on, got {value!r}")


def probability(settings: Any, *fields: str, certain: bool = True) -> None:
    """ValueError for a field outside [0, 1]; without `certain` 1 is outside too."""
    for field in fields:
        value = getattr(settings, field)
        if not isinstance(value, int | float) or not 0 <= value <= 1 or (value == 1 and not certain):
            raise ValueError(f"{field} is a probability in [0, 1{']' if certain else ')'}, got {value!r}")


def shares(settings: Any, field: str) -> None:
    """ValueError for a field that is no smallest and largest share of something."""
    value = getattr(settings, field)
    pair = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(part, int | float) for part in value)
    if not pair or not 0 < value[0] <= value[1] <= 1:
        raise ValueError(f"{field} is the smallest and the largest share, in (0, 1], such as (0.5, 1.0), got {value!r}")
