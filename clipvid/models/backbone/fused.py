"""Fused copies of open_clip and timm modules: the same weights, fewer operations under autocast.

Contract: a module in; a module with the same call signature out, to be run under autocast. `trainable_copy`, the fused
copy for training, shares every parameter and replaces torch's MultiheadAttention, which copies its projection for every
position of a batch of sequences. `frozen_copy`, the inference copy, also stores the cast weights: autocast casts
frozen weights again at every pass; everything else is shared with the module and stays in float32. `FusedCopies` makes
these copies on first use and again after a weight or an activation has changed. Knows nothing about towers or images.
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
"""Smallest patch side for which a convolution runs as a linear; for smaller ones unfolding costs more than it saves."""
Make = Callable[[nn.Module, nn.Module], nn.Module | None]
"""A function of a module and its parent that returns the replacement, or None to leave the module."""


class FusedCopies:
    """Thread-safe fused copies of one module; empty after being copied or unpickled.

    A copy is never modified: after a weight changes a new copy is made, and a running pass continues with the old one.
    `WeightCache` documents which writes are noticed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inference = WeightCache()
        self._training: tuple[Any, nn.Module] | None = None

    def of(self, module: Any, *, grad: bool) -> Any:
        """Return the copy for passes with or without gradients under autocast; otherwise return the module itself.

        The module is also returned if it has weights that are not float32, on the meta device or created in inference
        mode, if torch.compile traces or has compiled it, and while a CUDA graph is captured.
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
            return module  # a captured graph would read the memory of a freed copy
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
        """Drop every copy; each is made again on demand."""
        self._inference.forget()
        with self._lock:
            self._training = None

    def __reduce__(self) -> tuple[type[FusedCopies], tuple[()]]:
        return FusedCopies, ()  # a copied or unpickled module has other weights


def shared_by(module: nn.Module) -> Any:
    """Return a value that changes as soon as a training copy no longer shares the module's weights and parts."""
    return parts_of(module), [(id(w), w.data_ptr()) for w in weights_of(module)]


def _inference_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    with torch.inference_mode(False), torch.no_grad():
        copied = frozen_copy(module, dtype)
    device = next(module.parameters()).device
    if device.type == "cuda":  # other threads may run the copy on other streams
        torch.cuda.current_stream(device).synchronize()
    return copied


def frozen_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy whose linears, patch convolutions and attention hold cast weights, in the device's fastest form."""

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

    copied = _shared_copy(module)
    for part in list(copied.modules()):
        if _is_mlp(part):
            _fold_quick_gelu(part, dtype)
    return _replaced(copied, fused)


def trainable_copy(module: nn.Module) -> nn.Module:
    """Return a copy that shares every parameter and has fused attention and activations."""

    def fused(part: nn.Module, parent: nn.Module) -> nn.Module | None:
        if isinstance(part, nn.MultiheadAttention) and _is_plain(part, parent):
            linears = (_SharedLinear(w, b) for w, b in _linears_of(part))
            return FusedAttention(*linears, heads=part.num_heads, batch_first=part.batch_first)
        return QuickGELU() if type(part).__name__ == QuickGELU.__name__ else None

    return _replaced(_shared_copy(module), fused)


def _shared_copy(module: nn.Module) -> nn.Module:
    """Return a copy of the modules that shares all parameters and buffers."""
    memo: dict[int, Any] = {id(w): w for w in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, memo)


def _replaced(copied: nn.Module, make: Make) -> nn.Module:
    for parent in list(copied.modules()):
        for name, part in list(parent.named_children()):
            if (new := make(part, parent)) is not None:
                setattr(parent, name, new)
    return copied


