"""Looking after a cache: what it holds, which of its files are damaged, and the removal of those.

Contract: a folder in; facts out, and files gone. Reads headers or every byte, and never what the tensors mean. Of a
folder whose recipe cannot be read nothing is removed: nobody can tell whose its files are.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from clipvid.errors import CacheError
from clipvid.features.cache_key import RECIPE, TEXT, CacheKey, TextCacheKey, read_cache_key
from clipvid.features.shards import ADVICE, SUFFIX, check_shard, shard_files
from clipvid.runtime.text import pluralize


@dataclass(frozen=True)
class Part:
    """What one folder of a cache holds: the taps or the caption embeddings of one recipe."""

    folder: Path
    cache_key: CacheKey | TextCacheKey | None
    """None where it cannot be read; `broken` says why."""
    rows: int
    """Clips or captions."""
    nbytes: int
    damaged: tuple[tuple[Path, str], ...]
    """Files that are not what was written, and why."""
    broken: str = ""

    def __str__(self) -> str:
        what = "caption" if self.folder.name.startswith(TEXT) else "clip"
        known = self.cache_key or f"{RECIPE} {self.broken}"
        lines = [f"{self.folder}: {pluralize(self.rows, what)}, {format_bytes(self.nbytes)}; {known}"]
        return "\n".join(lines + [f"  {path.name} {reason}" for path, reason in self.damaged])


def parts_of(folder: str | Path, *, whole: bool = False) -> list[Part]:
    """What a cache holds, recipe by recipe; with `whole` every byte is read and checked, else the headers are.

    Raises CacheError where there is no cache; what is damaged in one is said in its part.
    """
    if Path(folder).is_file():
        raise CacheError(f"{folder} is a file, a tap cache is a folder; give the one of clipvid train --cache")
    found = sorted({path.parent for name in (RECIPE, f"*{SUFFIX}") for path in Path(folder).glob(f"*/{name}")})
    if not found:
        raise CacheError(f"{folder} holds no tap cache; clipvid train --cache {folder} makes one")
    return [_part(place, whole=whole) for place in found]


def _part(folder: Path, *, whole: bool) -> Part:
    rows, size, damaged = 0, 0, []
    try:
        cache_key, broken = read_cache_key(folder), ""
    except CacheError as error:
        cache_key, broken = None, str(error).removeprefix(f"{folder / RECIPE} ")
    for path in shard_files(folder):
        size += path.stat().st_size
        try:
            rows += check_shard(path, whole=whole)
        except CacheError as error:
            damaged.append((path, str(error).removeprefix(f"{path} ").removesuffix(f"; {ADVICE}")))
    return Part(folder, cache_key, rows, size, tuple(damaged), broken)


@dataclass(frozen=True)
class Pruned:
    """What a pruning removed, and what it left as nobody can tell whose it is."""

    removed: tuple[Path, ...]
    left: tuple[Part, ...]
    """Folders whose recipe cannot be read."""


def prune(folder: str | Path, *, tower: str | None = None) -> Pruned:
    """Remove damaged files, drafts of killed runs and, with `tower`, all of the tower whose fingerprint begins so.

    Not while another process writes to the cache: its draft would go too. Raises CacheError for a beginning that no
    tower here has, or more than one.
    """
    removed: list[Path] = []
    parts = parts_of(folder, whole=True)
    towers = {part.folder: part.cache_key.tower for part in parts if part.cache_key is not None}
    meant = {own for own in towers.values() if tower is not None and own.startswith(tower)}
    if tower is not None and len(meant) != 1:
        there = ", ".join(sorted({own[:12] for own in towers.values()})) or "none that can be read"
        raise CacheError(f"{tower!r} begins {len(meant)} towers of {folder}, not one; it has {there}")
    for part in parts:
        if part.cache_key is None:
            continue
        if towers[part.folder] in meant:
            shutil.rmtree(part.folder)
            removed.append(part.folder)
            continue
        for path in [*(path for path, _ in part.damaged), *part.folder.glob(".*.part")]:
            path.unlink()
            removed.append(path)
    return Pruned(tuple(removed), tuple(part for part in parts if part.cache_key is None))


def format_bytes(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
