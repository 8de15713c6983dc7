"""Tools of the fault tests: random moments that can be repeated, processes to kill, and what must never be left."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clipvid.cli import main as command_line

SEED = int(os.environ.get("CLIPVID_FAULT_SEED") or random.SystemRandom().getrandbits(32))
"""Seed of all random moments; set CLIPVID_FAULT_SEED to that of a failure to repeat it."""
LIMIT = 120.0
"""Seconds after which a process counts as hanging."""
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks after torch was loaded, which is safe on Linux")


def seeded(name: str) -> random.Random:
    """Return random numbers for a test; pytest shows the printed line if the test fails."""
    print(f"repeat with CLIPVID_FAULT_SEED={SEED}")
    return random.Random(SEED ^ zlib.crc32(name.encode()))


class Child:
    """A forked copy of the test process that runs one function; its output goes to a file."""

    def __init__(self, log: Path, function: Callable[..., Any], *args: Any) -> None:
        self.log = log
        self.started = time.perf_counter()
        log.unlink(missing_ok=True)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os._exit(_run(log, function, args))
        with suppress(OSError):  # the child may have been faster
            os.setpgid(self.pid, self.pid)  # before any signal is sent to the group

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to all processes of its group."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def wait(self) -> int:
        """Return the exit code, negative for a signal; fail for a process that hangs."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.seconds = time.perf_counter() - self.started
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        self.send(signal.SIGKILL, group=True)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"the process hangs; its output:\n{self.output}")

    @property
    def output(self) -> str:
        """All that was printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _run(log: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> int:
    import torch

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0, closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0, closefd=False), write_through=True)
    torch.set_num_threads(1)  # a forked process lacks its parent's pool of threads, and would wait for it
    for number in (signal.SIGTERM, signal.SIGHUP):  # tests that nohup started ignore the second
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = function(*args) or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    threading._shutdown()  # ends pools of workers, as the end of a program does
    return code


def command(*words: str) -> int:
    """Run a command as the program does, with its handlers of signals."""
    sys.argv = ["clipvid", *words]
    return command_line.main()


def run(log: Path, function: Callable[..., Any], *args: Any) -> Child:
    """Run a function to its end in a fork; fail unless it succeeds."""
    child = Child(log, function, *args)
    code = child.wait()
    assert code == 0, f"exit code {code}:\n{child.output}"
    return child


def leftovers(folder: Path) -> list[Path]:
    """Return the hidden files below a folder: staging folders and lock files."""
    return sorted(path for path in folder.rglob(".*"))
