"""Run a function in a copy of the test process: it starts in milliseconds, with torch loaded, and leaves no trace."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import pytest

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks after torch was loaded, which is safe on Linux")

LIMIT = 120.0
"""Seconds after which a forked process counts as hanging."""


def in_a_fork(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a function that runs in a forked process; fail with its traceback if it raises."""
    context = get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(send, function, args), daemon=True)
    process.start()
    send.close()
    try:
        result, error = receive.recv() if receive.poll(LIMIT) else (None, "the process hangs")
    except EOFError:
        result, error = None, "the process ended without a result"
    process.kill()
    process.join()
    assert not error, error
    return result


def _run(send: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        send.send((function(*args), ""))
    except BaseException:
        send.send((None, traceback.format_exc()))
    send.close()
    os._exit(0)  # handlers at exit belong to the test process
