"""Memory allocation settings of the C library. Imports nothing of clipvid."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's mallopt, from its malloc.h."""


def keep_freed_memory() -> bool:
    """Make this process keep freed memory until it ends; return False if its C library is not glibc.

    A training step allocates and frees the same large tensors again and again. By default glibc returns each to the
    system and must map new pages at the next step: 90,000 page faults per step of four clips on ViT-B/32, a
    tenth of the time (`benchmarks/train_step.py --keep-freed`). With this setting the process stays as large as its
    largest step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mapped = mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)  # 2**25: maximum before glibc 2.35
    return bool(mapped and mallopt(_TRIM_THRESHOLD, 2**30))
