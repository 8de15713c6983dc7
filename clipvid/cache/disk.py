"""TapCache: what a frozen tower says of every clip of a data set, kept on disk for all later runs.

Contract: a folder, a model and a reading in; a TapStore that reads from mapped files out. A cache is addressed by what
decides its bytes: tower, preprocessing, precision, frames, sampler, levels and kind; a clip by its file's content and
its part in seconds. So another model or reading never meets these taps, a file that changed is encoded anew, and one
that was only moved is not. A run that was killed keeps every clip whose file was written. Knows nothing of branches,
losses or metrics.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from clipvid._files import whole_file
from clipvid.bases import preprocess_fields
from clipvid.cache import codec
from clipvid.cache.shards import ADVICE, Shards, check_shard, shard_files, write_shard
from clipvid.cache.store import TapStore, check_storable
from clipvid.cache.stream import stream_taps, trained_reading
from clipvid.config import Reading
from clipvid.data.files import content_hash
from clipvid.data.record import Record, VideoData
from clipvid.errors import CacheError, VideoError
from clipvid.model import VideoCLIP
from clipvid.precision import resolve
from clipvid.taps import Geometry, Taps, require_levels

RECIPE = "recipe.json"
SPARE = 64 * 2**20
"""Bytes of a disk that a cache leaves free."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a clip's taps, but the clip itself."""

    tower: str
    """`Backbone.tower_fingerprint`."""
    preprocess: str
    """How images are prepared, as JSON."""
    precision: str
    """In which the tower ran, by name; auto is resolved."""
    frames: int
    sampler: str
    levels: tuple[int, ...]
    kind: str
    """How features are kept: see clipvid.cache.codec."""

    @property
    def key(self) -> str:
        """What a folder of such taps is called."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class KeptTaps:
    """Taps on disk, clip i at key i; as Taps, but read when they are asked for."""

    def __init__(self, shards: Shards, keys: Sequence[str], held: Sequence[int], levels: Sequence[int]) -> None:
        self.shards, self.keys, self.held, self.levels = shards, tuple(keys), tuple(held), tuple(levels)

    def select(self, levels: Sequence[int]) -> KeptTaps:
        """These levels only; ValueError for one that is not held."""
        require_levels(self.held, levels)
        return KeptTaps(self.shards, self.keys, self.held, levels)

    def part(self, rows: Sequence[int]) -> KeptTaps:
        """Some of the clips, still on disk."""
        return KeptTaps(self.shards, [self.keys[row] for row in rows], self.held, self.levels)

    def gather(self, rows: Sequence[int] | Int[Tensor, " n"]) -> Taps:
        """The taps of these clips, in this order, in memory. CacheError for a damaged file."""
        clips = [self.shards.row(self.keys[int(row)]) for row in rows]
        mask = torch.stack([clip["mask"] for clip in clips]).bool()
        return Taps(
            self.levels,
            tuple(_stacked(clips, f"patches.{level}") for level in self.levels),
            tuple(_stacked(clips, f"cls.{level}") for level in self.levels if f"cls.{level}" in clips[0]),
            _stacked(clips, "frames"),
            None if bool(mask.all()) else mask,
        )


def _stacked(clips: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    parts = {"": torch.stack([clip[name] for clip in clips])}
    if f"{name}.{codec.SCALE}" in clips[0]:
        parts[codec.SCALE] = torch.stack([clip[f"{name}.{codec.SCALE}"] for clip in clips])
    return codec.unpacked(parts)


class TapCache:
    """A folder of taps. `store` gives those of a data set, encoding what is not there yet."""

    def __init__(self, folder: str | Path, *, kind: str = "bf16") -> None:
        if kind not in codec.KINDS:
            raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(codec.KINDS)}")
        self.folder, self.kind = Path(folder), kind

    def recipe(self, model: VideoCLIP, reading: Reading) -> Recipe:
        """What decides the taps of this model's branch, read so."""
        return Recipe(
            tower=model.backbone.tower_fingerprint,
            preprocess=json.dumps(preprocess_fields(model.backbone.preprocess_config), sort_keys=True),
            precision=resolve(reading.precision, model.device),
            frames=reading.frames,
            sampler=reading.sampler,
            levels=tuple(model.branch.levels),
            kind=self.kind,
        )

    def needs(self, model: VideoCLIP, data: VideoData, reading: Reading | None = None) -> int:
        """Bytes that the clips of `data` that are not there yet would take."""
        reading = reading or trained_reading(model, data.terms)
        _, shards = self._opened(self.recipe(model, reading))
        return self._needed(model, reading, shards, _keys(data))

    def _needed(self, model: VideoCLIP, reading: Reading, shards: Shards, keys: Sequence[str | None]) -> int:
        missing = {key for key in keys if key is not None and key not in shards}
        return len(missing) * clip_bytes(model.backbone.geometry(model.branch.levels), reading.frames, self.kind)

    def store(
        self, model: VideoCLIP, data: VideoData, reading: Reading | None = None, *, progress: bool = False
    ) -> TapStore:
        """The taps of `data`; clips that are not there are decoded, encoded and kept, a file a batch.

        Interrupted, it goes on where it was. Raises CacheError where the disk is too small, before anything is
        encoded, and for damaged files; ValueError for what has no taps to keep, VideoError as the reading says.
        """
        reading = reading or trained_reading(model, data.terms)
        check_storable(model, reading)
        recipe = self.recipe(model, reading)
        folder, shards = self._opened(recipe)
        keys = _keys(data)
        self._check_room(self._needed(model, reading, shards, keys))
        lost: list[VideoError] = []
        rows = [row for row, key in enumerate(keys) if key is None or key not in shards]
        if rows:
            folder.mkdir(parents=True, exist_ok=True)
            _write_recipe(folder, recipe)
            absent = data.subset(rows), [keys[row] for row in rows]
            for errors in self._filled(folder, shards, model, *absent, reading, progress=progress):
                lost.extend(errors)
        kept = [row for row, key in enumerate(keys) if key is not None and key in shards]
        if not kept:
            raise ValueError(
                f"none of the {len(data)} videos of {data.name} could be read" + (f"; first: {lost[0]}" if lost else "")
            )
        taps = KeptTaps(shards, [str(keys[row]) for row in kept], recipe.levels, recipe.levels)
        return TapStore(taps, data.surviving(kept), reading, recipe.tower, tuple(lost))

    def _filled(
        self,
        folder: Path,
        shards: Shards,
        model: VideoCLIP,
        data: VideoData,
        keys: Sequence[str | None],
        reading: Reading,
        *,
        progress: bool,
    ) -> Iterator[tuple[VideoError, ...]]:
        """Write batch after batch; what of each could not be read."""
        title = f"cache {data.name}"
        with closing(stream_taps(model, data, reading, to_keep=True, progress=progress, title=title)) as stream:
            for taps, batch in stream:
                if len(batch) and isinstance(taps, Taps):
                    written = [str(keys[row]) for row in batch.index.tolist()]
                    try:
                        write_shard(folder, written, _named(taps.to("cpu"), self.kind))
                    except OSError as error:
                        raise CacheError(
                            f"{folder} cannot be written ({error}); what is there stays, and the next run goes on "
                            "from it"
                        ) from error
                    shards.look()
                yield batch.unreadable

    def _opened(self, recipe: Recipe) -> tuple[Path, Shards]:
        folder = self.folder / recipe.key
        return folder, Shards(folder)

    def _check_room(self, needed: int) -> None:
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed and needed > free - SPARE:
            raise CacheError(
                f"{self.folder} needs {_told(needed)} for clips that are not there yet, the disk has {_told(free)}; "
                "choose another folder, a smaller kind (int8), or fewer frames"
            )


