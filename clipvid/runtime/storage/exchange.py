"""The exchange of two names of a file system in one step, where the system offers it.

Contract: two existing paths of one file system in; True if each now names what the other did. Knows nothing of their
content. Linux: renameat2(2) with RENAME_EXCHANGE; macOS: renamex_np(2) with RENAME_SWAP.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names; return False, with nothing changed, where system or file system cannot."""
    call = _call()
    return call is not None and call(os.fsencode(first), os.fsencode(second)) == 0


@cache
def _call() -> Callable[[bytes, bytes], int] | None:
    """Return the system's function, or None."""
    if sys.platform not in ("linux", "darwin"):
        return None
    system = ctypes.CDLL(None)
    if sys.platform == "darwin":
        swap = getattr(system, "renamex_np", None)
        return swap and (lambda first, second: swap(first, second, ctypes.c_uint(_RENAME_SWAP)))
    rename = getattr(system, "renameat2", None)  # glibc has it from 2.28 on, musl from 1.2.6 on
    return rename and (
        lambda first, second: rename(_AT_FDCWD, first, _AT_FDCWD, second, ctypes.c_uint(_RENAME_EXCHANGE))
    )
