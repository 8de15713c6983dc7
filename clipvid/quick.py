"""A module of somebody else's at its quickest under autocast: the same weights, the same calls, fewer detours.

Contract: a module in; one of the same calls out, to be run under autocast. `trainable_copy` shares every parameter and
goes around what torch's MultiheadAttention does to a batch of sequences (its projection is copied for every position);
`frozen_copy` has in addition the weights that autocast would cast, cast: of what is frozen autocast remembers nothing
and casts at every pass. The rest is shared with the module and stays in float32. `Quick` makes such copies when they
are first asked for, and anew when a weight or an activation has changed; on a GPU weights are cast anew at every pass.
Knows nothing of towers or images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.nn.attention import QuickGELU, attend

PROBES = 4
"""Values of each weight that are compared to see that it is as it was, beside torch's own count of writes.

Writes through `.data` and those of fused optimisers are not counted. They are noticed where they change one of these
values, so not where single entries of a weight are written. On a GPU nothing is compared.
"""
LARGE = 8
"""Smallest side of a patch whose convolution is run as a linear: below, unfolding costs more than it saves."""
Make = Callable[[nn.Module, nn.Module], nn.Module | None]
"""From a module and the one that it is part of to what takes its place, or None."""


class Quick:
    """Quick copies of one module, by what they are for; not copied or saved with whoever holds them."""

    def __init__(self) -> None:
        self._frozen: dict[torch.dtype, tuple[Any, Tensor, nn.Module]] = {}
        self._recasts: dict[torch.dtype, tuple[Any, nn.Module]] = {}
        self._trainable: tuple[Any, nn.Module] | None = None

    def of(self, module: Any, *, grad: bool) -> Any:
        """Under autocast the module's copy for passes with or without gradients; elsewhere the module itself.

        Modules that hold no float32 alone are left as they are, and so are shapes without weights (meta) and what
        torch.compile traces or has compiled, which finds the detours itself.
        """
        if torch.compiler.is_compiling() or module._compiled_call_impl is not None:
            return module
        weights = list(module.parameters())
        device = weights[0].device.type if weights else "meta"
        if device == "meta" or not torch.is_autocast_enabled(device):
            return module
        if any(w.dtype != torch.float32 for w in weights):
            return module
        return self.trainable(module) if grad else self.frozen(module, torch.get_autocast_dtype(device))

    def frozen(self, module: nn.Module, dtype: torch.dtype) -> Any:
        """The copy with weights cast to `dtype`, for passes without gradients.

        On a GPU weights are cast at every pass, by a few kernels: to compare values, as on a CPU, it would have to
        finish its queue first.
        """
        if next(module.parameters()).is_cuda:
            return self._recast(module, dtype)
        writes, values = state_of(module)
        known = self._frozen.get(dtype)
        if known is None or known[0] != writes or not torch.equal(known[1], values):
            known = self._frozen[dtype] = (writes, values, frozen_copy(module, dtype))
        return known[2]

    def _recast(self, module: nn.Module, dtype: torch.dtype) -> Any:
        shared = shared_by(module)
        with torch.inference_mode(False), torch.no_grad():  # what inference mode makes, later passes could not write to
            if dtype in self._recasts and self._recasts[dtype][0] == shared:
                recast(self._recasts[dtype][1])
            else:
                self._recasts[dtype] = shared, frozen_copy(module, dtype)
        return self._recasts[dtype][1]

    def trainable(self, module: nn.Module) -> Any:
        """The copy that shares every parameter, for passes with gradients."""
        shared = shared_by(module)
        if self._trainable is None or self._trainable[0] != shared:
            self._trainable = (shared, trainable_copy(module))
        return self._trainable[1]

    def __reduce__(self) -> tuple[type[Quick], tuple[()]]:
        return Quick, ()  # copied or pickled it is empty: a copy's weights are others


def shared_by(module: nn.Module) -> Any:
    """What shows that a copy still shares a module's weights, where they lie, and its plain parts."""
    return plain_parts(module), [(id(w), w.data_ptr()) for w in chain(module.parameters(), module.buffers())]


def plain_parts(module: nn.Module) -> list[str]:
    """What a module computes without weights, such as activations, part by part."""
    found = ((part, chain(part._modules.values(), part._parameters.values())) for part in module.modules())
    return [repr(part) for part, held in found if all(one is None for one in held)]


