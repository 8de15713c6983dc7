"""Taps that lie on disk and are read when they are asked for: all levels of a branch, or one and the rest made from it.

Contract: shards and the keys of clips in, Taps out, of the type that live taps of that precision have.
`FirstLayerTaps` runs
a few of the tower's blocks for each batch. Knows nothing of what decides a key, or of branches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from clipvid.features import codec
from clipvid.features.shards import Shards
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.partial import forward_from
from clipvid.models.backbone.taps import Taps, require_levels
from clipvid.runtime.precision import autocast


class CachedTaps:
    """Taps on disk, clip i at key i; as Taps, but read when they are asked for."""

    def __init__(
        self,
        shards: Shards,
        keys: Sequence[str],
        *,
        held: Sequence[int],
        levels: Sequence[int],
        dtype: torch.dtype | None,
    ) -> None:
        self.shards, self.keys, self.held, self.levels = shards, tuple(keys), tuple(held), tuple(levels)
        self.dtype = dtype

    def select(self, levels: Sequence[int]) -> CachedTaps:
        """These levels only; ValueError for one that is not held."""
        require_levels(self.held, levels)
        return self._like(self.keys, levels)

    def part(self, rows: Sequence[int]) -> CachedTaps:
        """Some of the clips, still on disk."""
        return self._like([self.keys[row] for row in rows], self.levels)

    def gather(self, rows: Sequence[int] | Int[Tensor, " n"]) -> Taps:
        """The taps of these clips, in this order, in memory. CacheError for a damaged file."""
        clips = [self.shards.row(self.keys[int(row)]) for row in rows]
        mask = torch.stack([clip["mask"] for clip in clips]).bool()
        return Taps(
            self.levels,
            tuple(self._stacked(clips, f"patches.{level}") for level in self.levels),
            tuple(self._stacked(clips, f"cls.{level}") for level in self.levels if f"cls.{level}" in clips[0]),
            self._stacked(clips, "frames"),
            None if bool(mask.all()) else mask,
        )

    def _like(self, keys: Sequence[str], levels: Sequence[int]) -> CachedTaps:
        return CachedTaps(self.shards, keys, held=self.held, levels=levels, dtype=self.dtype)

    def _stacked(self, clips: Sequence[dict[str, Tensor]], name: str) -> Tensor:
        parts = {"": torch.stack([clip[name] for clip in clips])}
        if f"{name}.{codec.SCALE}" in clips[0]:
            parts[codec.SCALE] = torch.stack([clip[f"{name}.{codec.SCALE}"] for clip in clips])
        return codec.unpacked(parts, self.dtype)


class FirstLayerTaps:
    """One level on disk; those behind it come from the tower's own blocks, run under no_grad for each batch."""

    def __init__(
        self,
        kept: CachedTaps,
        backbone: Backbone,
        levels: Sequence[int],
        *,
        precision: str,
        dtype: torch.dtype | None,
        tower: str | None = None,
    ) -> None:
        """`kept` holds the one level; `precision` is the one in which the tower made it, `dtype` that of live taps.

        None as `dtype` leaves each tensor in the type that the tower gives it. `tower` is the fingerprint of the tower
        that made the taps; the backbone's own where it is left out.
        """
        self.kept, self.backbone, self.levels = kept, backbone, tuple(levels)
        self.precision, self.dtype = precision, dtype
        self._tower = backbone.tower_fingerprint if tower is None else tower

    def select(self, levels: Sequence[int]) -> FirstLayerTaps:
        """These levels, any from the kept one on; ValueError for a lower one, or a tower that was trained since."""
        require_levels(range(self.kept.held[0], self.backbone.levels + 1), levels)
        if self.backbone.tower_fingerprint != self._tower:
            raise ValueError(
                "the tower of the model that this trunk was opened with was trained since; open the cache anew with "
                "the model that is to read it"
            )
        return self._like(self.kept, levels)

    def part(self, rows: Sequence[int]) -> FirstLayerTaps:
        """Some of the clips, still on disk."""
        return self._like(self.kept.part(rows), self.levels)

    def gather(self, rows: Sequence[int] | Int[Tensor, " n"]) -> Taps:
        """The taps of these clips, in this order, on the tower's device. CacheError for a damaged file."""
        taps = self.kept.gather(rows).to(self.backbone.device)
        if self.levels:
            with torch.no_grad(), autocast(self.precision, self.backbone.device):
                taps = forward_from(self.backbone, taps, levels=self.levels)
        return taps.select(self.levels).to(dtype=self.dtype)

    def _like(self, kept: CachedTaps, levels: Sequence[int]) -> FirstLayerTaps:
        own = {"precision": self.precision, "dtype": self.dtype, "tower": self._tower}
        return FirstLayerTaps(kept, self.backbone, levels, **own)
