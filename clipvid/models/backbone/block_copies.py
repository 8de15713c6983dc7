"""Trainable copies of a tower's blocks: a clipvid `Block` if it computes the same, else the wrapped original.

Contract: a block of open_clip or timm in, a trainable module with the same outputs out. Imports neither library.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from clipvid.errors import BackboneError
from clipvid.nn.attention import Block, QuickGELU


class WrappedBlock(nn.Module):
    """A copy of a timm block that `Block` cannot express, wrapped to compute its two residuals separately."""

    def __init__(self, block: Any, *, rope: Tensor | None, class_token: bool) -> None:
        super().__init__()
        self.block: Any = copy.deepcopy(block)
        self.post_norm: bool = type(block).__name__ == "EvaBlockPostNorm"
        attention = self.block.attn
        if class_token and getattr(attention, "num_prefix_tokens", None) == 0:
            attention.num_prefix_tokens = 1  # rotation skips the class token that the branch adds
        self.register_buffer("rope", None if rope is None else rope.detach().clone(), persistent=False)

    def attention_residual(self, x: Tensor) -> Tensor:
        attention = self.block.attn if self.rope is None else partial(self.block.attn, rope=self.rope)
        if self.post_norm:
            return self.block.norm1(attention(x))
        return self._scaled(attention(self.block.norm1(x)), "1")

    def mlp_residual(self, x: Tensor) -> Tensor:
        if self.post_norm:
            return self.block.norm2(self.block.mlp(x))
        return self._scaled(self.block.mlp(self.block.norm2(x)), "2")

    def _scaled(self, residual: Tensor, number: str) -> Tensor:
        """Return residual "1" (attention) or "2" (MLP) times its layer scale, if the block has one."""
        gamma = getattr(self.block, f"gamma_{number}", None)
        if gamma is not None:
            return gamma * residual
        return getattr(self.block, f"ls{number}", nn.Identity())(residual)


def copy_block(block: Any, *, rope: Tensor | None, class_token: bool) -> nn.Module:
    """Return a trainable copy of a block; `rope` is the tower's rotary embedding table.

    `class_token` is True if the copy will see a class token, even one that the tower lacks.
    """
    kind = type(block).__name__
    if kind == "ResidualAttentionBlock":
        return from_open_clip(block)
    if kind == "Block" and rope is None and _plain_attention(block.attn):
        return _from_timm(block)
    return WrappedBlock(block, rope=rope, class_token=class_token)


def from_open_clip(block: Any) -> Block:
    scaled = not isinstance(block.ls_1, nn.Identity)
    new = Block(
        block.attn.embed_dim,
        block.attn.num_heads,
        hidden=block.mlp.c_fc.out_features,
        activation=_activation(block.mlp.gelu),
        eps=block.ln_1.eps,
        layer_scale=scaled,
    ).to(block.attn.in_proj_weight)
    _copy_state(new.norm1, block.ln_1)
    _copy_state(new.norm2, block.ln_2)
    _copy_tensor(new.attention.qkv.weight, block.attn.in_proj_weight)
    _copy_tensor(new.attention.qkv.bias, block.attn.in_proj_bias)
    _copy_state(new.attention.out, block.attn.out_proj)
    _copy_state(new.mlp[0], block.mlp.c_fc)
    _copy_state(new.mlp[2], block.mlp.c_proj)
    if scaled:
        _copy_tensor(new.scale1, block.ls_1.gamma)
        _copy_tensor(new.scale2, block.ls_2.gamma)
    return new


def _from_timm(block: Any) -> Block:
    scaled = not isinstance(block.ls1, nn.Identity)
    plain_mlp = type(block.mlp).__name__ == "Mlp"
    new = Block(
        block.attn.qkv.in_features,
        block.attn.num_heads,
        hidden=block.mlp.fc1.out_features if plain_mlp else 1,
        activation=_activation(block.mlp.act) if plain_mlp else nn.Identity,
        eps=block.norm1.eps,
        layer_scale=scaled,
        bias=block.attn.qkv.bias is not None,
    ).to(block.attn.qkv.weight)
    _copy_state(new.norm1, block.norm1)
    _copy_state(new.norm2, block.norm2)
    _copy_state(new.attention.qkv, block.attn.qkv)
    _copy_state(new.attention.out, block.attn.proj)
    if plain_mlp:
        _copy_state(new.mlp[0], block.mlp.fc1)
        _copy_state(new.mlp[2], block.mlp.fc2)
    else:  # a gated MLP is copied unchanged, in place of the placeholder of width 1
        new.mlp = copy.deepcopy(block.mlp)
    if scaled:
        _copy_tensor(new.scale1, block.ls1.gamma)
        _copy_tensor(new.scale2, block.ls2.gamma)
    return new


def has_separable_residuals(block: Any) -> bool:
    """Return True for blocks of two norms, attention and MLP, so that each residual can be computed alone."""
    return type(block).__name__ == "ResidualAttentionBlock" or all(
        hasattr(block, name) for name in ("norm1", "attn", "norm2", "mlp")
    )


def _plain_attention(attention: Any) -> bool:
    """Return True for timm attention that is only softmax(qk)v between two linears."""
    extras = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm")]
    return type(attention).__name__ == "Attention" and all(e is None or isinstance(e, nn.Identity) for e in extras)


def _activation(module: nn.Module) -> Callable[[], nn.Module]:
    return QuickGELU if type(module).__name__ == "QuickGELU" else partial(copy.deepcopy, module)


def rotary_table(visual: Any) -> Tensor | None:
    """Return the rotary embedding table that all blocks of a timm tower share; None if there is none.

    Raises BackboneError for a tower that learns one per block.
    """
    trunk = getattr(visual, "trunk", None)
    rope = getattr(trunk, "rope", None)
    if trunk is None or rope is None:
        return None
    if getattr(trunk, "rope_mixed", False):
        raise BackboneError(
            f"{type(trunk).__name__} learns a rotary embedding for every depth, which a side branch cannot copy; "
            "choose another base model"
        )
    # rotary embeddings that store no grid shape are given the tower's
    return rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=trunk.patch_embed.grid_size)


def _copy_state(new: nn.Module, old: nn.Module) -> None:
    new.load_state_dict(old.state_dict())


def _copy_tensor(new: Tensor | None, old: Tensor) -> None:
    assert new is not None
    new.data.copy_(old.data)
