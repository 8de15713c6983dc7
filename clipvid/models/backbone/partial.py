"""Forward pass from an inner level: computes later levels again when only one level is cached.

Contract: taps of one level in, taps of it and of later levels out, under no_grad. Supports towers that are a plain
sequence of blocks: open_clip's ViTs and timm's VisionTransformer. Knows nothing about where taps are cached.
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
    """Raise BackboneError for a tower that cannot run from an inner level."""
    visual, trunk = backbone.visual, getattr(backbone.visual, "trunk", None)
    if trunk is None:
        plain = hasattr(visual, "class_embedding") and visual.transformer.batch_first
    else:
        plain = type(trunk).__name__ == "VisionTransformer" and getattr(trunk, "rope", None) is None
    if not plain:
        raise BackboneError(
            f"{type(trunk or visual).__name__} is not a plain ViT whose blocks run one by one, so one level does not "
            "determine the others; cache all levels with mode taps"
        )
    if vit.prefix_tokens(visual) > vit.has_class_token(visual):
        raise BackboneError(
            f"this {type(trunk or visual).__name__} has register tokens, which its blocks need and taps omit; "
            "cache all levels with mode taps"
        )


def forward_from(backbone: Backbone, taps: Taps, *, levels: Sequence[int]) -> Taps:
    """Compute the taps of `levels` from the taps of one level, which must not be after any of them.

    `taps.frames` and the mask are passed on. Under autocast the tokens have the same dtype as in a full pass.
    """
    start, sizes = taps.levels[0], tuple(taps.frames.shape[:2])
    visual = backbone.tower_to_run(grad=False)
    tokens = taps.patches[0].flatten(0, 1)  # (B·T, N, D)
    if taps.cls:
        tokens = torch.cat([taps.cls[0].flatten(0, 1)[:, None], tokens], dim=1)
    tokens = tokens.to(token_type(backbone))
    tokens_at: dict[int, Tensor] = {start: tokens}
    with torch.no_grad():
        for level in range(start + 1, max(levels) + 1):
            tokens_at[level] = tokens = vit.vit_blocks(visual)[level - 1](tokens)
    n_class = len(taps.cls)
    patches = tuple(tokens_at[level][:, n_class:].unflatten(0, sizes) for level in levels)
    cls = tuple(tokens_at[level][:, 0].unflatten(0, sizes) for level in levels) if n_class else ()
    return Taps(tuple(levels), patches, cls, taps.frames, taps.mask)


def token_type(backbone: Backbone) -> torch.dtype:
    """Return the dtype of tokens between blocks in the current autocast state.

    open_clip's norms return the input dtype, so tokens stay in the autocast dtype. Layer scale, a float32 weight, and
    timm's norms turn them into float32 again.
    """
    visual, device = backbone.visual, backbone.device.type
    if not torch.is_autocast_enabled(device) or not hasattr(visual, "class_embedding"):
        return backbone.dtype
    scaled = any(not isinstance(block.ls_1, nn.Identity) for block in visual.transformer.resblocks)
    return backbone.dtype if scaled else torch.get_autocast_dtype(device)
