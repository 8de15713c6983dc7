"""Differences between open_clip's visual towers: position of the class token, stem, form of the blocks.

Contract: a visual tower in, its properties or trainable copies of its parts out. Reads attributes only, so it
imports neither open_clip nor timm. Knows nothing about frames, taps or branches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.errors import BackboneError
from clipvid.nn.attention import Block, QuickGELU


def prefix_tokens(visual: Any) -> int:
    """Return the number of tokens before the patches: class token, then registers; 0 for towers without any."""
    if hasattr(visual, "class_embedding"):
        return 1  # open_clip's VisionTransformer
    return int(getattr(getattr(visual, "trunk", visual), "num_prefix_tokens", 0))


def has_class_token(visual: Any) -> bool:
    if hasattr(visual, "class_embedding"):
        return True
    return prefix_tokens(visual) > 0 and getattr(visual.trunk, "cls_token", None) is not None


def speaks_tokens(visual: Any) -> bool:
    """Return True if the tower can give its levels as token sequences (ViTs), False if only as feature maps."""
    return hasattr(visual, "class_embedding") or hasattr(getattr(visual, "trunk", visual), "num_prefix_tokens")


def vit_blocks(visual: Any) -> list[nn.Module]:
    """Return the tower's transformer blocks, first to last; empty for towers that are not plain ViTs."""
    if hasattr(visual, "class_embedding"):
        return list(visual.transformer.resblocks)
    return list(visual.trunk.blocks) if speaks_tokens(visual) else []


def copy_blocks(visual: Any, depth: int, *, class_token: bool = True) -> list[nn.Module]:
    """Return trainable copies of the tower's last `depth` blocks; empty if it has no such blocks.

    Each copy computes its two residuals separately (`attention_residual`, `mlp_residual`), because STAN averages the
    class token between them. Blocks of the common form become `clipvid.nn.Block` with the same weights and output.
    Blocks with rotary embeddings, other attention or post-norm are copied unchanged (`WholeBlock`). Set `class_token`
    if the copies will see a class token, even one that the tower lacks. Raises BackboneError for too large a depth.
    """
    blocks = vit_blocks(visual)
    if not blocks or not all(_has_separable_residuals(block) for block in blocks[-depth:]):
        return []
    if depth > len(blocks):
        raise BackboneError(f"{type(visual).__name__} has {len(blocks)} blocks, {depth} were asked for; lower depth")
    rope = _rotary(visual)
    copies = [_copy_block(block, rope=rope, class_token=class_token) for block in blocks[-depth:]]
    for layer in copies:
        layer.requires_grad_(True)
    return copies


class WholeBlock(nn.Module):
    """An unchanged copy of a timm block that computes its two residuals separately."""

    def __init__(self, block: Any, *, rope: Tensor | None, class_token: bool) -> None:
        super().__init__()
        self.block: Any = copy.deepcopy(block)
        self.post_norm = type(block).__name__ == "EvaBlockPostNorm"
        attention = self.block.attn
        if class_token and getattr(attention, "num_prefix_tokens", None) == 0:
            attention.num_prefix_tokens = 1  # the branch's class token has no grid position to rotate by
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

    def _scaled(self, residual: Tensor, which: str) -> Tensor:
        gamma = getattr(self.block, f"gamma_{which}", None)
        if gamma is not None:
            return gamma * residual
        return getattr(self.block, f"ls{which}", nn.Identity())(residual)


