"""Taps on disk, read on demand: all levels of a branch, or one level and the others computed from it.

Contract: shards and the keys of clips in, Taps out, of the type that live taps of that precision have.
`FirstLayerTaps` runs a few of the tower's blocks for each batch. Knows nothing of cache keys or branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from clipvid.errors import CacheError
from clipvid.features.shards import ADVICE, Shards
from clipvid.features.taps import codec
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.partial import forward_from
from clipvid.models.backbone.taps import Geometry, Taps, require_levels
from clipvid.runtime.precision import autocast


class CachedTaps:
    """Taps on disk, clip i at key i; the same interface as Taps, but read on demand."""

    def __init__(
        self,
        shards: Shards,
        keys: Sequence[str],
        *,
        stored: Sequence[int],
        levels: Sequence[int],
        dtype: torch.dtype | None,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.shards = shards
        self.shapes = shapes
        self.keys: tuple[str, ...] = tuple(keys)
        self.stored: tuple[int, ...] = tuple(stored)
        self.levels: tuple[int, ...] = tuple(levels)
        self.dtype = dtype

    def select(self, levels: Sequence[int]) -> CachedTaps:
        """Return the taps of these levels only. Raise ValueError for a level that is not stored."""
        require_levels(self.stored, levels)
        return self._like(self.keys, levels)

    def part(self, rows: Sequence[int]) -> CachedTaps:
        """Return the taps of these clips, still on disk."""
        return self._like([self.keys[row] for row in rows], self.levels)

    def gather(self, rows: Sequence[int] | Int[Tensor, " n"]) -> Taps:
        """Return the taps of these clips, in this order, in memory. Raise CacheError for a damaged file."""
        clips = [self._clip(self.keys[int(row)]) for row in rows]
        mask = torch.stack([clip["mask"] for clip in clips]).bool()
        return Taps(
            self.levels,
            tuple(self._stacked(clips, f"patches.{level}") for level in self.levels),
            tuple(self._stacked(clips, f"cls.{level}") for level in self.levels if f"cls.{level}" in clips[0]),
            self._stacked(clips, "frames"),
            None if bool(mask.all()) else mask,
        )

    def _clip(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of one clip; raise CacheError for those of another tower, whatever their checksum."""
        clip = self.shards.row(key)
        for name, shape in self.shapes.items():
            if name not in clip or tuple(clip[name].shape) != shape:
                actual = tuple(clip[name].shape) if name in clip else "missing"
                raise CacheError(f"{self.shards.path_of(key)} is damaged: {name} is {actual}, not {shape}; {ADVICE}")
        return clip

    def _like(self, keys: Sequence[str], levels: Sequence[int]) -> CachedTaps:
        return CachedTaps(self.shards, keys, stored=self.stored, levels=levels, dtype=self.dtype, shapes=self.shapes)

    def _stacked(self, clips: Sequence[dict[str, Tensor]], name: str) -> Tensor:
        parts = {"": torch.stack([clip[name] for clip in clips])}
        if f"{name}.{codec.SCALE}" in clips[0]:
            parts[codec.SCALE] = torch.stack([clip[f"{name}.{codec.SCALE}"] for clip in clips])
        return codec.unpacked(parts, self.dtype)


class FirstLayerTaps:
    """One level on disk; later levels come from the tower's own blocks, run under no_grad for each batch."""

    def __init__(
        self,
        cached: CachedTaps,
        backbone: Backbone,
        levels: Sequence[int],
        *,
        precision: str,
        dtype: torch.dtype | None,
        tower_fingerprint: str | None = None,
    ) -> None:
        """Compute `levels` from the single level of `cached`, at `precision`, at which the tower computed that level.

        `dtype` is the type of live taps; None leaves each tensor in the type of the tower's output.
        `tower_fingerprint` is that of the tower that computed the level, by default the backbone's.
        """
        self.cached = cached
        self.backbone = backbone
        self.levels: tuple[int, ...] = tuple(levels)
        self.precision = precision
        self.dtype = dtype
        self._tower_fingerprint = backbone.tower_fingerprint if tower_fingerprint is None else tower_fingerprint

    def select(self, levels: Sequence[int]) -> FirstLayerTaps:
        """Return the taps of these levels. Raise ValueError for one below the cached level or a tower trained since."""
        require_levels(range(self.cached.stored[0], self.backbone.levels + 1), levels)
        if self.backbone.tower_fingerprint != self._tower_fingerprint:
            raise ValueError(
                "the tower was trained since this first-layer cache was opened; open the cache again with the trained "
                "model"
            )
        return self._like(self.cached, levels)

    def part(self, rows: Sequence[int]) -> FirstLayerTaps:
        """Return the taps of these clips, still on disk."""
        return self._like(self.cached.part(rows), self.levels)

    def gather(self, rows: Sequence[int] | Int[Tensor, " n"]) -> Taps:
        """Return the taps of these clips, in this order, on the tower's device. Raise CacheError for a damaged file."""
        taps = self.cached.gather(rows).to(self.backbone.device)
        if self.levels:
            with torch.no_grad(), autocast(self.precision, self.backbone.device):
                taps = forward_from(self.backbone, taps, levels=self.levels)
        return taps.select(self.levels).to(dtype=self.dtype)

    def _like(self, cached: CachedTaps, levels: Sequence[int]) -> FirstLayerTaps:
        options = {"precision": self.precision, "dtype": self.dtype, "tower_fingerprint": self._tower_fingerprint}
        return FirstLayerTaps(cached, self.backbone, levels, **options)


def shapes_of(geometry: Geometry, levels: Sequence[int], *, frames: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of one clip by name."""
    shapes: dict[str, tuple[int, ...]] = {"mask": (frames,), "frames": (frames, geometry.embed_dim)}
    for level, width in zip(levels, geometry.widths, strict=True):
        shapes[f"patches.{level}"] = (frames, geometry.patches, width)
        if geometry.class_token:
            shapes[f"cls.{level}"] = (frames, width)
    return shapes
