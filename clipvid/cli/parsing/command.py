"""A command: a function, its options on the command line and in option files, and the call that words describe.

Contract: words in, a `Call` or a UsageError out. Nothing is run here. cyclopts parses the words; option files and
messages are clipvid's.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from inspect import BoundArguments
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

from cyclopts import App, Parameter
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.exceptions import CycloptsError
from cyclopts.token import Token

from clipvid.cli.parsing import messages
from clipvid.cli.parsing.option_file import Entry, read_options
from clipvid.cli.parsing.options import PAIRS, RUN
from clipvid.errors import UsageError


@dataclass(frozen=True)
class CommonOptions:
    """Options of every command."""

    config: Annotated[tuple[str, ...], Parameter(metavar="FILE", consume_multiple=False)] = ()
    """YAML file with any of these options; a later file replaces the options of an earlier one, and the command line
    those of files."""
    debug: Annotated[bool, Parameter(negative=())] = False
    """Show the traceback of an error; CLIPVID_DEBUG=1 does so too."""


class Call(NamedTuple):
    """A command with its arguments, ready to run."""

    function: Callable[..., None]
    bound: BoundArguments
    arguments: ArgumentCollection

    def run(self) -> None:
        """Call the function, with the default of every argument that was not given."""
        self.bound.apply_defaults()
        self.function(*self.bound.args, **self.bound.kwargs)


class _App(App):
    """A parser that derives the options from the signature once, which takes longer than parsing them."""

    def assemble_argument_collection(
        self, *, default_parameter: Parameter | None = None, parse_docstring: bool = False
    ) -> ArgumentCollection:
        """Return the arguments without values; a call that asks for no variant of them gets a copy of the same ones."""
        if default_parameter is not None or parse_docstring:
            return super().assemble_argument_collection(
                default_parameter=default_parameter, parse_docstring=parse_docstring
            )
        return _copied(self._without_values)

    @functools.cached_property
    def _without_values(self) -> ArgumentCollection:
        return super().assemble_argument_collection()


class Command:
    """A function as a command; `name` is one word or two."""

    def __init__(self, name: str, function: Callable[..., None]) -> None:
        self.name = name
        self.function = function

    @functools.cached_property
    def app(self) -> App:
        """Parser of the command's options."""
        app = _App(
            name=self.name.rpartition(" ")[2],
            help_flags=(),
            version_flags=(),
            default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
        )
        app.default(_with_common_options(self.function))
        return app

    @functools.cached_property
    def options(self) -> ArgumentCollection:
        """Arguments of the command, without values."""
        return self.app.assemble_argument_collection()

    def documented_options(self) -> ArgumentCollection:
        """Return the arguments of the command with their help."""
        return self.app.assemble_argument_collection(parse_docstring=True)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def usage(self) -> str:
        """Command line with the required arguments, such as `clipvid search INDEX QUERY [options]`."""
        return " ".join(["clipvid", self.name, *map(operand, positional(self.options)), "[options]"])

    def parse(self, words: Sequence[str]) -> Call:
        """Return the call that the words describe; raise UsageError for a wrong command line or option file."""
        if message := messages.misused_switch(words, self.options) or messages.without_values(words, self.options):
            raise UsageError(message)
        parsed: list[ArgumentCollection] = []

        def add_option_files(_: App, __: tuple[str, ...], arguments: ArgumentCollection) -> None:
            parsed.append(arguments)
            _add_option_files(arguments)

        self.app.config = (add_option_files,)
        try:
            _, bound, _ = self.app.parse_args(list(words), print_error=False, exit_on_error=False)
        except CycloptsError as error:
            message = messages.usage_message(error, self.options, self.usage)
            source = messages.source_of(message, parsed[-1]) if parsed else ""
            raise UsageError(message + source) from error
        if message := messages.fraction_for_integer(parsed[-1]):
            raise UsageError(message + messages.source_of(message, parsed[-1]))
        return Call(self.app.default_command or self.function, bound, parsed[-1])


