"""The commands: their names, the functions that run them, and the help that lists them.

Contract: names in, functions and text out. A command's module is only imported when the command is used, so that
`clipvid --help` loads neither the modules nor the parser.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from clipvid.cli.parsing.layout import table, wrapped
from clipvid.errors import UsageError

if TYPE_CHECKING:
    from clipvid.cli.parsing.command import Command

COMMANDS = {
    "demo": "info:demo",
    "info": "info:info",
    "list": "info:list_names",
    "train": "train:train",
    "eval": "evaluate:evaluate",
    "compare": "evaluate:compare",
    "summarize": "evaluate:summarize",
    "predict": "inference:predict",
    "embed": "inference:embed",
    "index build": "index:build_index",
    "index add": "index:add_to_index",
    "index refresh": "index:refresh_index",
    "index remove": "index:remove_from_index",
    "index verify": "index:verify_index",
    "search": "search:search",
    "data check": "check:check_data",
    "cache ls": "cache:list_caches",
    "cache verify": "cache:verify",
    "cache prune": "cache:prune",
}
"""Module of clipvid.cli and function of each command."""

GROUPS = {
    "index": "Build, extend, refresh and verify search indexes.",
    "data": "Check data sets.",
    "cache": "List, verify and prune tap caches.",
}
"""Help of the commands with two words, by the first word."""

DESCRIPTION = "Turn any open_clip checkpoint into a video model."
OPTIONS = (
    ("--help", "Show this text; `clipvid COMMAND --help` lists the options of a command."),
    ("--version", "Show the version."),
    ("--install-completion", "Install completion of commands and options for your shell."),
)


@cache
def load(name: str) -> Command:
    """Return the command of this name."""
    from clipvid.cli.parsing.command import Command

    module, _, function = COMMANDS[name].partition(":")
    return Command(name, getattr(import_module(f"clipvid.cli.{module}"), function))


@cache
def _summaries(module: str) -> dict[str, str]:
    """Return the first lines of the docstrings of a module's functions, without importing the module."""
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in functions}


def _rows(group: str = "") -> list[tuple[str, str]]:
    """Return the commands, or those of a group, with the first line of their help."""
    targets = {name: target.partition(":") for name, target in COMMANDS.items() if name.startswith(group)}
    return [(name, _summaries(module)[function]) for name, (module, _, function) in targets.items()]


def overview() -> str:
    """Return the help of the program: every command with its first line."""
    parts = ["usage: clipvid COMMAND [options]", wrapped(DESCRIPTION)]
    return "\n\n".join([*parts, f"Commands:\n{table(_rows())}", f"Options:\n{table(OPTIONS)}"]) + "\n"


def group_page(group: str) -> str:
    """Return the help of the commands with a common first word."""
    return f"usage: clipvid {group} COMMAND [options]\n\n{GROUPS[group]}\n\nCommands:\n{table(_rows(f'{group} '))}\n"


def command_name(words: Sequence[str]) -> str:
    """Return the name of the command that the words begin with; raise UsageError for an unknown one."""
    first, second = (*words, "", "")[:2]
    if first in COMMANDS:
        return first
    if f"{first} {second}" in COMMANDS:
        return f"{first} {second}"
    from clipvid.cli.parsing.names import suggestion

    if first in GROUPS:
        actions = tuple(name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{first} "))
        is_word = second and not second.startswith("-")
        problem = f"unknown command {f'{first} {second}'!r}" if is_word else f"{first} needs a command"
        raise UsageError(
            f"{problem}; write {' or '.join(f'clipvid {first} {action}' for action in actions)}"
            f"{suggestion(second, actions, prefix=f'{first} ')}"
        )
    verbs = tuple(dict.fromkeys(name.partition(" ")[0] for name in COMMANDS))
    hint = suggestion(first, verbs) or f"; choose one of {', '.join(verbs)}"
    kind = "option" if first.startswith("-") else "command"
    raise UsageError(f"unknown {kind} {first!r}{hint}")
