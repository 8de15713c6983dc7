"""Locks of files and folders between processes, and between threads of one process.

Contract: a path in; the lock is held during a `with` block. The system releases it when its process ends, even if it is
killed, so a lock file that is left over locks nothing. Where a file system has no locks, nothing is locked. The only
file that imports filelock. Knows nothing of what is written.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

YOUNG = 60.0
"""Seconds for which a staging folder without a lock file counts as that of a writer that has just started."""
ELSEWHERE = 3600.0
"""Seconds for which a lock file of another computer counts as held: not every shared disk shares its locks."""
RETRIES = 100
"""Number of times that a lock's folder is made again; other processes hardly remove it that often."""

_holders: dict[Path, tuple[int, int]] = {}
"""Process and thread that hold each lock of this process."""


@contextmanager
def lock_folder(folder: str | Path, *, outside: bool = False, wait: float = 0.0, again: bool = False) -> Iterator[None]:
    """Lock `folder` during a `with` block; raise FileExistsError if it is locked already, by this process or another.

    The lock is a file .lock in the folder. Use `outside` for a folder that is replaced as a whole: the lock file is
    then beside the folder, and named after it. `wait` is the number of seconds to wait for another holder. With
    `again`, a thread that holds the lock takes it once more, without effect.
    """
    path = Path(os.path.realpath(folder))  # a link to a folder has the lock of the folder
    lock = path.with_name(f".{path.name}.lock") if outside else path / ".lock"
    if again and _holders.get(lock) == (os.getpid(), threading.get_ident()):
        yield
        return
    created = not lock.parent.exists()
    deadline = time.monotonic() + wait
    while (file := _open_locked(lock)) is None:
        if time.monotonic() >= deadline:
            raise FileExistsError(f"another run is writing to {folder}; wait until it ends, or choose another folder")
        time.sleep(0.02)
    _holders[lock] = (os.getpid(), threading.get_ident())
    try:
        yield
    finally:
        del _holders[lock]
        _release(lock, file)
        with suppress(OSError):  # the folder may have been filled
            if created:
                lock.parent.rmdir()


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold the lock of a new file during a `with` block; the caller deletes the file.

    Raises FileExistsError if another process has taken the file for that of a writer which has ended.
    """
    if (file := _open_locked(path)) is None:
        raise FileExistsError(f"{path} is being removed by another process")
    try:
        with suppress(OSError):  # a full disk is an error of the content that follows
            os.write(file, platform.node().encode() + b"\n")
        yield
    finally:
        os.close(file)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Take over the lock file of a writer that has ended; yield False if the writer may live.

    Raises FileNotFoundError if there is no such file.
    """
    file = os.open(path, os.O_RDWR)
    try:
        yield not _is_elsewhere(file) and _lock(file, unknown=False)
    finally:
        os.close(file)


def _is_elsewhere(file: int) -> bool:
    """Return True for a lock file of another computer that is not old."""
    host = os.pread(file, 256, 0) if hasattr(os, "pread") else b""
    is_elsewhere = bool(host) and host != platform.node().encode() + b"\n"
    return is_elsewhere and time.time() - os.fstat(file).st_mtime < ELSEWHERE


def is_locked(path: Path, *, unknown: bool = False) -> bool:
    """Return True if a living writer holds the lock of `path`, or has just made its folder.

    `unknown` is the answer where the file system has no locks.
    """
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        with suppress(OSError):
            return time.time() - path.parent.stat().st_mtime < YOUNG
        return False
    try:
        return _is_elsewhere(file) or not _lock(file, unknown=not unknown)
    finally:
        os.close(file)


def _release(lock: Path, file: int) -> None:
    if os.name == "nt":  # Windows cannot remove an open file
        os.close(file)
    with suppress(OSError):
        lock.unlink()  # still locked: a process that opened the file earlier then finds it gone, and retries
    if os.name != "nt":
        os.close(file)


def _open_locked(path: Path) -> int | None:
    """Return a descriptor of the file at `path` that holds its lock; None if another descriptor holds it.

    Raises OSError if the file cannot be created.
    """
    retries = RETRIES
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the process that created the folder has just removed it
            if retries == 0:  # another cause, such as a folder in /proc
                raise
            retries -= 1
            continue
        if not _lock(file):
            os.close(file)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)  # The previous holder removed this file after it was opened here: try again.


def _lock(file: int, *, unknown: bool = True) -> bool:
    """Return False if another descriptor holds the lock of this file; take it if it is free.

    Where the file system has no locks, `unknown` is the answer: writers go on, and nobody removes what others may hold.
    """
    from filelock import lock_descriptor

    try:
        return lock_descriptor(file, blocking=False)
    except OSError:  # some network file systems have no locks
        return unknown
