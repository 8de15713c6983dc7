"""Inputs of a branch for a batch of clips: the tower's inner levels (Taps) or its frames (Pixels).

Contract: plain data, safe to store and to move. Levels are numbered like the tower's blocks: level k is the
output of block k, level 0 the input of the first block. Knows nothing about towers or branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipvid.config import checks


@dataclass(frozen=True, repr=False)
class Taps:
    """Features of a batch of clips from the frozen tower.

    `patches` and `cls` follow the order of `levels`: (B, T, N, D_k) and (B, T, D_k). All levels are
    pooled to the last one's grid; `cls` is empty for towers without a class token. `frames` (B, T, E) are CLIP's
    frame embeddings, projected and not normalised. `mask` (B, T) is False for frames that only pad a shorter clip.
    """

    levels: tuple[int, ...]
    patches: tuple[Float[Tensor, "b t n _"], ...]
    cls: tuple[Float[Tensor, "b t _"], ...]
    frames: Float[Tensor, "b t e"]
    mask: Bool[Tensor, "b t"] | None = None

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.patches, *self.cls, self.frames))

    def map(self, change: Callable[[Tensor], Tensor]) -> Taps:
        """Return these taps with `change` applied to every feature tensor; the mask is passed on unchanged."""
        return replace(
            self,
            patches=tuple(change(p) for p in self.patches),
            cls=tuple(change(c) for c in self.cls),
            frames=change(self.frames),
        )

    def gather(self, rows: Sequence[int] | Int[Tensor, " n"]) -> Taps:
        """Return the taps of these clips, in this order."""
        chosen = torch.as_tensor(rows)
        features = replace(self, mask=None).map(
            lambda t: t[chosen]
        )  # the mask is gathered last: its size must match the clips
        return features if self.mask is None else replace(features, mask=self.mask[chosen])

    def part(self, rows: Sequence[int]) -> Taps:
        """Return `gather(rows)`: taps in memory have no cheaper way to be split."""
        return self.gather(rows)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Taps:
        moved = self.map(lambda t: t.to(device=device, dtype=dtype or t.dtype))
        return moved if self.mask is None else replace(moved, mask=self.mask.to(device=device))

    def select(self, levels: Sequence[int]) -> Taps:
        """Return these levels only, in this order; raise ValueError for a level that is missing."""
        require_levels(self.levels, levels)
        indices = [self.levels.index(level) for level in levels]
        return replace(
            self,
            levels=tuple(levels),
            patches=tuple(self.patches[i] for i in indices),
            cls=tuple(self.cls[i] for i in indices) if self.cls else (),
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}: {tuple(p.shape)}" for k, p in zip(self.levels, self.patches, strict=True))
        return f"Taps(patches=[{shapes}], class token={bool(self.cls)}, frames={tuple(self.frames.shape)})"


@dataclass(frozen=True, repr=False)
class Pixels:
    """Frames as the base model takes them, for a branch with its own stem."""

    video: Float[Tensor, "b t 3 h w"]
    mask: Bool[Tensor, "b t"] | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pixels:
        mask = None if self.mask is None else self.mask.to(device=device)
        return Pixels(self.video.to(device=device, dtype=dtype or self.video.dtype), mask)

    def __repr__(self) -> str:
        return f"Pixels({tuple(self.video.shape)})"


@dataclass(frozen=True)
class Geometry:
    """Shapes of selected levels of one tower: width of each, grid of the last, presence of a class token."""

    levels: tuple[int, ...]
    widths: tuple[int, ...]
    grid: tuple[int, int]
    embed_dim: int
    class_token: bool

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]


def check_clips(video: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless video is (B, T, 3, H, W) with B, T >= 1 and mask (B, T) has a True in every row."""
    if video.ndim != 5 or video.shape[2] != 3:
        hint = "add a batch axis with video[None]" if video.ndim == 4 else "reshape it"
        raise ValueError(f"video must be (B, T, 3, S, S), got {tuple(video.shape)}; {hint}")
    if 0 in video.shape:
        raise ValueError(f"video holds no frame, its shape is {tuple(video.shape)}; give B and T from 1")
    if mask is not None:
        advice = "convert it by torch.as_tensor"
        checks.of_type("mask", mask, Tensor, must="a tensor of truth values (B, T)", advice=advice)
    if mask is not None and (mask.shape != video.shape[:2] or not bool(mask.any(dim=1).all())):
        raise ValueError(
            f"mask must be {tuple(video.shape[:2])} with a True in every row, got {tuple(mask.shape)}; "
            "mark at least one frame of each clip"
        )


def rounded_for_autocast(source: Taps | Pixels) -> Taps | Pixels:
    """Round taps to bfloat16 under bf16 autocast, as they are cached: timm's ViTs return float32 there."""
    if isinstance(source, Pixels) or (device := source.frames.device.type) == "meta":
        return source
    rounds = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return source.to(dtype=torch.bfloat16) if rounds else source


def require_levels(available: Sequence[int], required: Sequence[int]) -> None:
    """Raise ValueError for a requested level that the taps lack."""
    if not set(required) <= set(available):
        raise ValueError(
            f"these taps hold levels {_format_levels(available)}, the branch reads {_format_levels(required)}; "
            "encode the clips with a model of that branch"
        )


def _format_levels(levels: Sequence[int]) -> str:
    return ", ".join(str(level) for level in levels) or "none"


def grid_of(shape: Sequence[int], image: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of a level: a feature map's sides, or for tokens the grid that fits the image's aspect ratio."""
    if len(shape) == 4:
        return shape[-2], shape[-1]
    n = shape[1]
    height = round((n * image[0] / image[1]) ** 0.5)
    assert height * (n // height) == n, (shape, image)
    return height, n // height


def pooled_tokens(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a level as (B·T, N, D) tokens, feature maps average-pooled to the last level's grid."""
    if level.ndim == 3:
        return level
    if tuple(level.shape[-2:]) != grid:
        level = F.adaptive_avg_pool2d(level, grid)
    return level.flatten(2).transpose(1, 2)
