"""Cross-frame mixers: the modules with which a STAN layer lets the frames of a clip see each other.

Contract: patch tokens (B, T, N, D) in, the residual to add to them out, zero for every mixer at step 0; frames whose
mask is False neither give nor matter. Knows nothing of CLIP, of class tokens or of fusion.
Paper: Liu et al., STAN (CVPR 2023), section 3.3 (cross-frame module): attention, eq. 8; convolution, eq. 9.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from clipvid.nn.attention import SelfAttention


class AttentionMixer(nn.Module):
    """Each patch position attends to itself along time: zero-initialised linear (drop path (MSA (LN x))).

    As in the released code, where the zero-initialised `temporal_fc` makes the step an identity at first.
    """

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.out = _zero(nn.Linear(width, width))
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t n d"]:
        n = x.shape[2]
        tokens = rearrange(x, "b t n d -> (b n) t d")
        keys = None if mask is None else mask.repeat_interleave(n, dim=0)  # (B·N, T)
        tokens = self.attention(self.norm(tokens), mask=keys)
        tokens = self.out(stochastic_depth(tokens, self.drop_path, "row", self.training))
        return rearrange(tokens, "(b n) t d -> b t n d", n=n)


class ConvMixer(nn.Module):
    """The paper's convolution: down to D/8, 3x1x1 along time, GELU, up; the way up starts at zero (eq. 9)."""

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = max(1, width // 8)
        self.down = nn.Linear(width, hidden)
        self.conv = nn.Conv1d(hidden, hidden, kernel_size=3, padding=1)  # 3x1x1: along time only
        self.up = _zero(nn.Linear(hidden, width))
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t n d"]:
        n = x.shape[2]
        tokens = _hide(self.down(x), mask)
        tokens = F.gelu(self.conv(rearrange(tokens, "b t n d -> (b n) d t")))
        tokens = self.up(rearrange(tokens, "(b n) d t -> b t n d", n=n))
        return stochastic_depth(tokens, self.drop_path, "row", self.training)


class ConvFullMixer(nn.Module):
    """The first released code's convolution: full-width 3x3x3 over time and grid, then a zero-initialised linear."""

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=1)
        self.out = _zero(nn.Linear(width, width))
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t n d"]:
        h, w = grid
        tokens = self.conv(rearrange(_hide(x, mask), "b t (h w) d -> b d t h w", h=h, w=w))
        tokens = rearrange(tokens, "b d t h w -> b t (h w) d")
        return self.out(stochastic_depth(tokens, self.drop_path, "row", self.training))


MIXERS: dict[str, Callable[..., nn.Module]] = {
    "attention": AttentionMixer,
    "conv": ConvMixer,
    "conv_full": ConvFullMixer,
}


def _hide(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the masked frames, as a convolution's own padding would."""
    return x if mask is None else x * mask[:, :, None, None].to(x.dtype)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
