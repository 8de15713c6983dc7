"""Types are checked while tests run: shapes by jaxtyping, where a function takes or gives arrays, all else by beartype.

jaxtyping's wrapper keeps a memory of axes for every call and costs some 20 µs; a list of 25 000 videos makes a million
calls of functions that know no axis, which beartype checks for a tenth of that.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial, wraps
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
    if inspect.isfunction(subject) and (hints := _hints(subject)) is not None:
        with contextlib.suppress(BeartypeDecorHintException):  # hints that jaxtyping leaves out, such as a ParamSpec's
            if not any(map(_names_axes, hints)):
                return typechecker(subject)
            if not inspect.isgeneratorfunction(subject):
                return _with_one_memory(typechecker(subject))
    return _with_axes(subject, typechecker=typechecker)


def _with_one_memory(function: Callable) -> Callable:
    """Give each call of a function that beartype checks a memory of axes, shared by its arguments and its result.

    jaxtyping's own wrapper binds the arguments first and checks them a second time with the result, for the sake of its
    message: with it the suite needs an eighth more time.
    """
    memory = _with_axes("context")

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with memory:
            return function(*args, **kwargs)

    return call


def _hints(function: Callable) -> list[Any] | None:
    """Return the function's annotations, or None where one cannot be looked up: jaxtyping leaves such a one out."""
    try:
        return list(get_type_hints(function, include_extras=True).values())
    except Exception:  # a name that only type checkers import
        return None


def _names_axes(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_names_axes, hint))
    is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_names_axes, get_args(hint)))
