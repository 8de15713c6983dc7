"""Self-attention and the pre-norm transformer block that every branch is made of.

Contract: token sequences (..., L, D) in, the same shape out; a block gives its two residuals apart, because STAN
averages the class token between them. Knows nothing of frames, CLIP or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

SHORT = 256
"""Longest key sequence for which plain matrix products beat torch's fused kernel on a bf16 CPU (see `attend`)."""

Pattern = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q, k and v, each (B, A, L, d), to what attention mixes, of the same shape."""


def attend(
    q: Float[Tensor, "b a l d"],
    k: Float[Tensor, "b a m d"],
    v: Float[Tensor, "b a m d"],
    *,
    mask: Bool[Tensor, "#b #a #l m"] | None = None,
) -> Float[Tensor, "b a l d"]:
    """Scaled dot-product attention; `mask` is True where a key may be attended.

    torch's fused kernel, except on a CPU in bf16 with short sequences: there its backward takes 3 to 8 times as long
    as plain matrix products (measured on AVX-512 bf16, sequences of 8 to 197 tokens), and its forward about twice.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for q, k, v (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        pattern: Pattern | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Attend within each sequence; `mask` (B, L) is False for keys that nobody may attend.

        `pattern` takes the place of `attend`, for tokens that do not all attend to the same keys.
        """
        b, length, d = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # (B, A, L, d)
        keys = None if mask is None else mask[:, None, None, :]
        mixed = attend(q, k, v, mask=keys) if pattern is None else pattern(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(b, length, d))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class MLP(nn.Sequential):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, *, activation: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__(nn.Linear(width, hidden), activation(), nn.Linear(hidden, width))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(LN x), then x + mlp(LN x).

    `attention_residual` and `mlp_residual` are the two terms on their own; `forward` is the ordinary block.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
        eps: float = 1e-5,
        layer_scale: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = SelfAttention(width, heads, bias=bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp: Any = MLP(width, hidden or 4 * width, activation=activation)
        self.scale1 = nn.Parameter(torch.ones(width)) if layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(width)) if layer_scale else None

    def attention_residual(
        self, x: Float[Tensor, "b l d"], *, mask: Bool[Tensor, "b l"] | None = None, pattern: Pattern | None = None
    ) -> Float[Tensor, "b l d"]:
        x = self.attention(self.norm1(x), mask=mask, pattern=pattern)
        return x if self.scale1 is None else x * self.scale1

    def mlp_residual(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        x = self.mlp(self.norm2(x))
        return x if self.scale2 is None else x * self.scale2

    def forward(self, x: Float[Tensor, "b l d"], *, mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        x = x + self.attention_residual(x, mask=mask)
        return x + self.mlp_residual(x)