def state_of(module: nn.Module) -> tuple[tuple[list[str], list[tuple[int, int]]], Tensor]:
    """What shows that a module is as it was: its plain parts, where each weight lies and how often torch saw it
    written; and some values of each weight, since writes through `.data` are not counted.
    """
    weights = [w.detach() for w in chain(module.parameters(), module.buffers()) if w.is_floating_point() and w.numel()]
    flat = [w.reshape(-1) for w in weights]
    probes = [f[:: max(1, f.numel() // PROBES)][:PROBES].float() for f in flat]
    return (plain_parts(module), [(w.data_ptr(), w._version) for w in weights]), torch.cat(probes)


def frozen_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same module with the weights of linears, patches and attention cast, and these run as this device likes."""

    def quick(part: nn.Module, parent: nn.Module) -> nn.Module | None:
        if isinstance(part, _Folded):
            return FrozenLinear(part.weight, part.bias, dtype, factors=part.factors, then=part.then)
        if type(part) is nn.Linear:
            return FrozenLinear(part.weight, part.bias, dtype)
        if type(part) is nn.Conv2d and _is_patches(part):
            return FrozenPatches(part, dtype)
        if isinstance(part, nn.MultiheadAttention) and _is_plain(part, parent):
            linears = (FrozenLinear(w, b, dtype) for w, b in _linears_of(part))
            return QuickAttention(*linears, heads=part.num_heads, batch_first=part.batch_first)
        return None

    made = _shared_copy(module)
    for part in list(made.modules()):
        if _is_mlp(part):
            _fold_quick_gelu(part, dtype)
    return _replaced(made, quick)


def trainable_copy(module: nn.Module) -> nn.Module:
    """The same module and the same parameters, with quick attention and activation."""

    def quick(part: nn.Module, parent: nn.Module) -> nn.Module | None:
        if isinstance(part, nn.MultiheadAttention) and _is_plain(part, parent):
            linears = (_Given(w, b) for w, b in _linears_of(part))
            return QuickAttention(*linears, heads=part.num_heads, batch_first=part.batch_first)
        return QuickGELU() if type(part).__name__ == QuickGELU.__name__ else None

    return _replaced(_shared_copy(module), quick)


def _shared_copy(module: nn.Module) -> nn.Module:
    """Modules anew, parameters and buffers the same objects."""
    memo: dict[int, Any] = {id(w): w for w in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, memo)


def _replaced(made: nn.Module, quick: Make) -> nn.Module:
    for parent in list(made.modules()):
        for name, part in list(parent.named_children()):
            if (new := quick(part, parent)) is not None:
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
        sources = [(w.detach(), f) for w, f in zip((weight, bias), factors, strict=True) if w is not None]
        cast = [(f * w).to(dtype) for w, f in sources]
        self.casts = [(w, f, c) for (w, f), c in zip(sources, cast, strict=True)] if weight.is_cuda else []
        """Each source, its factor and what it was cast to, where it is to be cast again."""
        self.multiply = _multiplier(cast[0], None if bias is None else cast[1], then)

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        return self.multiply(x.to(self.dtype))


def recast(copy: nn.Module) -> None:
    """Cast the weights of a frozen copy anew, into the memory that holds the last cast."""
    found = [cast for part in copy.modules() if isinstance(part, FrozenLinear) for cast in part.casts]
    plain = [(source, cast) for source, factor, cast in found if factor == 1.0]
    if plain:
        sources, casts = zip(*plain, strict=True)
        torch._foreach_copy_(casts, sources)  # pyright: ignore[reportPrivateImportUsage]
    for source, factor, cast in found:
        if factor != 1.0:
            torch.mul(source, factor, out=cast)


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
    flat = conv.weight.is_contiguous()  # so that flattened it is the same memory, which follows every write
    whole = flat and conv.kernel_size == conv.stride and conv.groups == 1 and conv.padding in ((0, 0), "valid")
    return whole and conv.dilation == (1, 1) and min(conv.kernel_size) >= LARGE


class QuickAttention(nn.Module):
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
    fused = orders(mlp[0].weight, dtype)
    mlp[0] = _Folded(mlp[0], (1.702, 1.702), then="swish" if fused else "none")
    mlp[1], mlp[2] = nn.Identity() if fused else nn.SiLU(inplace=True), _Folded(mlp[2], (1 / 1.702, 1.0))


class _Folded(nn.Module):
    """A linear, the factors of its weight and bias and what follows, on its way to a FrozenLinear."""

    def __init__(self, linear: nn.Linear, factors: tuple[float, float], *, then: str = "none") -> None:
        super().__init__()
        self.weight, self.bias, self.factors, self.then = linear.weight, linear.bias, factors, then
