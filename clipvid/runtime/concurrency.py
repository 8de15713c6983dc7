"""Worker processes: none copies torch's threads, and none outlives the process that started it.

Contract: a pool that runs module-level functions in this process's working directory; its environment is that of the
first pool. If a worker cannot start, WorkerError is raised before any work is submitted. Knows nothing of the work.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import current_process, get_all_start_methods, get_context, parent_process, resource_tracker
from multiprocessing.forkserver import ensure_running

from clipvid.errors import WorkerError
from clipvid.runtime.signals import uninterrupted

GUARD = 'put the calls of that script under `if __name__ == "__main__":`'
"""Advice for a script that starts worker processes when it is imported."""
THREADS = ", or give workers=0, which decodes in threads"
"""Advice that callers who decode append to it."""


def process_pool(workers: int, *, loads: Sequence[str] = ()) -> ProcessPoolExecutor:
    """Return a pool of `workers` fresh processes; for heavy `loads`, fork them from a server that imported them once.

    The server has no threads, which a fork would break. It starts a process in milliseconds; a fresh interpreter needs
    seconds to import torch. It is multiprocessing's fork server, one for the life of this process, so every other user
    of it gets the modules that are preloaded here. Windows has none.

    Raises WorkerError if a worker ends before it can work.
    """
    end_unguarded_import()
    if loads and "forkserver" in get_all_start_methods():
        context = get_context("forkserver")
        context.set_forkserver_preload([*loads])
        with _without_interrupts():
            ensure_running()
    else:
        context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        with uninterrupted(), _without_interrupts():  # a worker that gets half of its start would print a traceback
            answers = [pool.submit(os.getpid) for _ in range(workers)]
        answers[0].result()  # an answer shows that the worker could import the script
    except BrokenProcessPool:
        pool.shutdown()
        raise never_started() from None
    except BaseException:
        for process in (getattr(pool, "_processes", None) or {}).values():  # nothing is lost: no work has begun
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return pool


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let processes that are started in the block never see Ctrl-C, of which they would print a traceback.

    This process gets it after the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing would start it in the block, and let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_unguarded_import() -> None:
    """End a worker process that is still importing the script that started it, before it starts workers itself.

    multiprocessing would raise an error in each worker; the parent's error already explains the cause.
    """
    if getattr(current_process(), "_inheriting", False):
        logging.getLogger(__name__).error("a worker process imports the script that started it; %s", GUARD)
        raise SystemExit(1)


def never_started(advice: str = "") -> WorkerError:
    """Return the error for worker processes that ended before they could work, with the caller's advice."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None:
        return WorkerError(f"worker processes ended as they started, perhaps for lack of memory{advice}")
    return WorkerError(
        f"worker processes ended as they started: each imports {script}, the script that started it, which would start "
        f"workers again; {GUARD}{advice} (if it has that line, look for lack of memory)"
    )


def loader_death(error: RuntimeError) -> WorkerError | None:
    """Return the error for a killed worker of torch's DataLoader if `error` reports one, else None.

    torch has no exception type for it, and raises it wherever the main thread is when the worker dies.
    """
    if not str(error).startswith("DataLoader worker (pid"):
        return None
    return WorkerError(
        f"a worker process was ended ({str(error).strip()}), perhaps for lack of memory or by a damaged file; give "
        f"fewer workers{THREADS}, and look for such files with `clipvid data check`"
    )


def _end_with_parent() -> None:
    """Make this worker end with its parent, even if that is killed, instead of waiting for work forever.

    Ctrl-C reaches workers too and is ignored there: they finish their current job, and the parent cancels the others
    and reports the interruption.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
