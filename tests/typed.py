"""Type checks during tests: jaxtyping checks functions whose annotations name array axes, and beartype all others.

jaxtyping's wrapper tracks the axes of every call and costs about 20 µs. A list of 25 000 videos makes a million calls
of functions without axes, and beartype checks these in a tenth of the time.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype.roar import BeartypeDecorHintException
from jaxtyping import _decorator

_check_axes = _decorator.jaxtyped


def install() -> None:
    """Make jaxtyping's import hook decorate with `checked` from now on."""
    jaxtyping.jaxtyped = _decorator.jaxtyped = checked  # the second name decorates members of classes


def checked(subject: Any = None, *, typechecker: Callable) -> Any:
    """Return the function, method or class with checks of arguments and results, like jaxtyping.jaxtyped."""
    if subject is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isfunction(subject) and not _may_name_axes(subject):
        with contextlib.suppress(BeartypeDecorHintException):  # jaxtyping skips such hints, e.g. a ParamSpec
            return typechecker(subject)
    return _check_axes(subject, typechecker=typechecker)


def _may_name_axes(function: Callable) -> bool:
    """Return True if an annotation names an array with its axes or cannot be resolved."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # the name is imported only for type checkers; jaxtyping handles it
        return True
    return any(_names_axes(hint) for hint in hints.values())


def _names_axes(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_names_axes, hint))
    is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_names_axes, get_args(hint)))
