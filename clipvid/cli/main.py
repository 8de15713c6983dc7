"""The command line: parse, call, print. Options and their help come from functions in clipvid.cli and dataclasses.

Contract: exit code 0 for success, 1 with one line on standard error for an error that clipvid raises, 2 for a wrong
command line. The commands are in the other modules of clipvid.cli.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from clipvid.cli import cache, evaluate, search, train
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
        train_clips: number of training clips, even, because each clip comes with its reversed copy.
        test_clips: number of test clips, even, from 10 to 5120.
        epochs: passes over the training clips for retrieval; recognition trains for half as many. The order-blind
            baseline trains five times as long on each task.
        seed: seed of videos, weights and order.
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
    "eval": evaluate.evaluate,
    "compare": evaluate.compare,
    "summarize": evaluate.summarize,
    "data check": evaluate.check_data,
    "cache ls": cache.list_caches,
    "cache verify": cache.verify,
    "cache prune": cache.prune,
    "embed": search.embed,
    "index": search.index,
    "search": search.search,
}

GROUPS = {"cache": "List, verify and prune tap caches.", "data": "Check data sets."}
"""Help texts of the commands with two words, by the first word."""

CONTINUE = {
    "demo": "; run it again to continue, finished videos are reused",
    "train": "; run it again with --resume true to continue from the last checkpoint",
    "data check": "; run it again to continue, checked files are not decoded again",
    "index": "; run it again with --add true to continue with the remaining videos",
}
"""Advice after an interruption, for commands that can continue."""


PAIR = "two numbers in brackets such as [0.5, 1.0]"
"""Name of a pair of floats in error messages."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    from clipvid.errors import ClipvidError
    from clipvid.runtime.concurrency import loader_death

    words = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(words)
    parsed = parser.parse_args(words)
    name = parsed.command
    if name is None:
        parser.print_help()
        return 2
    config_files: list[tuple[Any, list[str]]] = []
    try:
        options: Any = parsed[name]
        config_files = _options_in((options if name not in GROUPS else options[options.action]).config or [])
        options = parser.instantiate(parsed)[name]
        if name in GROUPS:
            name, options = f"{name} {options.action}", options[options.action]
        if argv is None and name == "train":  # not when called from Python, as the setting stays for the whole process
            keep_freed_memory()
        COMMANDS[name](**_arguments(name, vars(options)))
    except (ClipvidError, ValueError, FloatingPointError, OSError) as error:
        message = describe_os_error(error) if isinstance(error, OSError) else str(error)
        print(f"clipvid {name}: {message}{_source_of_option(config_files, message, words)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if (death := loader_death(error)) is None:
            raise
        print(f"clipvid {name}: {death}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nclipvid {name}: interrupted{CONTINUE.get(name, '')}", file=sys.stderr)
        return 130
    return 0


@functools.cache
def _parser_class() -> Any:
    """Return a subclass of jsonargparse's parser that prints an error as one line, without a list of all options.

    The class is made in a function, so that jsonargparse is only imported when a command line is parsed.
    """
    import yaml
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # docstrings of dataclass fields are help texts

    class Parser(ArgumentParser):
        source = ""  # prefix of error messages while a --config file is parsed

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, allow_abbrev=False, **kwargs)  # an abbreviation may become ambiguous

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            prog = (getattr(ex, "subcommand_parser", None) or self).prog.replace(" [options]", "")
            if missing := re.search(r"are required: .*?((?:\w+\.)+)\w+$", message):  # command.argument
                prog = " ".join([prog, *missing[1].split(".")[:-1]])
            if unknown := re.match(r"unrecognized arguments: (--[\w.-]+)", message):
                message += _suggestion(unknown[1], [name for action in self._actions for name in action.option_strings])
            print(
                f"{prog}: {self.source}{_in_plain_words(message)}\nusage: {prog} --help lists the options",
                file=sys.stderr,
            )
            raise SystemExit(2) from ex

        def parse_path(self, path: str, *args: Any, **kwargs: Any) -> Any:
            """Parse options from a YAML file; exit with a message that names the file for an error in it."""
            try:
                content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                line = getattr(error, "problem_mark", None)
                self.error(f"--config {path} is not valid YAML{f' (line {line.line + 1})' if line else ''}", error)
            if not isinstance(content, dict):
                self.error(f"--config {path} holds no options; write one per line, such as device: cpu")
            if unknown := _unknown_options(content, {action.dest for action in self._actions}):
                self.error(f"--config {path} has {unknown[0]!r}, which is no option of this command")
            self.source = f"--config {path}: "
            try:
                return super().parse_path(path, *args, **kwargs)
            finally:
                self.source = ""

    return Parser


def _option_names(content: dict[Any, Any]) -> list[str]:
    """Return the names of the options in a file; `data_config: {frames: 8}` gives data_config.frames."""
    return [
        f"{name}.{part}" if part else str(name)
        for name, value in content.items()
        for part in (value if isinstance(value, dict) else [""])
    ]


def _options_in(files: Sequence[Any]) -> list[tuple[Any, list[str]]]:
    """Return the option files with the names of their options; called before the command, as the files may change."""
    import yaml

    return [(path, _option_names(yaml.safe_load(Path(path).read_text(encoding="utf-8")))) for path in files]