def positional(arguments: ArgumentCollection) -> list[Argument]:
    """Return the arguments without a name."""
    return [argument for argument in messages.leaves(arguments) if not argument.name.startswith("--")]


def operand(argument: Argument) -> str:
    """Return a positional argument as the usage line shows it."""
    many = "..." if get_args(argument.resolved_hint)[-1:] == (Ellipsis,) else ""
    return f"{argument.parameter.metavar or argument.name}{many}"


def _copied(arguments: ArgumentCollection) -> ArgumentCollection:
    """Return a copy of arguments without values; values given to it leave the original as it is."""
    copies = {id(argument): copy.copy(argument) for argument in arguments}
    for copied in copies.values():
        copied.tokens = []
        copied.children = ArgumentCollection(copies[id(child)] for child in copied.children)
    return ArgumentCollection(copies.values())


def _with_common_options(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function with the options of every command, and with defaults for groups of options."""

    @functools.wraps(function)
    def command(*args: Any, common: CommonOptions | None = None, **kwargs: Any) -> None:
        del common  # its options take effect while the words are parsed
        function(*args, **kwargs)

    hints = get_type_hints(function, include_extras=True)
    hints["common"] = Annotated[CommonOptions, Parameter(name="*", group=RUN)]
    signature = inspect.signature(function)
    keyword = inspect.Parameter("common", inspect.Parameter.KEYWORD_ONLY)
    parameters = [_with_default(p, hints[p.name]) for p in (*signature.parameters.values(), keyword)]
    command.__annotations__ = hints
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _with_default(parameter: inspect.Parameter, hint: Any) -> inspect.Parameter:
    """Return the parameter; a group of options gets the default of each option as its default."""
    kind = get_args(hint)[0] if get_args(hint) else hint
    if parameter.kind is parameter.KEYWORD_ONLY and isinstance(kind, type):
        if is_dataclass(kind):
            return parameter.replace(default=kind())
        if hasattr(kind, "__total__"):  # options derived from a dataclass
            return parameter.replace(default={})
    return parameter


def _add_option_files(arguments: ArgumentCollection) -> None:
    """Add the options in the files of --config, unless the command line or a later file sets them."""
    leaves = {argument.name.removeprefix("--"): argument for argument in messages.leaves(arguments)}
    json_options = {name for name, argument in leaves.items() if argument.parameter.metavar in ("JSON", PAIRS)}
    for path in reversed([token.value for token in leaves["config"].tokens]):
        for entry in read_options(path, json_options):
            argument = leaves.get(entry.name)
            if argument is None or entry.name in ("config", "debug") or not argument.name.startswith("--"):
                hint = messages.unknown_option(f"--{entry.name}", arguments).partition(";")[2]
                raise UsageError(f"--config {path}, line {entry.line}: unknown option {entry.name};{hint}")
            if not argument.tokens:
                _add_entry(argument, entry, path)


def _add_entry(argument: Argument, entry: Entry, path: str) -> None:
    """Add the values of one option of a file."""
    source = f"set in {path}, line {entry.line}"
    if entry.values is None:
        raise UsageError(f"{argument.name} must have a value, got null; leave it out for its default ({source})")
    if messages.is_switch(argument) != isinstance(entry.values, bool):
        if messages.is_switch(argument):
            raise UsageError(f"{argument.name} must be true or false in an option file ({source})")
        entry = entry._replace(values=(str(entry.values).lower(),))
    if isinstance(entry.values, bool):
        argument.append(Token(keyword=argument.name, implicit_value=entry.values, source=source))
        return
    if len(entry.values or ()) > 1 and get_args(argument.resolved_hint) == ():
        raise UsageError(f"{argument.name} must be {messages.constraint(argument)}, got a list ({source})")
    for index, value in enumerate(entry.values or ()):
        argument.append(Token(keyword=argument.name, value=value, index=index, source=source))
