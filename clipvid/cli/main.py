"""The command line: parse, call, print. Options and their help come from functions in clipvid.cli and dataclasses.

Contract: exit code 0 for success; 2 for a wrong command line and 1 for another error, each with one line on standard
error; 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP. A traceback is only shown with --debug or
CLIPVID_DEBUG=1. The commands are listed in clipvid.cli.commands.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from clipvid.cli import commands
from clipvid.errors import ClipvidError, UsageError
from clipvid.runtime.display.names import show
from clipvid.runtime.files import describe_os_error
from clipvid.runtime.signals import STOPPING
from clipvid.runtime.version import __version__

if TYPE_CHECKING:
    from clipvid.cli.parsing.command import Call

CONTINUE = {
    "demo": "; run it again to continue, finished videos are reused",
    "train": "; run it again with --resume to continue from the last checkpoint",
    "data check": "; run it again to continue, checked files are not decoded again",
    "embed": "; with --cache DIR it continues when it is run again",
    "eval": "; with --cache DIR it continues when it is run again",
    "index build": "; continue with the remaining videos with clipvid index add",
    "index add": "; run it again to continue with the remaining videos",
    "index refresh": "; run it again to continue with the remaining videos",
}
"""Advice after an interruption, for commands that can continue."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP, raised in the main thread so that files are closed and locks released."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.number = int(number)
        super().__init__(self.number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in words or os.environ.get("CLIPVID_DEBUG", "0") not in ("", "0")
    while words[:1] == ["--debug"]:
        words = words[1:]
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal or file may not have every character of a name
                stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(words, debug=debug, is_program=argv is None)
        sys.stdout.flush()
    except BrokenPipeError:
        if debug or not _is_output_closed():
            raise
        return 128 + signal.SIGPIPE
    return code


def _run(words: list[str], *, debug: bool, is_program: bool) -> int:
    """Run the command that the words name, and report its errors; return the exit code."""
    name, call = "", None
    try:
        if is_program:
            _stop_cleanly()
        if (page := _page(words)) is not None:
            print(page, end="")
            return 0 if words else 2
        if words[0] in ("--install-completion", "__complete"):
            return _completion(words)
        name = commands.command_name(words)
        call = commands.load(name).parse(words[len(name.split()) :])
        if is_program and name == "train":  # not when called from Python, as the setting stays for the whole process
            from clipvid.runtime.malloc import keep_freed_memory

            keep_freed_memory()
        call.run()
        if is_program:  # All is saved: a later signal just ends the process, and prints no traceback of its exit.
            _stop_at_once()
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, Terminated) as error:
        return _ended(name, call, error.number if isinstance(error, Terminated) else signal.SIGINT)
    except Exception as error:
        if _received:  # The same signal ended workers or closed the terminal, which is an error of its own.
            return _ended(name, call, _received[0])
        if debug:
            raise
        message, code = _report(error, call)
        program = " ".join(["clipvid", *name.split()])
        advice = f"; {program} --help explains the options" if code == 2 and ";" not in message else ""
        print(f"{program}: {message}{advice}", file=sys.stderr)
        return code
    return 0


def _ended(name: str, call: Call | None, number: int) -> int:
    """Print that a signal has ended the command, and how to continue; return the exit code."""
    if _main_process == [os.getpid()]:  # not when called from Python, whose handlers stay
        _stop_at_once()
    ended = "interrupted" if number == signal.SIGINT else "terminated"
    try:
        print(f"\nclipvid {name}: {ended}{_advice(name, call)}", file=sys.stderr)
        sys.stdout.flush()
    except OSError:  # after SIGHUP the terminal is gone
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    return 128 + number


def _advice(name: str, call: Call | None) -> str:
    """Return how to continue an interrupted command; "" for one that simply starts again."""
    if name == "index build" and call is not None:
        from clipvid.config.settings import INDEX

        if not os.path.exists(os.path.join(str(call.bound.arguments.get("out")), INDEX)):
            return "; nothing was embedded yet, run it again"
    return CONTINUE.get(name, "")


def _page(words: Sequence[str]) -> str | None:
    """Return the help or the version that the words ask for; None if they ask for neither."""
    options = words[: words.index("--")] if "--" in words else words
    if words[:1] == ["--version"]:
        return f"clipvid {__version__}\n"
    if words and "--help" not in options and "-h" not in options:
        return None
    named = [word for word in words if word not in ("--help", "-h")]
    if not named:
        return commands.overview()
    if named[0] in commands.GROUPS and " ".join(named[:2]) not in commands.COMMANDS:
        return commands.group_page(named[0])
    from clipvid.cli.parsing.help import page

    return page(commands.load(commands.command_name(named)))


def _report(error: Exception, call: Call | None) -> tuple[str, int]:
    """Return the line that describes an error, and the exit code."""
    from clipvid.runtime.concurrency import loader_death

    message, code = str(error), 2 if isinstance(error, UsageError) else 1
    if isinstance(error, OSError) and not isinstance(error, ClipvidError):
        message = describe_os_error(error)
    elif isinstance(error, RuntimeError) and (death := loader_death(error)) is not None:
        message = str(death)
    elif isinstance(error, ImportError) and message.startswith("plugin "):  # the registry's message says what to do
        pass
    elif not isinstance(error, ClipvidError | ValueError | FloatingPointError):
        message = (
            f"unexpected {type(error).__name__}: {str(error)[:500]}; CLIPVID_DEBUG=1 shows where, please report it"
        )
    message = show(" ".join(message.split()))
    if call is None:
        return message, code
    from clipvid.cli.parsing import messages

    options = messages.names_of(call.arguments)
    message = messages.as_options(message, options)
    is_option = isinstance(error, ValueError) and message.partition(" ")[0] in options.values()
    return message + messages.source_of(message, call.arguments), 2 if is_option else code


def _completion(words: list[str]) -> int:
    """Install completion for the user's shell, or answer a shell that asks for candidates."""
    from cyclopts import App

    app = App(name="clipvid", help=commands.DESCRIPTION, version=__version__)
    groups = {name: App(name=name, help=sentence) for name, sentence in commands.GROUPS.items()}
    for group in groups.values():
        app.command(group)
    for name in commands.COMMANDS:
        groups.get(name.partition(" ")[0], app).command(commands.load(name).app)
    app.register_install_completion_command()
    app(words, result_action="return_value")
    return 0


def _stop_cleanly() -> None:
    """Turn SIGTERM and SIGHUP into Terminated; a signal that is ignored, such as SIGHUP under nohup, stays so."""
    _received.clear()
    _main_process[:] = [os.getpid()]
    for number in STOPPING:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _terminate)


def _stop_at_once() -> None:
    """Let the next signal end the process without clean-up."""
    for number in STOPPING:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Raise Terminated or KeyboardInterrupt in the main process; end a worker, which inherits this handler, at once."""
    if _main_process != [os.getpid()]:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    _received.append(number)
    if number == signal.SIGINT:
        signal.default_int_handler(number, frame)
    raise Terminated(number)


_main_process: list[int] = []
"""Process that handles signals; its workers inherit the handlers."""
_received: list[int] = []
"""Signals that asked this process to end."""


def _is_output_closed() -> bool:
    """Return True if the reader of standard output is gone, such as `head`; further output then goes nowhere."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file
        return False
    poll = select.poll()
    poll.register(output, 0)
    if poll.poll(0):  # an error is reported without being asked for
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return True
    return False
