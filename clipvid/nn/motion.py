"""Local motion: how a clip changes from frame to frame at each place, as one feature vector.

Contract: patch tokens (B, T, N, D) on a grid in, features (B, H) out; frames whose mask is False neither give nor
matter. Knows nothing of CLIP, of class tokens or of fusion. Ours, not a paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


class LocalMotion(nn.Module):
    """Mean over places and neighbouring frames of GELU(linear [what is there, its change, the change's slopes]).

    The slopes are the change's differences across and down the grid, as optical flow has them: a turning wheel goes up
    on one side and down on the other, so it shows in how the change itself changes from place to place.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mix = nn.Linear(4 * width, features)
        self.norm = nn.LayerNorm(features)

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b h"]:
        before, after = x[:, :-1], x[:, 1:]
        change = after - before
        seen = [before + after, change, *_slopes(change, grid)]
        features = self.mix(torch.cat([norm(s) for norm, s in zip(self.norms, seen, strict=True)], dim=-1))
        features = F.gelu(features).mean(dim=2)  # (B, T-1, H)
        if mask is None:
            mean = features.sum(dim=1) / max(1, features.shape[1])
        else:
            both = (mask[:, :-1] & mask[:, 1:])[..., None]
            mean = features.masked_fill(~both, 0).sum(dim=1) / both.sum(dim=1).clamp(min=1)
        return self.norm(mean)


def _slopes(x: Float[Tensor, "b t n d"], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Central differences across and down the grid; beyond its border is zero."""
    h, w = grid
    padded = F.pad(rearrange(x, "b t (h w) d -> b t h w d", h=h, w=w), (0, 0, 1, 1, 1, 1))
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return across.flatten(2, 3), down.flatten(2, 3)
