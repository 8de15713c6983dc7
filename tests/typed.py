"""Types are checked while tests run: shapes by jaxtyping, where a function takes or gives arrays, all else by beartype.

jaxtyping's wrapper keeps a memory of axes for every call and costs some 20 µs; a list of 25 000 videos makes a million
calls of functions that know no axis, which beartype checks for a tenth of that.
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

_with_axes = _decorator.jaxtyped


def install() -> None:
    """What jaxtyping's import hook decorates from now on is decorated by `checked`."""
    jaxtyping.jaxtyped = _decorator.jaxtyped = checked  # the second decorates what is inside of classes


def checked(subject: Any = None, *, typechecker: Callable) -> Any:
    """A function, method or class that checks its arguments and what it gives; jaxtyping.jaxtyped's own contract."""
    if subject is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isfunction(subject) and not _may_hold_axes(subject):
        with contextlib.suppress(BeartypeDecorHintException):  # hints that jaxtyping leaves out, such as a ParamSpec's
            return typechecker(subject)
    return _with_axes(subject, typechecker=typechecker)


def _may_hold_axes(function: Callable) -> bool:
    """An annotation names an array with its axes, or cannot be looked up."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # of a name that only type checkers import: what jaxtyping makes of it counts
        return True
    return any(_names_axes(hint) for hint in hints.values())


def _names_axes(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_names_axes, hint))
    is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_names_axes, get_args(hint)))
