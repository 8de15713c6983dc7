"""Fused copies: a module of open_clip's or timm's with the same weights and fewer operations under autocast.

Contract: a module in; one of the same calls out, to be run under autocast. `trainable_copy`, the fused copy for
training, shares every parameter and avoids the work of torch's MultiheadAttention on a batch of sequences (its
projection is copied for every position). `frozen_copy`, the inference copy, also holds the weights that autocast would
cast, cast once: autocast casts frozen weights at every pass. The rest is shared with the module and stays in float32.
`FusedCopies` makes such copies when they are first asked for, and anew when a weight or an activation has changed.
Knows nothing of towers or images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.models.backbone.weight_cache import WeightCache, is_tracked, parts_of, weights_of
from clipvid.nn.attention import QuickGELU, attend

LARGE = 8
"""Smallest side of a patch whose convolution is run as a linear: below, unfolding costs more than it saves."""
Make = Callable[[nn.Module, nn.Module], nn.Module | None]
"""From a module and the one that it is part of to what takes its place, or None."""


class FusedCopies:
    """Fused copies of one module, for many threads; empty after the owner was copied or unpickled.

    A copy is never written to once it is made: a changed weight makes another copy, and a pass that runs keeps its own.
    `WeightCache` says which writes are noticed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inference = WeightCache()
        self._training: tuple[Any, nn.Module] | None = None

    def of(self, module: Any, *, grad: bool) -> Any:
        """Return the module's copy for passes with or without gradients under autocast, elsewhere the module itself.

        Modules with weights of another type than float32 stay as they are, and so do shapes without weights (meta),
        weights that were created in inference mode, and modules that torch.compile traces or has compiled or a CUDA
        graph captures.
        """
        if torch.compiler.is_compiling() or module._compiled_call_impl is not None:
            return module
        weights = list(module.parameters())
        device = weights[0].device.type if weights else "meta"
        if device == "meta" or not torch.is_autocast_enabled(device):
            return module
        if any(w.dtype != torch.float32 for w in weights) or not is_tracked(module):
            return module
        if device == "cuda" and torch.cuda.is_current_stream_capturing():
            return module  # a graph would go on reading the memory of a copy that is long gone
        return self.trainable(module) if grad else self.frozen(module, torch.get_autocast_dtype(device))

    def frozen(self, module: nn.Module, dtype: torch.dtype) -> Any:
        """Return the copy with weights cast to `dtype`, for passes without gradients."""
        return self._inference.get(dtype, module, partial(_inference_copy, module, dtype))

    def trainable(self, module: nn.Module) -> Any:
        """Return the copy that shares every parameter, for passes with gradients."""
        shared = shared_by(module)
        with self._lock:
            if self._training is None or self._training[0] != shared:
                self._training = (shared, trainable_copy(module))
            return self._training[1]

    def forget(self) -> None:
        """Make every copy anew when it is next asked for."""
        self._inference.forget()
        with self._lock:
            self._training = None

    def __reduce__(self) -> tuple[type[FusedCopies], tuple[()]]:
        return FusedCopies, ()  # the weights of a copied or unpickled owner are others


def shared_by(module: nn.Module) -> Any:
    """Return a value that differs once a training copy no longer shares a module's weights and parts."""
    return parts_of(module), [(id(w), w.data_ptr()) for w in weights_of(module)]


def _inference_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    with torch.inference_mode(False), torch.no_grad():
        made = frozen_copy(module, dtype)
    device = next(module.parameters()).device
    if device.type == "cuda":  # other threads may run it on streams of their own
        torch.cuda.current_stream(device).synchronize()
    return made


def frozen_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same module with the weights of linears, patches and attention cast, and these run as this device likes."""

    def fused(part: nn.Module, parent: nn.Module) -> nn.Module | None:
        if isinstance(part, _Folded):
            return FrozenLinear(part.weight, part.bias, dtype, factors=part.factors, then=part.then)
        if type(part) is nn.Linear:
            return FrozenLinear(part.weight, part.bias, dtype)
        if type(part) is nn.Conv2d and _is_patches(part):
            return FrozenPatches(part, dtype)
        if isinstance(part, nn.MultiheadAttention) and _is_plain(part, parent):
            linears = (FrozenLinear(w, b, dtype) for w, b in _linears_of(part))
            return FusedAttention(*linears, heads=part.num_heads, batch_first=part.batch_first)
        return None

    made = _shared_copy(module)
    for part in list(made.modules()):
        if _is_mlp(part):
            _fold_quick_gelu(part, dtype)
    return _replaced(made, fused)


def trainable_copy(module: nn.Module) -> nn.Module:
    """The same module and the same parameters, with fused attention and activation."""

    def fused(part: nn.Module, parent: nn.Module) -> nn.Module | None:
        if isinstance(part, nn.MultiheadAttention) and _is_plain(part, parent):
            linears = (_Given(w, b) for w, b in _linears_of(part))
            return FusedAttention(*linears, heads=part.num_heads, batch_first=part.batch_first)
        return QuickGELU() if type(part).__name__ == QuickGELU.__name__ else None

    return _replaced(_shared_copy(module), fused)


def _shared_copy(module: nn.Module) -> nn.Module:
    """Modules anew, parameters and buffers the same objects."""
    memo: dict[int, Any] = {id(w): w for w in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, memo)


def _replaced(made: nn.Module, make: Make) -> nn.Module:
    for parent in list(made.modules()):
        for name, part in list(parent.named_children()):
            if (new := make(part, parent)) is not None:
                setattr(parent, name, new)
    return made


class FrozenLinear(nn.Module):
    """A linear of cast weights, in the order in which this machine's library multiplies them fastest.

    `factors` multiply weight and bias; `then` is what oneDNN does to each value before it writes it ("swish", its name
    of silu), where it multiplies (`orders`).
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        factors: tuple[float, float] = (1.0, 1.0),
        then: str = "none",
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias  # as they were, for who reads them past `forward` (timm's EVA)
        self.dtype = dtype
        cast = (factors[0] * weight.detach()).to(dtype)
        cast_bias = None if bias is None else (factors[1] * bias.detach()).to(dtype)
        self.multiply = _multiplier(cast, cast_bias, then)

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        return self.multiply(x.to(self.dtype))


