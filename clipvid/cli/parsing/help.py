"""The help page of a command as plain text, made without importing rich.

Contract: a command in, text out. The text comes from docstrings: of the function, its arguments and the fields of its
groups of options.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from cyclopts.argument import Argument

from clipvid.cli.parsing import messages
from clipvid.cli.parsing.command import Command, operand, positional
from clipvid.cli.parsing.layout import table, wrapped


def page(command: Command) -> str:
    """Return the help of a command: usage, description, examples, arguments, and options by section."""
    description, examples = _sections(inspect.getdoc(command.function) or "")
    arguments = command.documented_options()
    options = messages.names_of(arguments)
    parts = [f"usage: {command.usage}", *map(wrapped, description.split("\n\n"))]
    if examples:
        parts.append("Examples:\n" + textwrap.indent(examples, "  "))
    if operands := positional(arguments):
        parts.append(
            "Arguments:\n" + table([(operand(argument), _description(argument, options)) for argument in operands])
        )
    sections: dict[Any, list[tuple[str, str]]] = {}
    for argument in messages.leaves(arguments):
        if argument.name.startswith("--"):
            group: Any = argument.parameter.group[0]  # type: ignore[index]
            sections.setdefault(group, []).append((_typed(argument), _description(argument, options)))
    for group in sorted(sections, key=lambda group: group.sort_key if isinstance(group.sort_key, int) else 0):
        title = group.name if isinstance(group.sort_key, int) else "Options"
        parts.append(f"{title}:\n{table(sections[group])}")
    return "\n\n".join(parts) + "\n"


def _sections(docstring: str) -> tuple[str, str]:
    """Return the description of a docstring, and its examples."""
    before, _, rest = docstring.partition("\nExamples:\n")
    examples = textwrap.dedent(re.split(r"\n(?=\S)", rest)[0]).strip("\n")
    return re.split(r"\nArgs:\n", before)[0].strip(), examples


def _typed(argument: Argument) -> str:
    """Return an option as it is typed, with a name for its value."""
    if messages.is_switch(argument):
        return " / ".join(argument.names)
    hint = argument.resolved_hint
    word = argument.parameter.metavar or {int: "N", float: "X"}.get(hint) or re.split(r"\W", argument.name)[-1].upper()
    if get_origin(hint) is tuple and get_args(hint)[-1] is not Ellipsis:
        word = " ".join(["X"] * len(get_args(hint)))
    return f"{', '.join(reversed(argument.names))} {word}{'...' if get_args(hint)[-1:] == (Ellipsis,) else ''}"


def _description(argument: Argument, options: Mapping[str, str]) -> str:
    """Return the help of an argument, with its choices and its default."""
    text = messages.as_options(" ".join((argument.parameter.help or "").split()), options)
    text = text[:1].upper() + text[1:]
    choices = messages.choices(argument)
    notes = [f"one of {', '.join(map(str, choices))}"] if choices else []
    if default := _default(argument):
        notes.append(f"default: {default}")
    return f"{text}{' [' + '; '.join(notes) + ']' if notes else ''}"


def _default(argument: Argument) -> str:
    """Return the default of an argument as text; "" without one, and for a switch that is off."""
    if callable(show := argument.parameter.show_default):
        return show(None).replace("False", "")
    value = argument.field_info.default
    has_none = value is None or isinstance(value, bool | tuple) or value is inspect.Parameter.empty
    return "" if has_none else str(value)
