"""The command line: parse, call, print. Options and their help come from functions (clipvid.cli) and dataclasses.

Contract: exit code 0 when all was done, 1 with one clear line on standard error for anything that clipvid refuses, 2
for a wrong command line. Decides nothing itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from clipvid.cli import cache as keeping
from clipvid.cli import evaluate as measuring
from clipvid.cli import search as finding
from clipvid.cli import train
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.runtime.files import describe_os_error, lock_folder, require_writable
from clipvid.runtime.malloc import keep_freed_memory
from clipvid.runtime.version import __version__


def demo(
    out: str = "clipvid-demo", train_clips: int = 4000, test_clips: int = 400, epochs: int = 4, seed: int = 0
) -> None:
    """Train, evaluate and search on videos that the demo renders itself; needs no download and no GPU.

    Args:
        out: folder for videos, models, plots, index and results.json; a second run reuses the videos.
        train_clips: clips to train on, an even number: each comes with itself played backwards.
        test_clips: clips to score on, an even number from 10 to 5120.
        epochs: passes over the training clips for retrieval; recognition goes on for half as many. The order-blind
            baseline gets five times as many for each.
        seed: of videos, weights and order.
    """
    from clipvid.demo.tour import DemoConfig, run

    require_writable(Path(out) / "results.json")
    config = DemoConfig(
        train_clips=train_clips, test_clips=test_clips, epochs=epochs, baseline_epochs=5 * epochs, seed=seed
    )
    with lock_folder(out):
        run(out, config)


COMMANDS = {
    "demo": demo,
    "info": train.info,
    "train": train.fine_tune,
    "eval": measuring.evaluate,
    "compare": measuring.compare,
    "summarize": measuring.summarize,
    "data check": measuring.check_data,
    "cache ls": keeping.list_caches,
    "cache verify": keeping.verify,
    "cache prune": keeping.prune,
    "embed": finding.embed,
    "index": finding.index,
    "search": finding.search,
}

GROUPS = {"cache": "Look after tap caches.", "data": "Look after data sets."}
"""Commands of two words, by their first."""

GO_ON = {
    "demo": "; run it again, and the videos that are finished are reused",
    "train": "; run it again with --resume true to go on from the last checkpoint",
    "data check": "; run it again, and the files that were looked at are not decoded again",
    "index": "; run it again with --add true to go on with what is embedded",
}
"""Advice after an interruption, for commands that can continue."""


PAIR = "two numbers in brackets such as [0.5, 1.0]"
"""Words for a pair of floats in an error message."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from clipvid.errors import ClipvidError
    from clipvid.runtime.concurrency import loader_death

    words = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(words)
    parsed = parser.parse_args(words)
    name = parsed.command
    if name is None:
        parser.print_help()
        return 2
    set_in: list[tuple[Any, list[str]]] = []
    try:
        given: Any = parsed[name]
        set_in = _options_of((given if name not in GROUPS else given[given.action]).config or [])
        given = parser.instantiate(parsed)[name]
        if name in GROUPS:
            name, given = f"{name} {given.action}", given[given.action]
        if argv is None and name == "train":  # a process of its own, which ends with the command
            keep_freed_memory()
        COMMANDS[name](**_arguments(name, vars(given)))
    except (ClipvidError, ValueError, FloatingPointError, OSError) as error:
        told = describe_os_error(error) if isinstance(error, OSError) else str(error)
        print(f"clipvid {name}: {told}{_set_in(set_in, told, words)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if (death := loader_death(error)) is None:
            raise
        print(f"clipvid {name}: {death}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nclipvid {name}: interrupted{GO_ON.get(name, '')}", file=sys.stderr)
        return 130
    return 0


@cache
def _parser_class() -> Any:
    """jsonargparse's parser, which says what is wrong in a line and not below all the options, of which train has 60.

    Made in a function, so that nothing is loaded before a command line is read.
    """
    import yaml
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # what stands below a dataclass's field is its help

    class Parser(ArgumentParser):
        source = ""  # what is read now, if not the command line, as an error begins

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, allow_abbrev=False, **kwargs)  # an option's beginning may be another's name later

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            prog = (getattr(ex, "subcommand_parser", None) or self).prog.replace(" [options]", "")
            if lacking := re.search(r"are required: .*?((?:\w+\.)+)\w+$", message):  # of command.argument
                prog = " ".join([prog, *lacking[1].split(".")[:-1]])
            if unknown := re.match(r"unrecognized arguments: (--[\w.-]+)", message):
                message += _near(unknown[1], [name for action in self._actions for name in action.option_strings])
            print(f"{prog}: {self.source}{_plainly(message)}\nusage: {prog} --help lists the options", file=sys.stderr)
            raise SystemExit(2) from ex

        def parse_path(self, path: str, *args: Any, **kwargs: Any) -> Any:
            """Options from a file, which is named where it is no YAML, or has another option than the command."""
            try:
                told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                line = getattr(error, "problem_mark", None)
                self.error(f"--config {path} is no YAML{f' (line {line.line + 1})' if line else ''}", error)
            if not isinstance(told, dict):
                self.error(f"--config {path} holds no options; write one a line, such as device: cpu")
            if unknown := _unknown(told, {action.dest for action in self._actions}):
                self.error(f"--config {path} has {unknown[0]!r}, which is no option of this command")
            self.source = f"--config {path}: "
            try:
                return super().parse_path(path, *args, **kwargs)
            finally:
                self.source = ""

    return Parser


