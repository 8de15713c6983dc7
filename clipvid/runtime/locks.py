"""A readers-writer lock for an index that many threads search while one changes it.

Contract: any number of readers at once, or one writer alone. Not reentrant. Knows nothing of the data that it guards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """A lock for many readers or one writer; new readers wait behind a waiting writer, so that it is not starved."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers, self._waiting, self._writing = 0, 0, False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Share the lock with other readers during the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and not self._waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock alone during the block."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._writing and not self._readers)
                self._writing = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()  # readers must not wait for a writer whose wait was interrupted
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def __reduce__(self) -> tuple[type[SharedLock], tuple[()]]:
        return SharedLock, ()  # a copied or pickled index gets a new, free lock
