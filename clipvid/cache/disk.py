"""TapCache: what a frozen tower says of every clip of a data set, kept on disk for all later runs.

Contract: a folder, a model and a reading in; a TapStore that reads from mapped files out. A cache is addressed by what
decides its bytes: tower, preprocessing, precision, frames, sampler, levels and kind; a clip by its file's content and
its part in seconds. So another model or reading never meets these taps, a file that changed is encoded anew, and one
that was only moved is not. A run that was killed keeps every clip whose file was written. Knows nothing of branches,
losses or metrics.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from clipvid._files import explained, require_writable
from clipvid.bases import preprocess_fields
from clipvid.cache import codec
from clipvid.cache.kept import KeptTaps, KeptTrunk
from clipvid.cache.recipe import MODES, Recipe, write_recipe
from clipvid.cache.shards import Shards, write_shard
from clipvid.cache.store import TapStore, check_storable
from clipvid.cache.stream import stream_taps, trained_reading
from clipvid.cache.texts import TextCache
from clipvid.cache.upkeep import in_words
from clipvid.config import Reading
from clipvid.data.files import content_hash
from clipvid.data.record import Record, VideoData
from clipvid.errors import CacheError, VideoError
from clipvid.model import VideoCLIP
from clipvid.precision import autocast, resolve
from clipvid.rerun import check_rerunnable, token_type
from clipvid.taps import Geometry, Taps

SPARE = 64 * 2**20
"""Bytes of a disk that a cache leaves free."""


class TapCache:
    """A folder of taps. `store` gives those of a data set, encoding what is not there yet."""

    def __init__(self, folder: str | Path, *, kind: str = "bf16", mode: str = "taps") -> None:
        """`kind` is how features are kept (`codec.KINDS`), `mode` which: taps, or trunk, the lowest level alone.

        ValueError for another of them, and where no folder can be made.
        """
        for name, value, allowed in (("kind", kind, codec.KINDS), ("mode", mode, MODES)):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
        if not Path(folder).is_dir():
            require_writable(folder, folder=True)
        self.folder, self.kind, self.mode = Path(folder), kind, mode

    def __str__(self) -> str:
        return f"a tap cache of kind {self.kind} and mode {self.mode}"

    def recipe(self, model: VideoCLIP, reading: Reading) -> Recipe:
        """What decides the taps of this model's branch, read so."""
        levels = tuple(model.branch.levels)
        return Recipe(
            tower=model.backbone.tower_fingerprint,
            preprocess=json.dumps(preprocess_fields(model.backbone.preprocess_config), sort_keys=True),
            precision=resolve(reading.precision, model.device),
            frames=reading.frames,
            sampler=reading.sampler,
            levels=levels if self.mode == "taps" else _trunk_of(model),
            kind=self.kind if self.mode == "taps" else self._trunk_kind(model, reading),
            mode=self.mode,
        )

    def _trunk_kind(self, model: VideoCLIP, reading: Reading) -> str:
        """bf16 is for tokens that are bfloat16: of others the last digits would be missing where blocks go on."""
        with autocast(reading.precision, model.device):
            exact = token_type(model.backbone) == torch.bfloat16
        return "fp32" if self.kind == "bf16" and not exact else self.kind

    def needs(self, model: VideoCLIP, data: VideoData, reading: Reading | None = None) -> int:
        """Bytes that the clips of `data` that are not there yet would take."""
        reading = reading or trained_reading(model, data.terms)
        recipe = self.recipe(model, reading)
        return _needed(model, recipe, Shards(self.folder / recipe.key), _keys(data))

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
        shards = Shards(self.folder / recipe.key)
        keys = _keys(data)
        self._check_room(_needed(model, recipe, shards, keys))
        lost: list[VideoError] = []
        rows = [row for row, key in enumerate(keys) if key is None or key not in shards]
        if rows:
            write_recipe(shards.folder, recipe)
            absent = data.subset(rows), [keys[row] for row in rows]
            for errors in self._filled(recipe, shards, model, *absent, reading, progress=progress):
                lost.extend(errors)
        kept = [row for row, key in enumerate(keys) if key is not None and key in shards]
        if not kept:
            raise ValueError(
                f"none of the {len(data)} videos of {data.name} could be read" + (f"; first: {lost[0]}" if lost else "")
            )
        taps = _kept(model, recipe, shards, [str(keys[row]) for row in kept])
        texts = TextCache(self.folder)
        return TapStore(taps, data.surviving(kept), reading, recipe.tower, tuple(lost), texts, str(self))

    def _filled(
        self,
        recipe: Recipe,
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
                        write_shard(shards.folder, written, _named(_to_keep(taps, recipe), recipe.kind))
                    except OSError as error:
                        what = f"{explained(error)}; what is there stays, and the next run goes on from it"
                        raise CacheError(what) from error
                    shards.look()
                yield batch.unreadable

    def _check_room(self, needed: int) -> None:
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed and needed > free - SPARE:
            raise CacheError(
                f"{self.folder} needs {in_words(needed)} for clips that are not there yet, the disk has "
                f"{in_words(free)}; choose another folder, mode trunk, a smaller kind (int8), or fewer frames"
            )


def _trunk_of(model: VideoCLIP) -> tuple[int]:
    """The lowest level that the branch reads: the others follow from it."""
    check_rerunnable(model.backbone)
    if not model.branch.levels:
        raise ValueError("this branch reads no inner level, so there is no trunk to keep; choose mode taps")
    return (min(model.branch.levels),)


def _live_type(recipe: Recipe) -> torch.dtype:
    """In which taps of that precision go to the branch, live ones (`VideoCLIP.encode_frames`) and kept ones alike."""
    if recipe.precision == "bf16-mixed":
        return torch.bfloat16
    return torch.float16 if (recipe.precision, recipe.kind) == ("16-mixed", "fp16") else torch.float32


def _to_keep(taps: Taps, recipe: Recipe) -> Taps:
    """The levels that are kept; as the branch takes them, but for a trunk, which the tower takes again."""
    chosen = taps.select(recipe.levels).to("cpu")
    return chosen if recipe.mode == "trunk" else chosen.to(dtype=_live_type(recipe))


def _kept(model: VideoCLIP, recipe: Recipe, shards: Shards, keys: Sequence[str]) -> KeptTaps | KeptTrunk:
    held, live = recipe.levels, _live_type(recipe)
    if recipe.mode == "taps":
        return KeptTaps(shards, keys, held=held, levels=held, dtype=live)
    one = KeptTaps(shards, keys, held=held, levels=held, dtype=torch.float32)
    return KeptTrunk(one, model.backbone, model.branch.levels, precision=recipe.precision, dtype=live)


def _needed(model: VideoCLIP, recipe: Recipe, shards: Shards, keys: Sequence[str | None]) -> int:
    """Bytes of the clips that are not there yet."""
    missing = {key for key in keys if key is not None and key not in shards}
    return len(missing) * clip_bytes(model.backbone.geometry(recipe.levels), recipe.frames, recipe.kind)


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
