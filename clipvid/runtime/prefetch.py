"""Work a little ahead of whoever uses its results: a thread that has the next ones ready.

Contract: jobs in, their results in the same order out; an error comes where its result would have. The thread has ended
when the iteration has: at its end, closed early, interrupted, or by an error. Imports nothing of clipvid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
AHEAD = 2
"""Results that are made or ready while one is used: the next, and one more for when that takes longer than usual."""


def prefetch(
    jobs: Iterable[Callable[[], T]], *, n: int = AHEAD, stop: Callable[[], object] = lambda: None
) -> Generator[T, None, None]:
    """Results of the jobs, which run one after another in a thread, at most `n` before they are asked for.

    `jobs` itself is iterated by the caller's thread. `stop` is called once the iteration ends, however it does, before
    the thread is waited for: it may tell a running job to give up. Close the generator where you leave it early.
    """
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="clipvid-ahead")
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > n:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)