def _source_of_option(files: Sequence[tuple[Any, list[str]]], error: str, words: Sequence[str]) -> str:
    """Return the option file that sets the option in an error message, as a suffix of the message; "" if none does."""
    for path, names in reversed(files):
        for name in names:
            pattern = re.escape(name.rpartition(".")[2])
            is_named = re.search(rf"^(--|unknown )?([a-z]+\.)?{pattern}\b|\b{pattern}=", error)
            if is_named and not any(word.partition("=")[0] == f"--{name}" for word in words):
                return f" ({name} is set in {path})"
    return ""


def _unknown_options(content: dict[Any, Any], options: set[str]) -> list[str]:
    """Return the options of a file that the command does not have."""
    names = _option_names(content)
    groups = {name.partition(".")[0] for name in options if "." in name}
    ungrouped = options - groups  # such as a JSON object, which may have any keys
    return [name for name in names if name not in options and name.partition(".")[0] not in ungrouped]


def _suggestion(option: str, options: Sequence[str]) -> str:
    """Return the options most similar to an unknown one, as a suffix of a message; "" if none is similar."""
    typed, names = option.removeprefix("--"), [name.removeprefix("--") for name in options]
    if "data_config" in names:  # eval and embed have it as one option, without its fields
        names = list(dict.fromkeys([*names, *(f"data_config.{field.name}" for field in fields(DataConfig))]))
    similar = [name for name in names if name.startswith(typed) or name.endswith(f".{typed}")]
    similar = similar or get_close_matches(typed, names, n=2)
    return f"; did you mean {' or '.join(f'--{name}' for name in similar[:3])}" if similar else ""


def _in_plain_words(message: str) -> str:
    """Return the parser's message on one line, with Python types and keys replaced by command-line terms."""
    message = " ".join(message.split())
    message = re.sub(r"argument (--[\w.]+): expected one argument", r"\1 needs a value; a switch takes true", message)
    message = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", re.sub(r"<class '(\w+)'>", r"\1", message))
    message = re.sub(r"dict\[.*?\]", "a JSON object", message).replace("tuple[float, float]", PAIR)
    if missing := re.search(r"arguments are required: (.*)", message):
        return f"it needs {', '.join(name.rpartition('.')[2].upper() for name in missing[1].split(', '))}"
    subtypes = r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:.*Given value: (.*)"
    if union := re.search(rf'Parser key "([\w.]+)": {subtypes}', message):
        kinds = [kind for kind in re.split(r", (?![^[]*\])", union[2]) if kind != "NoneType"]
        return f"--{union[1]} takes {' or '.join(kinds)}, got {union[3]}"
    message = message.replace("Expected a tuple.", "Expected a list in brackets.")
    message = re.sub(r'expected "[\w.]+" to be (one of .*), but it was not provided\.', r"give \1", message)
    message = re.sub(r'Parser key "([\w.]+)": Expected (?:an? )?(.*?)\. Got value: ', r"--\1 takes \2, got ", message)
    return re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", message)


def _parser(words: Sequence[str]) -> Any:
    """Return the parser for a command line; commands that it does not name get their help line but no options."""
    parser = _parser_class()(
        prog="clipvid", description="Turn any open_clip checkpoint into a video model.", version=__version__
    )
    group = parser.add_subcommands(dest="command", required=False)
    for name in dict.fromkeys(name.partition(" ")[0] for name in COMMANDS):
        is_named, is_group = name in words, name in GROUPS
        sub = _command(name) if is_named and not is_group else _parser_class()(description=GROUPS.get(name))
        group.add_subcommand(name, sub, help=GROUPS.get(name) or _first_line(name))
        if is_named and is_group:
            inner = sub.add_subcommands(dest="action", required=True)
            for full_name in (full_name for full_name in COMMANDS if full_name.startswith(f"{name} ")):
                inner.add_subcommand(full_name.partition(" ")[2], _command(full_name), help=_first_line(full_name))
    return parser


def _command(name: str) -> Any:
    """Return the parser of one command."""
    parser = _parser_class()(description=_first_line(name))
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    if name == "summarize":  # jsonargparse cannot derive a positional list from a signature
        parser.add_argument("results", nargs="+", help="JSON files that `clipvid eval --out` wrote, of the same data")
    else:
        parser.add_function_arguments(COMMANDS[name], as_positional=True, skip={"config"})
    if name == "train":
        parser.add_class_arguments(TrainConfig)
    positional = [action for action in parser._actions if not action.option_strings]
    operands = [action.dest.upper() + (" ..." if action.nargs == "+" else "") for action in positional]
    parser.usage = " ".join(["clipvid", name, *operands, "[options]"])  # argparse would list all options
    return parser


def _first_line(name: str) -> str:
    """Return the first line of a command's docstring, its short help."""
    return (COMMANDS[name].__doc__ or "").split("\n")[0]


def _arguments(command: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the command's function; options of training are collected in a TrainConfig."""
    options = {name: value for name, value in options.items() if name != "config"}
    if command == "train":
        settings: dict[str, Any] = {field.name: options.pop(field.name) for field in fields(TrainConfig)}
        options["config"] = TrainConfig(**settings)
    return options