def clip_key(record: Record) -> str:
    """Of a clip's content: its file's, and the part of it in seconds."""
    return f"{content_hash(record.path)[:32]}:{record.start}:{record.end}"


def _keys(data: VideoData) -> list[str | None]:
    """Key of every clip; None where the file is not there or cannot be opened."""
    found: list[str | None] = []
    for record in data:
        try:
            found.append(clip_key(record))
        except OSError:
            found.append(None)
    return found


def clip_bytes(geometry: Geometry, frames: int, kind: str) -> int:
    """Bytes that the taps of one clip take on disk, but for headers."""
    tokens = geometry.patches + geometry.class_token
    levels = sum(tokens * codec.size(width, kind) for width in geometry.widths)
    return frames * (levels + codec.size(geometry.embed_dim, _fine(kind)) + 1)


def _fine(kind: str) -> str:
    """How frame embeddings are kept: they are small, and what retrieval compares."""
    return "bf16" if kind == "int8" else kind


def _named(taps: Taps, kind: str) -> dict[str, Tensor]:
    """Taps as the tensors of a file."""
    features = {f"patches.{level}": patch for level, patch in zip(taps.levels, taps.patches, strict=True)}
    features |= {f"cls.{level}": cls for level, cls in zip(taps.levels, taps.cls, strict=bool(taps.cls))}
    found: dict[str, Tensor] = {"mask": torch.ones(taps.frames.shape[:2], dtype=torch.uint8)}
    if taps.mask is not None:
        found["mask"] = taps.mask.to(torch.uint8)
    for name, tensor in [*features.items(), ("frames", taps.frames)]:
        for part, value in codec.packed(tensor, kind if name != "frames" else _fine(kind)).items():
            found[f"{name}.{part}" if part else name] = value
    return found


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    path = folder / RECIPE
    if not path.exists():
        with whole_file(path) as beside:
            beside.write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")


