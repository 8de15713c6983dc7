"""Commands for tap caches: cache ls, verify and prune. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and removes files, or raises. A cache has one part, a
subfolder, per cache key. Heavy modules are imported when a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipvid.cli import outputs
from clipvid.cli.parsing.options import Json
from clipvid.errors import CacheError, UsageError

REPAIR = "the next run that uses the cache writes it again; if there is no such run, remove the folder"
"""Advice for a cache folder whose cache key cannot be read."""


def list_caches(folder: str, /, *, json: Json = False) -> None:
    """Print the contents of a tap cache: clips, bytes, and the model and settings that made them.

    Args:
        folder: folder of the cache, as in `clipvid train --cache`.
    """
    _check_folder(folder)
    from clipvid.features.maintenance import parts_of

    parts = parts_of(folder)
    with outputs.json_printed(json) as print_json:
        print_json(
            [
                {
                    "folder": str(part.folder),
                    "rows": part.rows,
                    "bytes": part.nbytes,
                    "cache_key": None if part.cache_key is None else str(part.cache_key),
                    "damaged": [{"file": str(path), "reason": reason} for path, reason in part.damaged],
                }
                for part in parts
            ]
        )
        for part in [] if json else parts:
            outputs.say(part)


def _check_folder(folder: str) -> None:
    """Raise UsageError for a folder that does not exist."""
    if Path(folder).is_file():
        raise UsageError(f"{folder} is a file, a tap cache is a folder; give the folder of clipvid train --cache")
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} does not exist; clipvid train --cache {folder} makes a cache")


def verify(folder: str, /) -> None:
    """Read every byte of a tap cache and list the damaged files.

    Args:
        folder: folder of the cache, as in `clipvid train --cache`.
    """
    _check_folder(folder)
    from clipvid.features.maintenance import parts_of

    parts = parts_of(folder, full=True)
    for part in parts:
        outputs.say(part)
    problems = []
    if damaged := sum(len(part.damaged) for part in parts if part.cache_key is not None):
        plural = f"{damaged} files of {folder} are damaged; clipvid cache prune {folder} removes them"
        singular = f"1 file of {folder} is damaged; clipvid cache prune {folder} removes it"
        problems.append(singular if damaged == 1 else plural)
    if broken := [str(part.folder) for part in parts if part.cache_key is None]:
        problems.append(f"cache_key.json of {', '.join(broken)} is damaged; {REPAIR}")
    if problems:
        raise CacheError("; ".join(problems))
    outputs.say("no file is damaged")


def prune(folder: str, /, *, tower: Annotated[str | None, Parameter(metavar="FINGERPRINT")] = None) -> None:
    """Remove damaged files, and unfinished ones of killed runs; do not run it while a process writes to the cache.

    Args:
        folder: folder of the cache, as in `clipvid train --cache`.
        tower: also remove all taps of the tower whose fingerprint starts with this; `clipvid cache ls` shows it.
    """
    _check_folder(folder)
    from clipvid.features.maintenance import prune as prune_cache

    pruned = prune_cache(folder, tower=tower)
    for path in pruned.removed:
        outputs.say(f"removed {path}")
    for part in pruned.left:
        outputs.say(f"left {part.folder}: cache_key.json {part.broken}; {REPAIR}")
    outputs.say(f"{len(pruned.removed)} removed")
