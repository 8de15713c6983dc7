"""Self-attention and the pre-norm transformer block that all branches share.

Contract: token sequences (..., L, D) in, the same shape out. A block exposes its two residuals separately, because STAN
averages the class token over frames in between. Knows nothing of frames, CLIP or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SHORT = 640
"""Longest key sequence, in tokens, for which plain matrix products train faster than torch's fused bf16 CPU kernel."""

Pattern = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention function: takes q, k and v, each (B, A, L, d) with A heads, and returns the mixed values in that shape."""


def attend(
    q: Float[Tensor, "b a l d"],
    k: Float[Tensor, "b a m d"],
    v: Float[Tensor, "b a m d"],
    *,
    mask: Bool[Tensor, "#b #a #l m"] | None = None,
) -> Float[Tensor, "b a l d"]:
    """Return scaled dot-product attention; `mask` is True where a key may be attended.

    Uses torch's fused kernel, except when training on a CPU in bf16 with short sequences. There the fused kernel's
    forward and backward pass together take 1.7 (589 tokens) to 11 times (12 tokens) as long as plain matrix products,
    although its forward pass alone is up to three times as fast (`benchmarks/branch.py`).
    """
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if needs_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT:
        return by_products(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention as two batched matrix products, with the scale applied in the first."""
    leading_shape = q.shape[:-2]
    q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))  # (B·A, L, d)
    unused_input = q.new_empty(1, 1, 1)  # baddbmm ignores it because beta is 0
    scores = torch.baddbmm(unused_input, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.unflatten(0, leading_shape).masked_fill(~mask, torch.finfo(scores.dtype).min).flatten(0, -3)
    return torch.bmm(scores.softmax(dim=-1), v).unflatten(0, leading_shape)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for q, k, v (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}; change one of them")
        self.heads = heads
        self.qkv: nn.Linear = nn.Linear(width, 3 * width, bias=bias)
        self.out: nn.Linear = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        pattern: Pattern | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Attend within each sequence; `mask` (B, L) is False for keys that no query may attend.

        `pattern` replaces `attend` when the tokens do not all attend to the same keys.
        """
        b, length, d = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # (B, A, L, d)
        key_mask = None if mask is None else mask[:, None, None, :]
        mixed = attend(q, k, v, mask=key_mask) if pattern is None else pattern(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(b, length, d))


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP weights: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return _QuickGELU.apply(x)


class _QuickGELU(torch.autograd.Function):
    """QuickGELU as silu(1.702 x) / 1.702: three memory passes forward and one backward, instead of autograd's nine.

    The hidden activation is the largest tensor of a block. On a CPU, one pass over it costs up to a fifth of the matrix
    product that computed it. One tensor is saved for the backward pass instead of two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = 1.702 * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / 1.702)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0], scaled)


class MLP(nn.Sequential):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, *, activation: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__(nn.Linear(width, hidden), activation(), nn.Linear(hidden, width))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(LN x), then x + mlp(LN x).

    `attention_residual` and `mlp_residual` return the two terms separately; `forward` is the ordinary block.
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
        self.norm1: nn.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.attention: SelfAttention = SelfAttention(width, heads, bias=bias)
        self.norm2: nn.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.mlp: Any = MLP(width, hidden or 4 * width, activation=activation)
        self.scale1: nn.Parameter | None = nn.Parameter(torch.ones(width)) if layer_scale else None
        self.scale2: nn.Parameter | None = nn.Parameter(torch.ones(width)) if layer_scale else None

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
