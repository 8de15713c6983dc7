"""Local motion: one feature vector for the frame-to-frame changes of a clip at each grid position.

Contract: patch tokens (B, T, N, D) on a grid in, a feature vector (B, F) out. Frames whose mask is False have no
influence. Knows nothing of CLIP, of class tokens or of fusion. Ours, not from a paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


class LocalMotion(nn.Module):
    """LN of the mean, over positions and pairs of neighbouring frames, of GELU(linear [LN s for each signal s]).

    The four signals are the sum of both frames, their difference, and the slopes of the difference across and down the
    grid. The slopes detect motions that no single position shows, such as turning: one side of a wheel moves up, the
    other down.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norms: nn.ModuleList = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mix: nn.Linear = nn.Linear(4 * width, features)
        self.norm: nn.LayerNorm = nn.LayerNorm(features)

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b f"]:
        before, after = x[:, :-1], x[:, 1:]
        change = after - before
        signals = [before + after, change, *_slopes(change, grid)]
        features = self.mix(torch.cat([norm(s) for norm, s in zip(self.norms, signals, strict=True)], dim=-1))
        features = F.gelu(features).mean(dim=2)  # (B, T-1, F)
        if mask is None:
            mean = features.sum(dim=1) / max(1, features.shape[1])
        else:
            both_valid = (mask[:, :-1] & mask[:, 1:])[..., None]
            mean = features.masked_fill(~both_valid, 0).sum(dim=1) / both_valid.sum(dim=1).clamp(min=1)
        return self.norm(mean)


def _slopes(
    x: Float[Tensor, "b t n d"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "b t n d"], Float[Tensor, "b t n d"]]:
    """Return central differences across and down the grid, with zeros beyond its border."""
    h, w = grid
    padded = F.pad(rearrange(x, "b t (h w) d -> b t h w d", h=h, w=w), (0, 0, 1, 1, 1, 1))
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return across.flatten(2, 3), down.flatten(2, 3)
