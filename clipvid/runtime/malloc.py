"""Memory that a process lets go of and will want again at once. Imports nothing of clipvid."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Names of glibc's mallopt, from its malloc.h."""


def keep_freed() -> bool:
    """Let this process keep the memory it frees, for good; False where its C library has no such setting (not glibc).

    A training step takes and frees the same large tensors again and again. As glibc comes, each goes back to the system
    and its pages are mapped anew at the next step: 90,000 page faults a step of four clips on ViT-B/32, a tenth of the
    time (`benchmarks/train_step.py --keep-freed`). The process then stays as large as its largest step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mapped = mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)  # the most that glibc before 2.35 takes
    return bool(mapped and mallopt(_TRIM_THRESHOLD, 2**30))
