"""Signals that arrive while something is saved: they take effect once the save is complete.

Contract: a block that SIGINT, SIGTERM and SIGHUP do not interrupt. Their handlers run at its end, so a signal is late,
never lost. Knows nothing of what is saved.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end; Windows has no SIGHUP."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP until the end of the block, and let the first of them take effect there.

    A second Ctrl-C is not held back, so that a user can leave a save that hangs. Only the main thread gets signals; in
    other threads, and for signals that are ignored, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def hold_back(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in pending:
            signal.default_int_handler(number, frame)
        pending.append(number)

    handlers = {number: signal.getsignal(number) for number in STOPPING}
    replaced = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in replaced:
            signal.signal(number, hold_back)
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])  # the handler of an outer block, if there is one, holds it back again