class FrozenLinear(nn.Module):
    """A linear with cast weights, stored in the layout that is fastest on its device.

    `factors` multiply weight and bias. `then` is the activation that oneDNN fuses into the product ("swish" is its name
    for silu); it applies only if oneDNN multiplies (`orders`).
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
        # Uncast, for code that reads them directly (timm's EVA).
        self.weight = weight
        self.bias = bias
        self.dtype = dtype
        cast = (factors[0] * weight.detach()).to(dtype)
        cast_bias = None if bias is None else (factors[1] * bias.detach()).to(dtype)
        self.multiply: Callable[[Tensor], Tensor] = _multiplier(cast, cast_bias, then)

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        return self.multiply(x.to(self.dtype))


def _multiplier(weight: Tensor, bias: Tensor | None, then: str) -> Callable[[Tensor], Tensor]:
    """Return a function that computes x W^T + b.

    On a CPU it uses oneDNN with packed weights, as torch's compiler does: otherwise every call packs the weights
    again, and writes the bias to the full result before the product.
    """
    if orders(weight, weight.dtype):
        return _packed_multiplier(weight, bias, then)
    return lambda x: F.linear(x, weight, bias)


def orders(weight: Tensor, dtype: torch.dtype) -> bool:
    """Return True if oneDNN multiplies by this weight, cast to `dtype`, in its packed layout."""
    return weight.device.type == "cpu" and _can_pack(dtype)


def _packed_multiplier(weight: Tensor, bias: Tensor | None, then: str) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, then, [], "")


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Return True if oneDNN is available and computes correctly: these are private torch operations and may change."""
    x, weight, bias = (torch.linspace(-1, 1, n, dtype=dtype) for n in (96, 2048, 64))
    x, weight = x.view(3, 32), weight.view(64, 32)
    try:
        results = [_packed_multiplier(weight, bias, then)(x) for then in ("none", "swish")]
    except (AttributeError, RuntimeError, TypeError):
        return False
    reference = F.linear(x, weight, bias).float()
    pairs = zip(results, (reference, F.silu(reference)), strict=True)
    return all(torch.allclose(result.float(), expected, rtol=0.05, atol=0.05) for result, expected in pairs)


class FrozenPatches(nn.Module):
    """A convolution that cuts an image into patches, as one matrix product: the stem of a ViT."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor = conv.weight
        self.bias: Tensor | None = conv.bias
        self.side: tuple[int, ...] = conv.kernel_size
        self.linear: FrozenLinear = FrozenLinear(conv.weight.flatten(1), conv.bias, dtype)

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d h w"]:
        (h, w), (rows, columns) = (s // k for s, k in zip(images.shape[-2:], self.side, strict=True)), self.side
        images = images[..., : h * rows, : w * columns].to(self.linear.dtype)
        cut = images.unflatten(2, (h, rows)).unflatten(4, (w, columns))  # (B, C, h, rows, w, columns)
        patches = self.linear(cut.permute(0, 2, 4, 1, 3, 5).flatten(3))  # (B, h, w, D)
        return patches.permute(0, 3, 1, 2)


def _is_patches(conv: nn.Conv2d) -> bool:
    no_overlap = conv.kernel_size == conv.stride and conv.groups == 1 and conv.padding in ((0, 0), "valid")
    return no_overlap and conv.dilation == (1, 1) and min(conv.kernel_size) >= LARGE


class FusedAttention(nn.Module):
    """torch's MultiheadAttention for self-attention that returns no attention weights, as open_clip calls it."""

    def __init__(self, qkv: nn.Module, out: nn.Module, *, heads: int, batch_first: bool) -> None:
        super().__init__()
        self.qkv = qkv
        self.out = out
        self.heads = heads
        self.batch_first = batch_first

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        assert query is key, "fused attention computes self-attention only"
        assert key is value, "fused attention computes self-attention only"
        assert not need_weights, "fused attention returns no attention weights"
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
    """Return True for torch's attention with one packed projection and no extras, in a self-attention block."""
    plain_projection = type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
    self_attention = type(parent).__name__ == "ResidualAttentionBlock" and not hasattr(parent, "ln_1_kv")
    return (
        plain_projection
        and self_attention
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not attention.dropout
    )


def _linears_of(attention: nn.MultiheadAttention) -> list[tuple[Any, Any]]:
    out = attention.out_proj
    return [(attention.in_proj_weight, attention.in_proj_bias), (out.weight, out.bias)]


class _SharedLinear(nn.Module):
    """A linear that shares the given tensors."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _is_mlp(module: nn.Module) -> bool:
    """Return True for linear, QuickGELU, linear, of open_clip or clipvid."""
    names = [type(part).__name__ for part in module.children()]
    return isinstance(module, nn.Sequential) and names == ["Linear", QuickGELU.__name__, "Linear"]


def _fold_quick_gelu(mlp: Any, dtype: torch.dtype) -> None:
    """Replace QuickGELU by silu: x sigmoid(1.702 x) = silu(1.702 x) / 1.702, both factors folded into the linears.

    If oneDNN multiplies, it fuses the silu too, which saves one pass over the largest tensor of a block.
    """
    packed = orders(mlp[0].weight, dtype)
    mlp[0] = _Folded(mlp[0], (1.702, 1.702), then="swish" if packed else "none")
    mlp[1], mlp[2] = nn.Identity() if packed else nn.SiLU(inplace=True), _Folded(mlp[2], (1 / 1.702, 1.0))


class _Folded(nn.Module):
    """A linear to become a FrozenLinear, with the factors of its weight and bias and the activation to fuse."""

    def __init__(self, linear: nn.Linear, factors: tuple[float, float], *, then: str = "none") -> None:
        super().__init__()
        self.weight, self.bias, self.factors, self.then = linear.weight, linear.bias, factors, then
