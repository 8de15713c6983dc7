"""Checks of settings: compare fields of an options object with their allowed values. Imports nothing of clipvid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

FREE = {"decides_result": False}
"""Metadata of a setting that affects neither training steps nor scores: a run may be resumed with any value of it."""


def choices(settings: Any, allowed: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for a field whose value is not one of its allowed names."""
    for field, names in allowed.items():
        if (value := getattr(settings, field)) not in names:
            raise ValueError(f"unknown {field} {value!r}; choose one of {', '.join(names)}")


def least(settings: Any, **bounds: int) -> None:
    """Raise ValueError for a field that is not an integer or is below its bound."""
    for field, bound in bounds.items():
        value = getattr(settings, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise ValueError(f"{field} must be an integer >= {bound}, got {value!r}")


def probability(settings: Any, *fields: str, certain: bool = True) -> None:
    """Raise ValueError for a field outside [0, 1], or outside [0, 1) without `certain`."""
    for field in fields:
        value = getattr(settings, field)
        if not isinstance(value, int | float) or not 0 <= value <= 1 or (value == 1 and not certain):
            raise ValueError(f"{field} must be a probability in [0, 1{']' if certain else ')'}, got {value!r}")


def shares(settings: Any, field: str) -> None:
    """Raise ValueError for a field that is not a pair (smallest, largest) of fractions in (0, 1]."""
    value = getattr(settings, field)
    parts: list[Any] = list(cast(Sequence[Any], value)) if isinstance(value, Sequence) else []
    is_pair = len(parts) == 2 and all(isinstance(part, int | float) for part in parts)
    if not is_pair or not 0 < parts[0] <= parts[1] <= 1:
        raise ValueError(
            f"{field} must be a pair of fractions (smallest, largest) in (0, 1], such as (0.5, 1.0), got {value!r}"
        )