class Tail(nn.Module):
    """A trainable copy of the layers after the last block: final norm, pooling, projection."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        trunk = getattr(visual, "trunk", visual)
        memo: dict[int, Any] = {}  # the stem and the blocks are not copied
        for name in ("transformer", "blocks", *_STEM_MODULES):
            if isinstance(getattr(trunk, name, None), nn.Module):
                memo[id(getattr(trunk, name))] = nn.Identity()
        for name in _STEM_TENSORS:
            if isinstance(getattr(trunk, name, None), nn.Parameter):
                memo[id(getattr(trunk, name))] = None
        self.visual: Any = copy.deepcopy(visual, memo).requires_grad_(True)

    @property
    def reads_class_token(self) -> bool:
        """True if the embedding depends on the class token alone, not on the last block's patches."""
        if hasattr(self.visual, "trunk"):
            return self.visual.trunk.global_pool == "token" and getattr(self.visual.trunk, "attn_pool", None) is None
        return self.visual.pool_type == "tok" and self.visual.attn_pool is None

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, prefix + N, D), before the final norm, to embeddings (B, E)."""
        if hasattr(self.visual, "trunk"):
            return self.visual.head(self.visual.trunk.forward_head(self.visual.trunk.norm(tokens)))
        pooled = self.visual._pool(tokens)[0]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj


def stem_parameters(visual: Any) -> set[int]:
    """Return the ids of the parameters before the first block."""
    trunk = getattr(visual, "trunk", visual)
    identities: set[int] = set()
    for name in (*_STEM_MODULES, *_STEM_TENSORS):
        part = getattr(trunk, name, None)
        if isinstance(part, nn.Module):
            identities |= {id(p) for p in part.parameters()}
        elif isinstance(part, nn.Parameter):
            identities.add(id(part))
    return identities


_STEM_MODULES = ("conv1", "patch_embed", "ln_pre", "norm_pre", "rope", "pos_drop")
_STEM_TENSORS = ("class_embedding", "positional_embedding", "cls_token", "pos_embed", "reg_token")


@dataclass(frozen=True)
class StemParts:
    """The weights before the first block: convolution, class token, position embeddings (class token first), norm."""

    kernel: Tensor
    bias: Tensor | None
    cls: Tensor | None
    positions: Tensor
    norm: nn.LayerNorm | None


def stem_parts(visual: Any) -> StemParts:
    """Return the stem of a plain ViT; raise BackboneError for a stem of another form."""
    if hasattr(visual, "class_embedding"):
        norm = visual.ln_pre if isinstance(visual.ln_pre, nn.LayerNorm) else None
        return StemParts(
            visual.conv1.weight, visual.conv1.bias, visual.class_embedding, visual.positional_embedding, norm
        )
    trunk = getattr(visual, "trunk", visual)
    conv: Any = getattr(getattr(trunk, "patch_embed", None), "proj", None)
    positions: Any = getattr(trunk, "pos_embed", None)
    cls = getattr(trunk, "cls_token", None)
    norm = getattr(trunk, "norm_pre", nn.Identity())
    plain = isinstance(conv, nn.Conv2d) and isinstance(positions, Tensor) and _rotary(visual) is None
    grid = trunk.patch_embed.grid_size if plain else (0, 0)
    rows = grid[0] * grid[1] + (cls is not None)
    if not plain or tuple(positions.shape) != (1, rows, conv.out_channels):
        raise BackboneError(
            f"{type(trunk).__name__} does not begin with one convolution and a table of positions, so no stem of "
            "frames or tubelets can be made from it; choose stem='tower'"
        )
    return StemParts(
        conv.weight,
        conv.bias,
        None if cls is None else cls[0, 0],
        positions[0],
        norm if isinstance(norm, nn.LayerNorm) else None,
    )


def text_tower_and_blocks(clip: Any) -> tuple[Any, list[Any]]:
    """Return the text tower and its blocks; no blocks unless they are open_clip's ResidualAttentionBlock."""
    text = clip if hasattr(clip, "token_embedding") else getattr(clip, "text", None)
    blocks = list(getattr(getattr(text, "transformer", None), "resblocks", []))
    return text, [] if any(type(block).__name__ != "ResidualAttentionBlock" for block in blocks) else blocks


def copy_text_blocks(clip: Any, depth: int) -> tuple[list[Block], Tensor]:
    """Copy the text tower's first `depth` blocks, trainable, with its positions; raise BackboneError if too few."""
    text, blocks = text_tower_and_blocks(clip)
    if not blocks:
        raise BackboneError(
            f"{type(clip).__name__} has no text tower of open_clip's own blocks to start from; choose branch "
            "posterior, or init random"
        )
    if depth > len(blocks):
        raise BackboneError(f"the text tower has {len(blocks)} blocks, {depth} were asked for; lower depth")
    assert text is not None
    copies = [_from_open_clip(block) for block in blocks[:depth]]
    for block in copies:
        block.requires_grad_(True)
    return copies, text.positional_embedding.detach().clone()


