"""Cross-frame mixers: the modules with which a STAN layer lets the frames of a clip see each other.

Contract: patch tokens (B, T, N, D) in, the residual to add to them out, zero for every mixer at step 0; frames whose
mask is False neither give nor matter. Knows nothing of CLIP or of fusion.
Paper: Liu et al., STAN (CVPR 2023), section 3.3 (cross-frame module): attention, eq. 8; convolution, eq. 9. Relational
self-attention in their place is ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    """Attention among patches along time (or as another `kind` of attention_patterns says), an identity at first.

    With `linear`, zero-initialised linear (drop path (MSA (LN x))): the step of TimeSformer and of released STAN, whose
    `temporal_fc` it is. Without, the attention's own output projection starts at zero (ViViT's model 3; the paper
    zeroes all of it, after which nothing but the bias could ever learn). With `cls_key` the class token is a key for
    every patch (TimeSformer's eq. 11), but asks nothing.
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
        self.norm = nn.LayerNorm(width, eps=eps)
        self.attention = SelfAttention(width, heads)
        self.out = nn.Linear(width, width) if linear else nn.Identity()
        self.kind, self.drop_path, self.cls_key = kind, drop_path, cls_key
        _zero(self.out if isinstance(self.out, nn.Linear) else self.attention.out)

    def copy_attention(self, block: Block) -> None:
        """Take norm and attention of a block of the same width, what starts at zero left as it is."""
        self.norm.load_state_dict(block.norm1.state_dict())
        own = self.attention.state_dict()
        learnt = block.attention.state_dict()
        if isinstance(self.out, nn.Identity):
            learnt |= {"out.weight": own["out.weight"], "out.bias": own["out.bias"]}
        if "qkv.bias" not in learnt:
            learnt["qkv.bias"] = torch.zeros_like(own["qkv.bias"])
        self.attention.load_state_dict(learnt)

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        *,
        grid: tuple[int, int],
        mask: Bool[Tensor, "b t"] | None = None,
        cls: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        key = self.norm(cls) if self.cls_key and cls is not None else None
        _, found = attend_in_groups(self._dropped, self.norm(x), kind=self.kind, grid=grid, cls=key, mask=mask)
        return self.out(found)

    def _dropped(self, x: Tensor, *, mask: Tensor | None = None, pattern: Pattern | None = None) -> Tensor:
        mixed = self.attention(x, mask=mask, pattern=pattern)
        return stochastic_depth(mixed, self.drop_path, "row", self.training)  # a row is one sequence, as released


def attention_mixer(width: int, heads: int, *, drop_path: float = 0.0) -> AttentionStep:
    """Each patch position attends to itself along time (STAN, eq. 8)."""
    return AttentionStep(width, heads, drop_path=drop_path)


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


class RSAMixer(nn.Module):
    """Relational self-attention over time and grid: zero-initialised linear (drop path (RSA (LN x))).

    The linear plays the part of the last batch norm in the released network's blocks, which starts at zero too.
    `queries` (default: channels of 32 or fewer each) and `bottleneck` keep the cost of fine grids down: per token, RSA
    holds 3 (D / bottleneck / queries)^2 numbers. A `kernel` of (5, 1, 1) looks along time only.
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
            raise ValueError(f"bottleneck must divide the width {width}, got {bottleneck}")
        inner = width // bottleneck
        if queries is None:
            queries = next(inner // d for d in range(min(32, inner), 0, -1) if inner % d == 0)
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, inner) if bottleneck > 1 else nn.Identity()
        self.relate = RSA(
            inner, queries=queries, kernel=kernel, kernel_type=kernel_type, context_type=context_type, form=form
        )
        self.out = _zero(nn.Linear(inner, width))
        self.drop_path = drop_path

    def forward(
        self, x: Float[Tensor, "b t n d"], *, grid: tuple[int, int], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t n d"]:
        tokens = self.down(self.norm(x)).unflatten(2, grid)
        tokens = self.relate(tokens, mask=mask).flatten(2, 3)
        return self.out(stochastic_depth(tokens, self.drop_path, "row", self.training))


MIXERS: dict[str, Callable[..., nn.Module]] = {
    "attention": attention_mixer,
    "conv": ConvMixer,
    "conv_full": ConvFullMixer,
    "rsa": RSAMixer,
}


def mixer_options(name: str) -> dict[str, Any]:
    """The options of a mixer that a user may change, and their defaults."""
    known = inspect.signature(MIXERS[name]).parameters.values()
    return {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.name != "drop_path"}


def check_mixer(name: str, options: Mapping[str, Any]) -> None:
    """ValueError for a mixer that does not exist, and for options that it has not."""
    if name not in MIXERS:
        raise ValueError(f"unknown mixer {name!r}; choose one of {', '.join(MIXERS)}")
    known = mixer_options(name)
    told = ", ".join(known) or "none"
    if not isinstance(options, Mapping):
        raise ValueError(f"mixer_options are values by name, got {options!r}; mixer {name} has {told}")
    for option in options:
        if option not in known:
            raise ValueError(f"mixer {name} has no option {option!r}; it has {told}")


def _hide(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the masked frames, as a convolution's own padding would."""
    return x if mask is None else x * mask[:, :, None, None].to(x.dtype)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
