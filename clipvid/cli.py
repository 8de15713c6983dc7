"""The command line: parse, call, print. Options and their help come from the functions of commands.py and dataclasses.

Contract: exit code 0 when all was done, 1 with one clear line on standard error for anything that clipvid refuses, 2
for a wrong command line. Decides nothing itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from clipvid import __version__, commands
from clipvid.config import TrainConfig

COMMANDS = {
    "demo": commands.demo,
    "info": commands.info,
    "train": commands.fine_tune,
    "eval": commands.evaluate,
    "compare": commands.compare,
    "embed": commands.embed,
    "index": commands.index,
    "search": commands.search,
}

GO_ON = {
    "demo": "; run it again, and the videos that are finished are reused",
    "train": "; run it again with --resume true to go on from the last checkpoint",
    "index": "; run it again with --add true to go on with what is embedded",
}
"""What to do after an interruption, where something is kept."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from clipvid.errors import ClipvidError

    parser = _parser()
    parsed = parser.parse_args(None if argv is None else list(argv))
    name = parsed.command
    if name is None:
        parser.print_help()
        return 2
    try:
        parsed = parser.instantiate(parsed)
        COMMANDS[name](**_arguments(name, vars(parsed[name])))
    except (ClipvidError, ValueError, FloatingPointError, OSError) as error:
        print(f"clipvid {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nclipvid {name}: interrupted{GO_ON.get(name, '')}", file=sys.stderr)
        return 130
    return 0


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="clipvid", description="Turn any open_clip checkpoint into a video model.", version=__version__
    )
    group = parser.add_subcommands(dest="command", required=False)
    for name, function in COMMANDS.items():
        text = (function.__doc__ or "").split("\n")[0]
        sub = ArgumentParser(description=text)
        sub.add_argument("--config", action="config", help="YAML file with any of the options below")
        sub.add_function_arguments(function, as_positional=True, skip={"config"})
        if name == "train":
            sub.add_class_arguments(TrainConfig)
        group.add_subcommand(name, sub, help=text)
    return parser


def _arguments(command: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options as the command's function takes them: training's own go into one TrainConfig."""
    given = {name: value for name, value in given.items() if name != "config"}
    if command == "train":
        own: dict[str, Any] = {field.name: given.pop(field.name) for field in fields(TrainConfig)}
        given["config"] = TrainConfig(**own)
    return given
