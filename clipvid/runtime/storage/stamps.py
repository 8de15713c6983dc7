"""Stamps of files: what the operating system says of a file without reading it, to notice that its content changed.

Contract: a path in, a stamp out; equal stamps that are settled are of equal content. Knows nothing of content.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

SETTLED = 3.0
"""Seconds since the last change after which a stamp is trusted: coarse file systems keep times to 2 s."""


class Stamp(NamedTuple):
    """Attributes of a file that identify it and a change of its content."""

    device: int
    inode: int
    size: int
    """Size in bytes."""
    modified: int
    """Time of the last change of the content, in nanoseconds; any program can set it, also to the future."""
    changed: int
    """Time of the last change of content or attributes, in nanoseconds; only the system sets it."""

    @property
    def is_settled(self) -> bool:
        """True if the file last changed long enough ago, so that another change would give another stamp."""
        now = time.time()
        return now - self.changed / 1e9 >= SETTLED and abs(now - self.modified / 1e9) >= SETTLED


def stamp_of(path: str | Path) -> Stamp:
    """Return the stamp of a file or folder; raise OSError if there is none."""
    status = os.stat(path)
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