def _told(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Part:
    """What one folder of a cache holds: the taps of one recipe."""

    folder: Path
    recipe: Recipe
    clips: int
    nbytes: int
    damaged: tuple[tuple[Path, str], ...]
    """Files that are not what was written, and why."""

    def __str__(self) -> str:
        r = self.recipe
        told = f"{r.frames} frames ({r.sampler}), levels {', '.join(map(str, r.levels))}, {r.kind}, {r.precision}"
        lines = [f"{self.folder}: {self.clips} clips, {_told(self.nbytes)}; {told}, tower {r.tower[:12]}"]
        return "\n".join(lines + [f"  {path.name} {reason}" for path, reason in self.damaged])


def parts_of(folder: str | Path, *, whole: bool = False) -> list[Part]:
    """What a cache holds, recipe by recipe; with `whole` every byte is read and checked, else the headers are.

    Raises CacheError where there is no cache.
    """
    found = [path.parent for path in sorted(Path(folder).glob(f"*/{RECIPE}"))]
    if not found:
        raise CacheError(f"{folder} holds no tap cache; clipvid train --cache {folder} makes one")
    return [_part(place, whole=whole) for place in found]


def _part(folder: Path, *, whole: bool) -> Part:
    try:
        told = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        recipe = Recipe(**{**told, "levels": tuple(told["levels"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CacheError(f"{folder / RECIPE} is no recipe of a tap cache ({error}); remove {folder}") from error
    if recipe.key != folder.name:
        raise CacheError(f"{folder / RECIPE} describes other taps than its folder's name stands for; remove {folder}")
    clips, size, damaged = 0, 0, []
    for path in shard_files(folder):
        size += path.stat().st_size
        try:
            clips += check_shard(path, whole=whole)
        except CacheError as error:
            damaged.append((path, str(error).removeprefix(f"{path} ").removesuffix(f"; {ADVICE}")))
    return Part(folder, recipe, clips, size, tuple(damaged))


def prune(folder: str | Path, *, tower: str | None = None) -> list[Path]:
    """Remove damaged files, drafts of killed runs and, with `tower`, all taps of towers whose fingerprint begins so.

    What was removed. Not while another process writes to the cache: its draft would go too.
    """
    removed: list[Path] = []
    for part in parts_of(folder, whole=True):
        if tower and part.recipe.tower.startswith(tower):
            shutil.rmtree(part.folder)
            removed.append(part.folder)
            continue
        for path in [*(path for path, _ in part.damaged), *part.folder.glob(".*.part")]:
            path.unlink()
            removed.append(path)
    return removed
