"""Prefetching: a thread prepares the next results while the caller uses the last one.

Contract: jobs in, their results in the same order out; an error is raised in place of its result. The thread ends when
the iteration does: after the last result, or when it is closed early, interrupted or fails. Imports nothing of clipvid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
AHEAD = 2
"""Default number of results prefetched while one is used: the next, and one more as a buffer against a slow job."""


def prefetch(
    jobs: Iterable[Callable[[], T]], *, n: int = AHEAD, stop: Callable[[], object] = lambda: None
) -> Generator[T, None, None]:
    """Yield the results of the jobs, which run one after another in a thread, at most `n` ahead of their use.

    `jobs` itself is iterated in the caller's thread. `stop` is called when the iteration ends, however it ends, before
    the thread is joined, and can make a running job return early. Close the generator if you leave it early.
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
