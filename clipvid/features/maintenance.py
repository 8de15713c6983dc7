"""Maintenance of a cache: list its contents, verify its files, and remove damaged ones.

Contract: a folder in; descriptions of its contents out, and files removed. Reads headers or every byte, but not the
meaning of the tensors. Nothing is removed from a folder whose cache key cannot be read: it may not be a cache.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipvid.errors import CacheError
from clipvid.features.cache_key import CACHE_KEY_FILE, TEXT, CacheKey, TextCacheKey, read_cache_key
from clipvid.features.shards import ADVICE, SUFFIX, check_shard, shard_files
from clipvid.runtime.files import remove_leftovers
from clipvid.runtime.storage.staging import remove_dead_staging
from clipvid.runtime.text import pluralize


@dataclass(frozen=True)
class Part:
    """Contents of one folder of a cache: the taps or the caption embeddings of one cache key."""

    folder: Path
    cache_key: CacheKey | TextCacheKey | None
    """None if it cannot be read; `broken` says why."""
    rows: int
    """Number of clips or captions."""
    nbytes: int
    damaged: tuple[tuple[Path, str], ...]
    """Damaged files, each with the reason."""
    broken: str = ""

    def __str__(self) -> str:
        noun = "caption" if self.folder.name.startswith(TEXT) else "clip"
        description = self.cache_key or f"{CACHE_KEY_FILE} {self.broken}"
        lines = [f"{self.folder}: {pluralize(self.rows, noun)}, {format_bytes(self.nbytes)}; {description}"]
        return "\n".join(lines + [f"  {path.name} {reason}" for path, reason in self.damaged])


def parts_of(folder: str | Path, *, full: bool = False) -> list[Part]:
    """Return the contents of a cache, a part per cache key; check the headers of its files, with `full` every byte.

    Damage is reported in the part. Raises CacheError if the folder is no cache.
    """
    if Path(folder).is_file():
        raise CacheError(f"{folder} is a file, a tap cache is a folder; give the folder of clipvid train --cache")
    folders = sorted(
        {path.parent for name in (CACHE_KEY_FILE, f"*{SUFFIX}") for path in Path(folder).glob(f"*/{name}")}
    )
    if not folders:
        raise CacheError(f"{folder} holds no tap cache; clipvid train --cache {folder} makes one")
    return [_part(subfolder, full=full) for subfolder in folders]


def _part(folder: Path, *, full: bool) -> Part:
    rows, size, damaged = 0, 0, []
    try:
        cache_key, broken = read_cache_key(folder), ""
    except CacheError as error:
        cache_key, broken = None, str(error).removeprefix(f"{folder / CACHE_KEY_FILE} ")
    for path in shard_files(folder):
        size += path.stat().st_size
        try:
            rows += check_shard(path, full=full)
        except CacheError as error:
            damaged.append((path, str(error).removeprefix(f"{path} ").removesuffix(f"; {ADVICE}")))
    return Part(folder, cache_key, rows, size, tuple(damaged), broken)


@dataclass(frozen=True)
class Pruned:
    """Result of pruning a cache."""

    removed: tuple[Path, ...]
    """Files and folders that were removed."""
    left: tuple[Part, ...]
    """Folders that were left alone because their cache key cannot be read."""


def prune(folder: str | Path, *, tower: str | None = None) -> Pruned:
    """Remove damaged files, unfinished ones and, with `tower`, everything of the tower with that fingerprint.

    `tower` is the beginning of a fingerprint. Unfinished files are left by killed runs; those of runs that still write
    stay. Raises CacheError unless exactly one tower in the cache matches.
    """
    removed = _prune_leftovers(Path(folder))
    parts = parts_of(folder, full=True)
    towers = {part.folder: part.cache_key.tower_fingerprint for part in parts if part.cache_key is not None}
    matches = {name for name in towers.values() if tower is not None and name.startswith(tower)}
    if tower is not None and len(matches) != 1:
        available = ", ".join(sorted({name[:12] for name in towers.values()})) or "none that can be read"
        raise CacheError(
            f"{tower!r} must match exactly one tower, got {len(matches)} in {folder}; give the start of one of its "
            f"fingerprints: {available}"
        )
    for part in parts:
        if part.cache_key is None:
            continue
        if towers[part.folder] in matches:
            shutil.rmtree(part.folder)
            removed.append(part.folder)
            continue
        for path, _ in part.damaged:
            path.unlink()
            removed.append(path)
        removed += remove_leftovers(part.folder)
    return Pruned(tuple(removed), tuple(part for part in parts if part.cache_key is None))


def _prune_leftovers(cache: Path) -> list[Path]:
    """Remove what killed runs left in a cache, and in its folders as far as their names are those of cache keys."""
    folders = [path for path in cache.glob("*/") if re.fullmatch(rf"({TEXT})?[0-9a-f]{{16}}", path.name)]
    if not folders:
        return []
    removed = [path for folder in [cache, *folders] for path in remove_dead_staging(folder)]
    for folder in folders:
        with suppress(OSError):  # it holds files
            folder.rmdir()
            removed.append(folder)
    return removed


def format_bytes(size: int) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
