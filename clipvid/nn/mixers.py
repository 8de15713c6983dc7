"""Cross-frame mixers: the modules of a STAN layer that exchange information between the frames of a clip.

Contract: patch tokens (B, T, N, D) in, the residual to add to them out. The residual of every mixer is zero at step 0.
Frames whose mask is False do not influence the others. Knows nothing of CLIP or of fusion.
Paper: Liu et al., STAN (CVPR 2023), section 3.3 (cross-frame module): attention, eq. 8; convolution, eq. 9. Using
relational self-attention as a mixer is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from clipvid.nn.attention import Block, Pattern, SelfAttention
from clipvid.nn.attention_patterns import attend_in_groups
from clipvid.nn.rsa import RSA


class AttentionStep(nn.Module):
    """Attention among patches along time, or along another `kind` of attention_patterns; its residual starts at zero.

    With `linear`: zero-initialised linear (drop path (MSA (LN x))), the step of TimeSformer and of released STAN, where
    the linear is called `temporal_fc`. Without it, the output projection of the attention starts at zero (ViViT's model
    3; the paper zeroes the entire attention, after which only the bias could ever learn). With `cls_key` the class
    token is a key for every patch (TimeSformer's eq. 11), but not a query.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kind: str = "time",
        drop_path: float = 0.0,
        linear: bool = True,
        cls_key: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm: nn.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.attention: SelfAttention = SelfAttention(width, heads)
        self.out: nn.Module = nn.Linear(width, width) if linear else nn.Identity()
        self.kind = kind
        self.drop_path = drop_path
        self.cls_key = cls_key
        _zero(self.out if isinstance(self.out, nn.Linear) else self.attention.out)

    def copy_attention(self, block: Block) -> None:
        """Copy norm and attention from a block of the same width, except for parameters that start at zero."""
        self.norm.load_state_dict(block.norm1.state_dict())
        initial = self.attention.state_dict()
        state = block.attention.state_dict()
        if isinstance(self.out, nn.Identity):
            state |= {"out.weight": initial["out.weight"], "out.bias": initial["out.bias"]}
        if "qkv.bias" not in state:
            state["qkv.bias"] = torch.zeros_like(initial["qkv.bias"])
        self.attention.load_state_dict(state)

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        *,
        grid: tuple[int, int],
        mask: Bool[Tensor, "b t"] | None = None,
        cls: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        key = self.norm(cls) if self.cls_key and cls is not None else None
        _, mixed = attend_in_groups(
            self._attend_with_drop_path, self.norm(x), kind=self.kind, grid=grid, cls=key, mask=mask
        )
        return self.out(mixed)

    def _attend_with_drop_path(
        self, x: Tensor, *, mask: Tensor | None = None, pattern: Pattern | None = None
    ) -> Tensor:
        mixed = self.attention(x, mask=mask, pattern=pattern)
        return stochastic_depth(mixed, self.drop_path, "row", self.training)  # as released, a row is one sequence


def attention_mixer(width: int, heads: int, *, drop_path: float = 0.0) -> AttentionStep:
    """Return attention along time for each patch position (STAN, eq. 8)."""
    return AttentionStep(width, heads, drop_path=drop_path)


class ConvMixer(nn.Module):
    """The paper's convolution: down to D/8, 3x1x1 along time, GELU, up to D; `up` starts at zero (eq. 9)."""

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = max(1, width // 8)
        self.down: nn.Linear = nn.Linear(width, hidden)
        self.conv: nn.Conv1d = nn.Conv1d(hidden, hidden, kernel_size=3, padding=1)  # 3x1x1: along time only
        self.up: nn.Linear = _zero(nn.Linear(hidden, width))
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t n d"]:
        n = x.shape[2]
        tokens = _zero_masked(self.down(x), mask)
        tokens = F.gelu(self.conv(rearrange(tokens, "b t n d -> (b n) d t")))
        tokens = self.up(rearrange(tokens, "(b n) d t -> b t n d", n=n))
        return stochastic_depth(tokens, self.drop_path, "row", self.training)


class ConvFullMixer(nn.Module):
    """The first released code's convolution: full-width 3x3x3 over time and grid, then a zero-initialised linear."""

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv: nn.Conv3d = nn.Conv3d(width, width, kernel_size=3, padding=1)
        self.out: nn.Linear = _zero(nn.Linear(width, width))
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t n d"]:
        h, w = grid
        tokens = self.conv(rearrange(_zero_masked(x, mask), "b t (h w) d -> b d t h w", h=h, w=w))
        tokens = rearrange(tokens, "b d t h w -> b t (h w) d")
        return self.out(stochastic_depth(tokens, self.drop_path, "row", self.training))


class RSAMixer(nn.Module):
    """Relational self-attention over time and grid: zero-initialised linear (drop path (RSA (LN x))).

    The linear replaces the last batch norm in the blocks of the released network; that norm also starts at zero.
    `queries` (default: at most 32 channels each) and `bottleneck` limit the cost on fine grids: per token, RSA stores
    3 (D / bottleneck / queries)^2 numbers. A `kernel` of (5, 1, 1) relates tokens along time only.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        drop_path: float = 0.0,
        kernel: Sequence[int] = (5, 7, 7),
        queries: int | None = None,
        bottleneck: int = 1,
        kernel_type: str = "VplusR",
        context_type: str = "VplusR",
        form: str = "hadamard",
    ) -> None:
        super().__init__()
        if not isinstance(bottleneck, int) or bottleneck < 1 or width % bottleneck:
            raise ValueError(
                f"bottleneck must be an integer >= 1 that divides the width {width}, got {bottleneck}; 1 turns it off"
            )
        inner = width // bottleneck
        if queries is None:
            queries = next(inner // d for d in range(min(32, inner), 0, -1) if inner % d == 0)
        self.norm: nn.LayerNorm = nn.LayerNorm(width)
        self.down: nn.Module = nn.Linear(width, inner) if bottleneck > 1 else nn.Identity()
        self.relate: RSA = RSA(
            inner, queries=queries, kernel=kernel, kernel_type=kernel_type, context_type=context_type, form=form
        )
        self.out: nn.Linear = _zero(nn.Linear(inner, width))
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t n d"]:
        tokens = self.down(self.norm(x)).unflatten(2, grid)
        tokens = self.relate(tokens, mask=mask).flatten(2, 3)
        return self.out(stochastic_depth(tokens, self.drop_path, "row", self.training))


def _zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set masked frames to zero, so that a convolution treats them like its own padding."""
    return x if mask is None else x * mask[:, :, None, None].to(x.dtype)


def _zero(linear: nn.Linear) -> nn.Linear:
    """Initialise weight and bias to zero and return the layer."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
