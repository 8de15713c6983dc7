"""Processes for work beside this one: none copies torch's threads, and none outlives the process that asked for it.

Contract: a pool in which functions of modules run, in this process's working directory; its environment is that of the
first pool. Imports nothing of clipvid.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context, parent_process


def processes(workers: int, *, loads: Sequence[str] = ()) -> ProcessPoolExecutor:
    """A pool of `workers` processes, fresh ones, or for heavy `loads` forked from a server that has imported them once.

    The server has no threads, which a fork would break, and needs milliseconds for a process, where a fresh interpreter
    needs seconds to import torch. It is multiprocessing's own, one for the life of this process: what it preloads is
    set here, for whoever else uses it too. Windows has none.
    """
    if loads and "forkserver" in get_all_start_methods():
        server = get_context("forkserver")
        server.set_forkserver_preload([*loads])
        return ProcessPoolExecutor(workers, mp_context=server, initializer=_end_with_parent)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A worker whose parent was killed, perhaps before it began, would wait for work for ever.

    Ctrl-C reaches workers too: they finish what they are at, and the parent, which cancels the rest, says what it was.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