def _multiplier(weight: Tensor, bias: Tensor | None, then: str) -> Callable[[Tensor], Tensor]:
    """x W^T + b. On a CPU by oneDNN with its own order of weights, as torch's compiler does it: else every call orders
    them anew, and writes the bias to the whole result before the product."""
    if orders(weight, weight.dtype):
        return _ordered(weight, bias, then)
    return lambda x: F.linear(x, weight, bias)


def orders(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by this weight, cast to `dtype`, in an order of its own."""
    return weight.device.type == "cpu" and _can_order(dtype)


def _ordered(weight: Tensor, bias: Tensor | None, then: str) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, then, [], "")


@cache
def _can_order(dtype: torch.dtype) -> bool:
    """oneDNN is there, and multiplies as it should: torch names these operations its own, and may change them."""
    x, weight, bias = (torch.linspace(-1, 1, n, dtype=dtype) for n in (96, 2048, 64))
    x, weight = x.view(3, 32), weight.view(64, 32)
    try:
        found = [_ordered(weight, bias, then)(x) for then in ("none", "swish")]
    except (AttributeError, RuntimeError, TypeError):
        return False
    plain = F.linear(x, weight, bias).float()
    right = zip(found, (plain, F.silu(plain)), strict=True)
    return all(torch.allclose(got.float(), wanted, rtol=0.05, atol=0.05) for got, wanted in right)


class FrozenPatches(nn.Module):
    """A convolution that cuts an image into patches, as one product: the stem of a ViT."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.side = conv.kernel_size
        self.linear = FrozenLinear(conv.weight.flatten(1), conv.bias, dtype)

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d h w"]:
        (h, w), (rows, columns) = (s // k for s, k in zip(images.shape[-2:], self.side, strict=True)), self.side
        images = images[..., : h * rows, : w * columns].to(self.linear.dtype)
        cut = images.unflatten(2, (h, rows)).unflatten(4, (w, columns))  # (B, C, h, rows, w, columns)
        patches = self.linear(cut.permute(0, 2, 4, 1, 3, 5).flatten(3))  # (B, h, w, D)
        return patches.permute(0, 3, 1, 2)


def _is_patches(conv: nn.Conv2d) -> bool:
    whole = conv.kernel_size == conv.stride and conv.groups == 1 and conv.padding in ((0, 0), "valid")
    return whole and conv.dilation == (1, 1) and min(conv.kernel_size) >= LARGE


class FusedAttention(nn.Module):
    """torch's MultiheadAttention for self-attention without weights, as open_clip calls it."""

    def __init__(self, qkv: nn.Module, out: nn.Module, *, heads: int, batch_first: bool) -> None:
        super().__init__()
        self.qkv, self.out = qkv, out
        self.heads, self.batch_first = heads, batch_first

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        assert query is key, "self-attention alone"
        assert key is value, "self-attention alone"
        assert not need_weights, "the kernel keeps no weights"
        x = query if self.batch_first else query.transpose(0, 1)
        b, length, d = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # (B, A, L, d)
        if attn_mask is None:
            mixed = attend(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask.to(q.dtype))
        mixed = self.out(mixed.transpose(1, 2).reshape(b, length, d))
        return mixed if self.batch_first else mixed.transpose(0, 1), None


def _is_plain(attention: nn.MultiheadAttention, parent: nn.Module) -> bool:
    """torch's own, with one projection and nothing beside it, in a block that asks it for self-attention alone."""
    own = type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
    alone = type(parent).__name__ == "ResidualAttentionBlock" and not hasattr(parent, "ln_1_kv")
    return own and alone and attention.bias_k is None and not attention.add_zero_attn and not attention.dropout


def _linears_of(attention: nn.MultiheadAttention) -> list[tuple[Any, Any]]:
    out = attention.out_proj
    return [(attention.in_proj_weight, attention.in_proj_bias), (out.weight, out.bias)]


class _Given(nn.Module):
    """A linear of given tensors."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _is_mlp(module: nn.Module) -> bool:
    """Linear, QuickGELU, linear: open_clip's or ours."""
    names = [type(part).__name__ for part in module.children()]
    return isinstance(module, nn.Sequential) and names == ["Linear", QuickGELU.__name__, "Linear"]


def _fold_quick_gelu(mlp: Any, dtype: torch.dtype) -> None:
    """x sigmoid(1.702 x) = silu(1.702 x) / 1.702, whose factors go into the linears before and behind it.

    Where oneDNN multiplies it takes the silu along: a pass less over the largest tensor of a block.
    """
    ordered = orders(mlp[0].weight, dtype)
    mlp[0] = _Folded(mlp[0], (1.702, 1.702), then="swish" if ordered else "none")
    mlp[1], mlp[2] = nn.Identity() if ordered else nn.SiLU(inplace=True), _Folded(mlp[2], (1 / 1.702, 1.0))


class _Folded(nn.Module):
    """A linear, the factors of its weight and bias and what follows, on its way to a FrozenLinear."""

    def __init__(self, linear: nn.Linear, factors: tuple[float, float], *, then: str = "none") -> None:
        super().__init__()
        self.weight, self.bias, self.factors, self.then = linear.weight, linear.bias, factors, then
