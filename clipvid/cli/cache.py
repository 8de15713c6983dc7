"""Commands about tap caches: cache ls, verify and prune. Help texts come from their docstrings.

Contract: plain arguments in; a command prints what it found and removes what was asked for, or raises. Heavy modules
load when a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

MEND = "the next run that reads what is there writes it anew; if none will, remove the folder"
"""Advice for a cache folder whose cache key cannot be read."""


def list_caches(folder: str) -> None:
    """Print what a tap cache holds: clips, bytes, and what they were made with.

    Args:
        folder: as `clipvid train --cache` was given it.
    """
    from clipvid.features.maintenance import parts_of

    for part in parts_of(folder):
        print(part)


def verify(folder: str) -> None:
    """Read every byte of a tap cache and name the files that are not what was written.

    Args:
        folder: as `clipvid train --cache` was given it.
    """
    from clipvid.errors import CacheError
    from clipvid.features.maintenance import parts_of

    parts = parts_of(folder, full=True)
    for part in parts:
        print(part)
    found = []
    if damaged := sum(len(part.damaged) for part in parts if part.cache_key is not None):
        many = f"{damaged} files of {folder} are damaged; clipvid cache prune {folder} removes them"
        one = f"1 file of {folder} is damaged; clipvid cache prune {folder} removes it"
        found.append(one if damaged == 1 else many)
    if broken := [str(part.folder) for part in parts if part.cache_key is None]:
        found.append(f"cache_key.json of {', '.join(broken)} is damaged; {MEND}")
    if found:
        raise CacheError("; ".join(found))
    print("every file is as it was written")


def prune(folder: str, tower: str | None = None) -> None:
    """Remove damaged files and drafts of killed runs from a tap cache; not while something writes to it.

    Args:
        folder: as `clipvid train --cache` was given it.
        tower: also remove all that the tower said whose fingerprint begins so, as `clipvid cache ls` shows it.
    """
    from clipvid.features.maintenance import prune as prune_cache

    pruned = prune_cache(folder, tower=tower)
    for path in pruned.removed:
        print(f"removed {path}")
    for part in pruned.left:
        print(f"left {part.folder}: cache_key.json {part.broken}; {MEND}")
    print(f"{len(pruned.removed)} removed")