def _thread() -> int:
    """Return this thread's id; 0 for every thread while torch.compile traces, as it cannot trace `get_ident`."""
    return 0 if torch.compiler.is_compiling() else get_ident()


@contextmanager
def watched_stem(visual: Any | None) -> Iterator[list[Tensor]]:
    """Record the input of the first block of `visual` in the block: tokens (B·T, prefix + N, D) after the stem.

    Passes of other threads are not recorded, and nothing is if `visual` is None.
    """
    stem_tokens: list[Tensor] = []
    thread: int | None = _thread()
    hook = None

    def record(_: nn.Module, args: tuple[Any, ...]) -> None:
        if _thread() == thread:
            stem_tokens.append(args[0])

    if visual is not None:
        hook = vit_blocks(visual)[0].register_forward_pre_hook(record)
    try:
        yield stem_tokens
    finally:
        thread = None  # silences the hook in copies of the tower made by other threads
        if hook is not None:
            hook.remove()


def embeddings(visual: Any) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Return class embedding (D) and position embeddings (1 + N, D) of open_clip's ViT; None for other towers."""
    return (visual.class_embedding, visual.positional_embedding) if hasattr(visual, "class_embedding") else None


def head(visual: Any) -> tuple[Any, nn.Parameter] | None:
    """Return (ln_post, proj) if the tower's embedding is proj(ln_post(class token)), else None."""
    if not hasattr(visual, "class_embedding") or visual.attn_pool is not None or visual.proj is None:
        return None
    return (visual.ln_post, visual.proj) if visual.pool_type == "tok" else None


def meta_copy(module: nn.Module) -> Any:
    """Return a copy with every weight on the meta device, to get shapes and operation counts at no cost."""
    memo: dict[int, object] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(module, memo)


def _copy_block(block: Any, *, rope: Tensor | None, class_token: bool) -> nn.Module:
    kind = type(block).__name__
    if kind == "ResidualAttentionBlock":
        return _from_open_clip(block)
    if kind == "Block" and rope is None and _plain_attention(block.attn):
        return _from_timm(block)
    return WholeBlock(block, rope=rope, class_token=class_token)


def _from_open_clip(block) -> Block:
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


def _from_timm(block) -> Block:
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
    else:  # gated MLPs are copied unchanged
        new.mlp = copy.deepcopy(block.mlp)
    if scaled:
        _copy_tensor(new.scale1, block.ls1.gamma)
        _copy_tensor(new.scale2, block.ls2.gamma)
    return new


def _has_separable_residuals(block: Any) -> bool:
    """Return True for blocks of two norms, attention and MLP, so that each residual can be computed alone."""
    return type(block).__name__ == "ResidualAttentionBlock" or all(
        hasattr(block, name) for name in ("norm1", "attn", "norm2", "mlp")
    )


def _plain_attention(attention) -> bool:
    """Return True for timm attention that is only softmax(qk)v between two linears."""
    extras = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm")]
    return type(attention).__name__ == "Attention" and all(e is None or isinstance(e, nn.Identity) for e in extras)


def _activation(module: nn.Module) -> Callable[[], nn.Module]:
    return QuickGELU if type(module).__name__ == "QuickGELU" else partial(copy.deepcopy, module)


def _rotary(visual: Any) -> Tensor | None:
    trunk = getattr(visual, "trunk", None)
    rope = getattr(trunk, "rope", None)
    if trunk is None or rope is None:
        return None
    if getattr(trunk, "rope_mixed", False):
        raise BackboneError(
            f"{type(trunk).__name__} learns a rotary embedding for every depth, which a side branch cannot copy; "
            "choose another base model"
        )
    return rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=trunk.patch_embed.grid_size)


def _copy_state(new: nn.Module, old: nn.Module) -> None:
    new.load_state_dict(old.state_dict())


def _copy_tensor(new: Tensor | None, old: Tensor) -> None:
    assert new is not None
    new.data.copy_(old.data)
