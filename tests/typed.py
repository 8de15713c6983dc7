"""Type checks during tests: jaxtyping checks functions whose annotations name array axes, and beartype all others.

jaxtyping's wrapper tracks the axes of every call and costs about 20 µs. A list of 25 000 videos makes a million calls
of functions without axes, and beartype checks these in a tenth of the time. Functions inside functions are not checked:
each call of the outer one would generate the checks of the inner one again, which took a tenth of the suite's time.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial, update_wrapper, wraps
from types import FunctionType, SimpleNamespace
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
    if "<locals>" in getattr(subject, "__qualname__", ""):
        return subject
    if inspect.isfunction(subject):
        subject, hints = _resolved(subject)
        with contextlib.suppress(BeartypeDecorHintException):  # hints that jaxtyping leaves out, such as a ParamSpec's
            if not any(map(_names_axes, hints)):
                return typechecker(subject)
            if not inspect.isgeneratorfunction(subject):
                return _with_shared_axes(typechecker(subject))
    return _check_axes(subject, typechecker=typechecker)


def _with_shared_axes(function: Callable) -> Callable:
    """Give each call of a function that beartype checks a memory of axes, shared by its arguments and its result.

    jaxtyping's own wrapper binds the arguments first and checks them a second time with the result, for the sake of its
    message: with it the suite needs an eighth more time.
    """
    memory = _check_axes("context")

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with memory:
            return function(*args, **kwargs)

    return call


def _resolved(function: Callable) -> tuple[Callable, list[Any]]:
    """Return the function and its annotations; a copy without those that cannot be resolved, if there are any."""
    # NameError: a name that only type checkers import. TypeError: a type with parameters that it lacks at run time.
    with contextlib.suppress(NameError, TypeError):
        return function, list(get_type_hints(function, include_extras=True).values())
    hints = {}
    for name, annotation in function.__annotations__.items():
        with contextlib.suppress(NameError, TypeError):
            holder = SimpleNamespace(__annotations__={name: annotation})
            hints |= get_type_hints(holder, function.__globals__, include_extras=True)
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    update_wrapper(copy, function).__annotations__ = hints
    return copy, list(hints.values())


def _names_axes(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_names_axes, hint))
    is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_names_axes, get_args(hint)))
