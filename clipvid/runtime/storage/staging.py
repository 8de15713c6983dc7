"""Staging folders, `.NAME.XXXXXXXX.part`, in which files and folders are written before they take their place.

Contract: a writer holds the lock of its staging folder until all else in it is gone, so a folder whose lock is free was
left by a writer that was killed; the next writer to that place removes it. Knows nothing of what is written.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from clipvid.runtime.storage.folder_lock import claimed, locked_file

NEW, OLD, LOCK = "new", "old", "lock"
"""Contents of a staging folder: the folder of what is being written, that of what it replaces, and the lock."""
STAGING = ".*.part"
"""Pattern of the names of staging folders."""
SCAN_SHARE = 0.02
"""Share of its time that a writer may spend on looking for leftovers: listing a folder of many files takes a while."""
_scans: dict[Path, tuple[float, float]] = {}
"""Time and duration of the last search for leftovers in each folder."""


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a staging folder for `path`, locked until it is deleted at the end of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean(path.parent)
    with ExitStack() as lock:
        staging = _new_staging(path, lock)
        try:
            (staging / NEW).mkdir()
            yield staging
        finally:
            shutil.rmtree(staging / NEW, ignore_errors=True)
            if path.exists() or not (staging / OLD).exists():  # else it is the only copy, which `recover` brings back
                shutil.rmtree(staging / OLD, ignore_errors=True)
                lock.close()  # the lock goes last: what is left without one may be that of a new writer
                shutil.rmtree(staging, ignore_errors=True)


def _new_staging(path: Path, lock: ExitStack) -> Path:
    """Make a staging folder and lock it; another process may take the empty folder for a leftover and remove it."""
    while True:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.", suffix=".part", dir=path.parent))
        with suppress(FileExistsError):
            lock.enter_context(locked_file(staging / LOCK))
            return staging


def remove_dead_staging(folder: Path) -> list[Path]:
    """Delete the staging folders of killed writers, and nothing else, in a folder; return their paths."""
    paths = [Path(entry) for entry in os.scandir(folder) if re.fullmatch(r"\..*\.part", entry.name)]
    return [path for path in paths if _is_staging(path) and remove_staging(path)]


def _clean(folder: Path) -> None:
    """Call `remove_dead_staging`, unless the last time was too short a while ago for the time that it took."""
    last, seconds = _scans.get(folder, (0.0, 0.0))
    start = time.monotonic()
    if start - last >= seconds / SCAN_SHARE:
        with suppress(OSError):  # leftovers are no reason to fail
            remove_dead_staging(folder)
        end = time.monotonic()
        _scans[folder] = end, end - start


def _is_staging(path: Path) -> bool:
    """Return True for a folder that only `_staging` makes; other programs have names such as .x.part too."""
    return path.is_dir() and {entry.name for entry in path.iterdir()} <= {NEW, OLD, LOCK}


def remove_staging(staging: Path) -> bool:
    """Delete the staging folder of a killed writer, after a folder that it moved aside is back in its place.

    Returns False, and deletes nothing, if the writer lives.
    """
    try:
        with claimed(staging / LOCK) as is_dead:
            if not is_dead:
                return False
            for aside in staging.glob(f"{OLD}/*"):
                if not (staging.parent / aside.name).exists():
                    os.rename(aside, staging.parent / aside.name)
            for part in (NEW, OLD):
                shutil.rmtree(staging / part, ignore_errors=True)
            shutil.rmtree(staging, ignore_errors=True)
    except FileNotFoundError:  # the writer was killed before it locked the folder, or lives and locks another one
        with suppress(OSError):
            staging.rmdir()
    return not staging.exists()