def _names(told: dict[Any, Any]) -> list[str]:
    """Options of a file; those of a group (reading: frames: 8) are by its name and their own."""
    return [
        f"{name}.{part}" if part else str(name)
        for name, value in told.items()
        for part in (value if isinstance(value, dict) else [""])
    ]


def _options_of(files: Sequence[Any]) -> list[tuple[Any, list[str]]]:
    """Files of options, and what each sets: read before the command runs, which may outlast them."""
    import yaml

    return [(path, _names(yaml.safe_load(Path(path).read_text(encoding="utf-8")))) for path in files]


def _set_in(files: Sequence[tuple[Any, list[str]]], error: str, words: Sequence[str]) -> str:
    """Return the file of the option that an error is about, as the end of its sentence; "" where none has."""
    for path, names in reversed(files):
        for name in names:
            own = re.escape(name.rpartition(".")[2])
            about = re.search(rf"^(--|unknown )?([a-z]+\.)?{own}\b|\b{own}=", error)
            if about and not any(word.partition("=")[0] == f"--{name}" for word in words):
                return f" ({name} is set in {path})"
    return ""


def _unknown(told: dict[Any, Any], known: set[str]) -> list[str]:
    """Options of a file that are not known."""
    names = _names(told)
    groups = {name.partition(".")[0] for name in known if "." in name}
    whole = known - groups  # such as a JSON object, whose parts are its own
    return [name for name in names if name not in known and name.partition(".")[0] not in whole]


def _near(option: str, known: Sequence[str]) -> str:
    """Return the options nearest to an unknown one, as the end of a sentence; "" where none is near."""
    own, names = option.removeprefix("--"), [name.removeprefix("--") for name in known]
    if "data_config" in names:  # whose parts eval and embed take as one object
        names = list(dict.fromkeys([*names, *(f"data_config.{field.name}" for field in fields(DataConfig))]))
    near = [name for name in names if name.startswith(own) or name.endswith(f".{own}")]
    near = near or get_close_matches(own, names, n=2)
    return f"; did you mean {' or '.join(f'--{name}' for name in near[:3])}" if near else ""


def _plainly(message: str) -> str:
    """Return the parser's message in words of the command line, on one line."""
    message = " ".join(message.split())
    message = re.sub(r"argument (--[\w.]+): expected one argument", r"\1 needs a value; a switch takes true", message)
    message = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", re.sub(r"<class '(\w+)'>", r"\1", message))
    message = re.sub(r"dict\[.*?\]", "a JSON object", message).replace("tuple[float, float]", PAIR)
    if lacking := re.search(r"arguments are required: (.*)", message):
        return f"it needs {', '.join(name.rpartition('.')[2].upper() for name in lacking[1].split(', '))}"
    subtypes = r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:.*Given value: (.*)"
    if either := re.search(rf'Parser key "([\w.]+)": {subtypes}', message):
        kinds = [kind for kind in re.split(r", (?![^[]*\])", either[2]) if kind != "NoneType"]
        return f"--{either[1]} takes {' or '.join(kinds)}, got {either[3]}"
    message = message.replace("Expected a tuple.", "Expected a list in brackets.")
    message = re.sub(r'expected "[\w.]+" to be (one of .*), but it was not provided\.', r"give \1", message)
    message = re.sub(r'Parser key "([\w.]+)": Expected (?:an? )?(.*?)\. Got value: ', r"--\1 takes \2, got ", message)
    return re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", message)


def _parser(words: Sequence[str]) -> Any:
    """Return the parser of a command line; of a command that it does not name, only the line of help is made."""
    parser = _parser_class()(
        prog="clipvid", description="Turn any open_clip checkpoint into a video model.", version=__version__
    )
    group = parser.add_subcommands(dest="command", required=False)
    for name in dict.fromkeys(name.partition(" ")[0] for name in COMMANDS):
        is_asked, is_group = name in words, name in GROUPS
        sub = _command(name) if is_asked and not is_group else _parser_class()(description=GROUPS.get(name))
        group.add_subcommand(name, sub, help=GROUPS.get(name) or _first_line(name))
        if is_asked and is_group:
            inner = sub.add_subcommands(dest="action", required=True)
            for full in (full for full in COMMANDS if full.startswith(f"{name} ")):
                inner.add_subcommand(full.partition(" ")[2], _command(full), help=_first_line(full))
    return parser


def _command(name: str) -> Any:
    """Return the parser of one command."""
    parser = _parser_class()(description=_first_line(name))
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    if name == "summarize":  # a positional list, which is not derived from a signature
        parser.add_argument("results", nargs="+", help="JSON files that `clipvid eval --out` wrote, of the same data")
    else:
        parser.add_function_arguments(COMMANDS[name], as_positional=True, skip={"config"})
    if name == "train":
        parser.add_class_arguments(TrainConfig)
    positional = [action for action in parser._actions if not action.option_strings]
    given = [action.dest.upper() + (" ..." if action.nargs == "+" else "") for action in positional]
    parser.usage = " ".join(["clipvid", name, *given, "[options]"])  # argparse's own names them all: 60 lines for train
    return parser


def _first_line(name: str) -> str:
    return (COMMANDS[name].__doc__ or "").split("\n")[0]


def _arguments(command: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options as the command's function takes them: training's own go into one TrainConfig."""
    given = {name: value for name, value in given.items() if name != "config"}
    if command == "train":
        own: dict[str, Any] = {field.name: given.pop(field.name) for field in fields(TrainConfig)}
        given["config"] = TrainConfig(**own)
    return given
