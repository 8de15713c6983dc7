"""Checks of settings and arguments: compare fields of an options object, or arguments, with what is allowed.

Contract: a value in; nothing, or the value, out; ValueError with the name, the value, what is allowed and what to do.
Public functions check here what would otherwise fail deep inside. Imports nothing of clipvid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, cast

_Class = TypeVar("_Class", bound=type)

FREE = {"decides_result": False}
"""Metadata of a setting that affects neither training steps nor scores: a run may be resumed with any value of it."""


def choices(settings: Any, allowed: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for a field whose value is not one of its allowed names."""
    for field, names in allowed.items():
        if (value := getattr(settings, field)) not in tuple(names):
            raise ValueError(f"unknown {field} {value!r}; choose one of {', '.join(names)}")


MOST = 1_000_000
"""Upper bound of integers that set a size; far above any use, it refuses a mistyped or damaged number at once."""


def least(settings: Any, advice: str = "", /, *, most: int = MOST, **bounds: int) -> None:
    """Raise ValueError for a field that is no integer from its bound to `most`; store others as plain int."""
    for field, bound in bounds.items():
        value = getattr(settings, field)
        hint = "leave out quotation marks" if isinstance(value, str) else f"give {bound} or more"
        number = integer(field, value, bound, advice=advice or hint)
        if number > most:
            raise ValueError(f"{field} must be an integer <= {most}, got {_short(value)}; lower it")
        _store(settings, field, number)


def any_integer(settings: Any, field: str, *, advice: str) -> None:
    """Raise ValueError for a field that is not an integer, of any size; store others as plain int."""
    value = getattr(settings, field)
    if not _is_integer(value):
        raise ValueError(f"{field} must be an integer, got {_short(value)}; {advice}")
    _store(settings, field, int(value))


def probability(settings: Any, *fields: str, certain: bool = True) -> None:
    """Raise ValueError for a field outside [0, 1], or outside [0, 1) without `certain`."""
    for field in fields:
        value = getattr(settings, field)
        if not _is_number(value) or not 0 <= value <= 1 or (value == 1 and not certain):
            raise ValueError(
                f"{field} must be a probability in [0, 1{']' if certain else ')'}, got {_short(value)}; give a number, "
                "such as 0.5"
            )
        _store(settings, field, value if isinstance(value, int) else float(value))


def shares(settings: Any, field: str) -> None:
    """Raise ValueError for a field that is not a pair (smallest, largest) of fractions in (0, 1]."""
    value = getattr(settings, field)
    parts: list[Any] = list(cast(Sequence[Any], value)) if isinstance(value, Sequence) else []
    is_pair = len(parts) == 2 and all(map(_is_number, parts))
    if not is_pair or not 0 < parts[0] <= parts[1] <= 1:
        raise ValueError(
            f"{field} must be a pair of fractions (smallest, largest) in (0, 1], such as (0.5, 1.0), got {value!r}; "
            "give two numbers, the smaller first"
        )


def of_type(name: str, value: object, types: type | tuple[type, ...], *, must: str, advice: str) -> None:
    """Raise ValueError for an argument of another type; `must` says what it has to be, `advice` what to do."""
    if not isinstance(value, types):
        raise ValueError(f"{name} must be {must}, got {_short(value)}; {advice}")


def text(name: str, value: object, *, advice: str) -> str:
    """Return an argument that must be a text."""
    of_type(name, value, str, must="a text", advice=advice)
    return cast(str, value)


def texts(name: str, values: Any, *, must: str = "a list of texts", advice: str) -> list[str]:
    """Return an argument that must be a list of texts, and no single text; any iterable is read once."""
    if hasattr(values, "columns") and hasattr(values, "iloc"):  # a table iterates over the names of its columns
        raise ValueError(
            f'{name} must be {must}, got a DataFrame; give one column as a list, such as df["caption"].tolist()'
        )
    is_list = _is_list(values)
    items: list[Any] = list(values) if is_list else [values]
    strings = [item for item in items if isinstance(item, str)]
    if not is_list or len(strings) < len(items):
        wrong = next((item for item in items if not isinstance(item, str)), values)
        raise ValueError(f"{name} must be {must}, got {_short(wrong)}; {advice}")
    return strings


def path(name: str, value: object, *, must: str = "a path") -> Path:
    """Return an argument that must be a path, as a Path; an empty text is none, though Path("") is a folder."""
    of_type(name, value, (str, os.PathLike), must=must, advice="give a text or a pathlib.Path")
    if value == "":
        raise ValueError(f"{name} must be {must}, got ''; write '.' for the working directory")
    return Path(cast(str, value))


def integer(name: str, value: object, bound: int, *, advice: str) -> int:
    """Return an argument that must be an integer of at least `bound`."""
    if not _is_integer(value) or int(cast(int, value)) < bound:
        raise ValueError(f"{name} must be an integer >= {bound}, got {_short(value)}; {advice}")
    return int(cast(int, value))


def seed(value: object) -> int:
    """Return a seed of random choices: an integer of at least 0."""
    return integer("seed", value, 0, advice="any will do, such as 0")


def number(name: str, value: object, *, must: str = "a number", advice: str = "leave out quotation marks") -> None:
    """Raise ValueError for an argument that is no number."""
    if not _is_number(value):
        raise ValueError(f"{name} must be {must}, got {_short(value)}; {advice}")


def share(name: str, value: object, *, advice: str) -> None:
    """Raise ValueError for an argument that is no number between 0 and 1, both excluded."""
    if not _is_number(value) or not 0 < cast(float, value) < 1:
        raise ValueError(f"{name} must be > 0 and < 1, got {_short(value)}; {advice}")


def truth(name: str, value: object) -> None:
    """Raise ValueError for an argument that is neither True nor False."""
    of_type(name, value, bool, must="True or False", advice="leave out quotation marks")


def known_fields(aliases: Mapping[str, str]) -> Callable[[_Class], _Class]:
    """Return a decorator of a dataclass that names the nearest field in the TypeError for an unknown one.

    `aliases` are names that other libraries give to fields.
    """

    def decorate(settings: _Class) -> _Class:
        original = settings.__init__
        names = [field.name for field in fields(cast(Any, settings))]

        @wraps(original)
        def checked(self: Any, *args: Any, **values: Any) -> None:
            for name in values:
                if name not in names:
                    near = [aliases[name]] if name in aliases else get_close_matches(name, names, n=1)
                    hint = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(names)}"
                    raise TypeError(f"{settings.__name__} has no field {name!r}; {hint}")
            original(self, *args, **values)

        settings.__init__ = checked
        return settings

    return decorate


def _is_integer(value: object) -> bool:
    """Return True for an integer of Python or NumPy, False for a truth value."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_number(value: object) -> bool:
    """Return True for a real number of Python or NumPy, False for a truth value."""
    return not isinstance(value, bool) and isinstance(value, Real)


def _store(settings: Any, field: str, value: int | float) -> None:
    """Set a field, of a frozen dataclass too: settings are saved as JSON, which has no numbers of NumPy."""
    if type(getattr(settings, field)) is not type(value):
        object.__setattr__(settings, field, value)


def _is_list(values: object) -> bool:
    return isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)


def _short(value: object) -> str:
    """Return a value as it is written in code, or its type if that is long."""
    written = repr(value)
    return written if len(written) <= 80 and "\n" not in written else f"an object of type {type(value).__name__}"
