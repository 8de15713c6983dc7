"""The tower from one of its inner levels on: its last blocks, run again where only what goes into them was kept.

Contract: taps of one level in, taps of it and of levels behind it out, under no_grad. For towers whose tokens pass one
plain block after another: open_clip's own ViTs and timm's VisionTransformer. Knows nothing of where taps are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipvid.errors import BackboneError
from clipvid.models.backbone import vit
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Taps


def check_forward_from(backbone: Backbone) -> None:
    """BackboneError for a tower that cannot be run from an inner level on."""
    visual, trunk = backbone.visual, getattr(backbone.visual, "trunk", None)
    if trunk is None:
        plain = hasattr(visual, "class_embedding") and visual.transformer.batch_first
    else:
        plain = type(trunk).__name__ == "VisionTransformer" and getattr(trunk, "rope", None) is None
    if not plain:
        raise BackboneError(
            f"{type(trunk or visual).__name__} is no plain ViT, whose blocks can be run one by one, so one level alone "
            "does not give the others; keep them all with mode taps"
        )
    if vit.prefix_tokens(visual) > vit.has_class_token(visual):
        raise BackboneError(
            f"this {type(trunk or visual).__name__} has register tokens, which taps do not hold and its blocks need; "
            "keep all levels with mode taps"
        )


def forward_from(backbone: Backbone, taps: Taps, *, levels: Sequence[int]) -> Taps:
    """Taps of `levels` from those of one level, none of them behind the others: the blocks between run again.

    `taps.frames` and the mask are passed on. Under autocast the tokens have the type that they have in a whole pass.
    """
    start, sizes = taps.levels[0], tuple(taps.frames.shape[:2])
    visual = backbone.tower_to_run(grad=False)
    tokens = taps.patches[0].flatten(0, 1)  # (B·T, N, D)
    if taps.cls:
        tokens = torch.cat([taps.cls[0].flatten(0, 1)[:, None], tokens], dim=1)
    tokens = tokens.to(token_type(backbone))
    found: dict[int, Tensor] = {start: tokens}
    with torch.no_grad():
        for level in range(start + 1, max(levels) + 1):
            found[level] = tokens = vit.vit_blocks(visual)[level - 1](tokens)
    own = len(taps.cls)
    patches = tuple(found[level][:, own:].unflatten(0, sizes) for level in levels)
    cls = tuple(found[level][:, 0].unflatten(0, sizes) for level in levels) if own else ()
    return Taps(tuple(levels), patches, cls, taps.frames, taps.mask)


def token_type(backbone: Backbone) -> torch.dtype:
    """What tokens between blocks are here, under autocast or not: open_clip casts its norms back, so they stay cast.

    Layer scale, a weight in float32, lifts them again, and so do timm's norms.
    """
    visual, device = backbone.visual, backbone.device.type
    if not torch.is_autocast_enabled(device) or not hasattr(visual, "class_embedding"):
        return backbone.dtype
    scaled = any(not isinstance(block.ls_1, nn.Identity) for block in visual.transformer.resblocks)
    return backbone.dtype if scaled else torch.get_autocast_dtype(device)
