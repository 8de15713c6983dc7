"""Looking after a cache: what it holds, which of its files are damaged, and the removal of those.

Contract: a folder in; facts out, and files gone. Reads headers or every byte, and never what the tensors mean.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from clipvid.cache.recipe import RECIPE, Recipe, TextRecipe, read_recipe
from clipvid.cache.shards import ADVICE, check_shard, shard_files
from clipvid.errors import CacheError


@dataclass(frozen=True)
class Part:
    """What one folder of a cache holds: the taps or the caption embeddings of one recipe."""

    folder: Path
    recipe: Recipe | TextRecipe
    rows: int
    """Clips or captions."""
    nbytes: int
    damaged: tuple[tuple[Path, str], ...]
    """Files that are not what was written, and why."""

    def __str__(self) -> str:
        what = "clips" if isinstance(self.recipe, Recipe) else "captions"
        lines = [f"{self.folder}: {self.rows} {what}, {in_words(self.nbytes)}; {self.recipe}"]
        return "\n".join(lines + [f"  {path.name} {reason}" for path, reason in self.damaged])


def parts_of(folder: str | Path, *, whole: bool = False) -> list[Part]:
    """What a cache holds, recipe by recipe; with `whole` every byte is read and checked, else the headers are.

    Raises CacheError where there is no cache.
    """
    if Path(folder).is_file():
        raise CacheError(f"{folder} is a file, a tap cache is a folder; give the one of clipvid train --cache")
    found = [path.parent for path in sorted(Path(folder).glob(f"*/{RECIPE}"))]
    if not found:
        raise CacheError(f"{folder} holds no tap cache; clipvid train --cache {folder} makes one")
    return [_part(place, whole=whole) for place in found]


def _part(folder: Path, *, whole: bool) -> Part:
    recipe = read_recipe(folder)
    rows, size, damaged = 0, 0, []
    for path in shard_files(folder):
        size += path.stat().st_size
        try:
            rows += check_shard(path, whole=whole)
        except CacheError as error:
            damaged.append((path, str(error).removeprefix(f"{path} ").removesuffix(f"; {ADVICE}")))
    return Part(folder, recipe, rows, size, tuple(damaged))


def prune(folder: str | Path, *, tower: str | None = None) -> list[Path]:
    """Remove damaged files, drafts of killed runs and, with `tower`, all of the tower whose fingerprint begins so.

    What was removed. Not while another process writes to the cache: its draft would go too. Raises CacheError for a
    beginning that no tower here has, or more than one.
    """
    removed: list[Path] = []
    parts = parts_of(folder, whole=True)
    meant = {part.recipe.tower for part in parts if tower is not None and part.recipe.tower.startswith(tower)}
    if tower is not None and len(meant) != 1:
        there = ", ".join(sorted({part.recipe.tower[:12] for part in parts}))
        raise CacheError(f"{tower!r} begins {len(meant)} towers of {folder}, not one; it has {there}")
    for part in parts:
        if tower is not None and part.recipe.tower.startswith(tower):
            shutil.rmtree(part.folder)
            removed.append(part.folder)
            continue
        for path in [*(path for path, _ in part.damaged), *part.folder.glob(".*.part")]:
            path.unlink()
            removed.append(path)
    return removed


def in_words(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
