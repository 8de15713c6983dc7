"""Differences between open_clip's visual towers: position of the class token, stem, form of the blocks.

Contract: a visual tower in, its properties or trainable copies of its parts out. Reads attributes only, so it
imports neither open_clip nor timm. Knows nothing about frames, taps or branches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.errors import BackboneError
from clipvid.models.backbone.block_copies import copy_block, from_open_clip, has_separable_residuals, rotary_table
from clipvid.nn.attention import Block


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
    Blocks with rotary embeddings, other attention or post-norm are copied unchanged (`WrappedBlock`). Set `class_token`
    if the copies will see a class token, even one that the tower lacks. Raises BackboneError for too large a depth.
    """
    blocks = vit_blocks(visual)
    if not blocks or not all(has_separable_residuals(block) for block in blocks[-depth:]):
        return []
    if depth > len(blocks):
        raise BackboneError(f"{type(visual).__name__} has {len(blocks)} blocks, {depth} were requested; lower depth")
    rope = rotary_table(visual)
    copies = [copy_block(block, rope=rope, class_token=class_token) for block in blocks[-depth:]]
    for layer in copies:
        layer.requires_grad_(True)
    return copies


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
    plain = isinstance(conv, nn.Conv2d) and isinstance(positions, Tensor) and rotary_table(visual) is None
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
        raise BackboneError(f"the text tower has {len(blocks)} blocks, {depth} were requested; lower depth")
    assert text is not None
    copies = [from_open_clip(block) for block in blocks[:depth]]
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


def meta_copy(module: nn.Module, *, alike: Sequence[nn.Module] = ()) -> Any:
    """Return a copy with every weight on the meta device, to get shapes and operation counts at no cost.

    All modules in `alike` are replaced by one copy of the first, so give `alike` only if they are not run.
    """
    memo: dict[int, object] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    if alike:
        memo |= dict.fromkeys(map(id, alike), copy.deepcopy(alike[0], memo))
    return copy.deepcopy(module, memo)
