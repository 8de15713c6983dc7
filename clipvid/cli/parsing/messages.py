"""Error messages in the words of a command line: options as they are typed, values, and what is allowed.

Contract: an error in, one line of text out. Messages of cyclopts' errors are composed from their attributes. Knows
nothing of commands.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

from clipvid.cli.parsing import names

NAME = re.compile(r"(?<![\w./'\"-])[a-z]\w*(?:\.[a-z]\w*)*(?![\w/'\"])")
"""A name in a message that may be that of an option; not a part of a path, a quotation or an option."""
SCALARS: dict[type, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


COLUMNS = re.compile(r"\bcolumns=(\{[^{}]*\})")
"""A suggested value of `columns` in a message of the library."""


def as_options(message: str, options: Mapping[str, str], *, at_start: bool = False) -> str:
    """Return a message with the names of settings replaced by the options as they are typed.

    A name of one word, which may be an ordinary word too, is only replaced before "must" or "=", and with `at_start` as
    the first word of the message.
    """

    def replace(match: re.Match[str]) -> str:
        name, after = match[0], message[match.end() :]
        certain = "_" in name or "." in name or after.startswith((" must ", "="))
        return options.get(name, name) if certain or (at_start and match.start() == 0) else name

    if "columns" in options:
        message = COLUMNS.sub(_typed_columns, message)
    return NAME.sub(replace, message)


def _typed_columns(match: re.Match[str]) -> str:
    """Return a dictionary of column names as the words of --columns."""
    pairs = [f"{column}={name}" for column, name in ast.literal_eval(match[1]).items()]
    return f"--columns {shlex.join(pairs)}"


def leaves(arguments: ArgumentCollection) -> list[Argument]:
    """Return the arguments that take values, without those that only group others."""
    return [argument for argument in arguments if not argument.children]


def names_of(arguments: ArgumentCollection) -> dict[str, str]:
    """Return the options of a command by the name of their setting: data_config.frames gives --data-config.frames."""
    options = [argument.name for argument in leaves(arguments) if argument.name.startswith("--")]
    return {name.removeprefix("--").replace("-", "_"): name for name in options}


def is_switch(argument: Argument) -> bool:
    """Return True for an option without a value."""
    return argument.resolved_hint is bool


def choices(argument: Argument) -> tuple[str, ...]:
    """Return the values that an option chooses from; empty for an option that takes any value."""
    hint = argument.resolved_hint
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    return names.allowed(re.split(r"\.|--", argument.name)[-1].replace("-", "_"))


def constraint(argument: Argument) -> str:
    """Return the values that an option takes, such as "an integer"."""
    hint = argument.resolved_hint
    if accepted := choices(argument):
        return f"one of {', '.join(accepted)}"
    if get_origin(hint) is tuple:
        kind = SCALARS.get(get_args(hint)[0], "a value").partition(" ")[2]
        return f"one or more {kind}s" if get_args(hint)[-1] is Ellipsis else f"two {kind}s such as 0.5 1.0"
    return SCALARS.get(hint, "a value")


def usage_message(error: CycloptsError, arguments: ArgumentCollection, usage: str) -> str:
    """Return the message for a command line that cannot be parsed."""
    if isinstance(error, UnknownOptionError):
        return unknown_option(str(error.token.keyword or error.token.value), arguments)
    if isinstance(error, ValidationError) and error.argument is not None:
        return f"{error.argument.name} {error.exception_message}"
    if isinstance(error, CoercionError) and error.argument is not None:
        return _refused_value(error)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return _missing_value(error, usage)
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice; give it once"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"unexpected argument {error.unused_tokens[0]!r}; write {usage}, and a text with spaces in quotes"
    return " ".join(str(error).split())


def unknown_option(word: str, arguments: ArgumentCollection) -> str:
    """Return the message for an option that a command does not have, with the most similar ones."""
    typed = word.partition("=")[0].lstrip("-").replace("_", "-")
    options = tuple(sorted({option.lstrip("-") for argument in leaves(arguments) for option in argument.names}))
    nested = [option for option in options if option.endswith(f".{typed}")]
    hint = f"; did you mean {' or '.join(f'--{option}' for option in nested)}" if nested else ""
    hint = hint or names.suggestion(typed, options, prefix="--") or "; --help lists the options"
    return f"unknown option {word.partition('=')[0]}{hint}"


def _refused_value(error: CoercionError) -> str:
    """Return the message for a value of the wrong type."""
    argument: Any = error.argument
    given = [error.token] if error.token is not None else argument.tokens
    values = " ".join(token.value for token in given)
    if is_switch(argument):
        return f"{argument.name} takes no value, got {values!r}; write {' or '.join(argument.names)}"
    if error.msg is not None and str(error.msg).startswith("must "):
        return f"{argument.name} {error.msg}"
    hint = names.suggestion(values, choices(argument))
    return f"{argument.name} must be {constraint(argument)}, got {values!r}{hint}"


def _missing_value(error: MissingArgumentError, usage: str) -> str:
    """Return the message for an option without its value, or a command without its arguments."""
    argument: Any = error.argument
    if argument.name.startswith("--"):
        given = " ".join(str(token) for token in error.tokens_so_far)
        return f"{argument.name} needs {constraint(argument)}, got {repr(given) if given else 'nothing'}"
    return f"{argument.parameter.metavar or argument.name} is missing; write {usage}"


def misused_switch(words: Sequence[str], arguments: ArgumentCollection) -> str | None:
    """Return the message for a switch with a value, such as `--resume true`; None if there is none."""
    switches = {option: argument for argument in leaves(arguments) if is_switch(argument) for option in argument.names}
    for word, value in zip(words, [*words[1:], ""], strict=False):
        if word == "--":
            return None
        option, sign, attached = word.replace("_", "-").partition("=")
        value = attached if sign else value if value.lower() in ("true", "false") else ""
        if option in switches and value:
            return f"{option} takes no value, got {value!r}; write {' or '.join(switches[option].names)}"
    return None


def without_values(words: Sequence[str], arguments: ArgumentCollection) -> str | None:
    """Return the message for an option of one or more values that is given none; None if there is no such option."""
    options = {name: argument for argument in leaves(arguments) if _takes_many(argument) for name in argument.names}
    for word, value in zip(words, [*words[1:], "--"], strict=False):
        if word == "--":
            return None
        option = word.replace("_", "-")
        if option in options and value.startswith("--"):
            return f"{option} needs {constraint(options[option])}, got nothing; leave it out, or give a value"
    return None


def _takes_many(argument: Argument) -> bool:
    return argument.name.startswith("--") and get_args(argument.resolved_hint)[-1:] == (Ellipsis,)


def fraction_for_integer(arguments: ArgumentCollection) -> str | None:
    """Return the message for an integer option with a value that cyclopts would round; None if there is none."""
    for argument in (argument for argument in leaves(arguments) if argument.resolved_hint is int):
        for token in argument.tokens:
            if "." in token.value and not float(token.value).is_integer():
                return f"{argument.name} must be an integer, got {token.value!r}"
    return None


def source_of(message: str, arguments: ArgumentCollection) -> str:
    """Return the option file and line that set an option in the message, as a suffix; "" if none did."""
    mentioned = set(re.findall(r"--[\w.-]*\w", message))
    for argument in leaves(arguments):
        if argument.name in mentioned and argument.tokens and argument.tokens[0].source not in ("", "cli"):
            return f" ({argument.tokens[0].source})"
    return ""
