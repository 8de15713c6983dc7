"""STAN: a side branch that reads a frozen tower's last levels and mixes them within and across frames.

Contract: Taps in, fused frame embeddings (B, T, E) out; their mean over frames is the video embedding. Knows nothing
of files, text or losses.
Paper: Liu et al., Revisiting Temporal Modeling for CLIP-based Image-to-Video Knowledge Transferring (CVPR 2023),
section 3. Where paper and released code differ, `StanOptions` names the choice (presets.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.errors import BackboneError
from clipvid.models.backbone import vit
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Geometry, Taps
from clipvid.models.branches.base import Borrowed, LayeredBranch, State, heads_of
from clipvid.models.branches.presets import StanOptions
from clipvid.nn.attention import Block
from clipvid.nn.motion import LocalMotion
from clipvid.nn.pooling import mean_over_frames, sinusoids, stretched
from clipvid.nn.spacetime import SpaceTimeBlock
from clipvid.registry import MIXERS


class STAN(LayeredBranch):
    """K layers of intra-frame and cross-frame modules beside the tower."""

    def __init__(self, backbone: Backbone, options: StanOptions | None = None) -> None:
        super().__init__()
        o = options or StanOptions()
        self.options: StanOptions = o
        self.levels: tuple[int, ...] = backbone.last_levels(o.depth)
        g = backbone.geometry(self.levels)
        self.geometry: Geometry = g
        default_width = g.widths[-1] if backbone.has_blocks else min(g.widths[-1], g.embed_dim)
        width = o.width or default_width
        self.width: int = width
        self.entries: nn.ModuleList = nn.ModuleList(
            _Entry(g, index=k, width=width, project=o.merge == "project") for k in range(o.depth)
        )
        self.position: nn.Module = _Position(backbone, g, options=o, width=width)
        self.balance: Balance | None = Balance(width) if o.merge == "balanced" else None
        self.layers: nn.ModuleList = nn.ModuleList(_layers(backbone, o, width=width))
        self.fusion: nn.Module = _FUSIONS[o.fusion](backbone, g, width)

    def start(self, taps: Taps) -> State:
        taps = taps.select(self.levels)
        return State(taps, *self.position(*self.entries[0](taps)))

    def advance(self, state: State, k: int, layer: nn.Module) -> State:
        cls, patch = state.cls, state.patch
        assert cls is not None
        if k:
            level_cls, level_patch = self.entries[k](state.taps)
            if self.balance is None:
                cls, patch = cls + level_cls, patch + level_patch
            else:
                cls, patch = self.balance(level_cls, cls), self.balance(level_patch, patch)
        return State(state.taps, *self.through(layer, cls, patch, mask=state.taps.mask))

    def finish(self, state: State) -> Float[Tensor, "b t e"]:
        return self.fusion(state.taps, state.cls, state.patch)


def _layers(backbone: Backbone, options: StanOptions, *, width: int) -> list[SpaceTimeBlock]:
    """Build one branch layer per level: a CLIP block within frames, a mixer across them (paper, section 3.2-3.3)."""
    o = options
    copies = backbone.copy_blocks(o.depth) if width == backbone.geometry(backbone.last_levels(1)).widths[0] else []
    heads = heads_of(copies, width)
    rates = [o.drop_path * k / max(1, o.depth - 1) for k in range(o.depth)]
    return [
        SpaceTimeBlock(
            copies[k] if copies else Block(width, heads),
            [MIXERS[o.mixer](width, heads, drop_path=rates[k], **o.mixer_options)],
            position="before" if o.order == "cross_first" else "after",
            drop_path=rates[k],
        )
        for k in range(o.depth)
    ]


class _Entry(nn.Module):
    """Input of one level to the branch: frame-mean class token and patches, projected if widths differ."""

    def __init__(self, geometry: Geometry, *, index: int, width: int, project: bool) -> None:
        super().__init__()
        self.index = index
        level_width = geometry.widths[index]
        self.patch = _projection(level_width, width) if project or level_width != width else nn.Identity()
        self.frame = None if geometry.class_token else nn.Linear(geometry.embed_dim, width)

    def forward(self, taps: Taps) -> tuple[Tensor, Tensor]:
        patch = self.patch(taps.patches[self.index])
        if self.frame is None:
            cls = self.patch(mean_over_frames(taps.cls[self.index], taps.mask))
        else:  # the pooled features of the frames replace the missing class token
            cls = self.frame(mean_over_frames(taps.frames, taps.mask))
        return cls, patch


class _Position(nn.Module):
    """Spatial and temporal positions of the first level's patches, and the initial class token."""

    def __init__(self, backbone: Backbone, geometry: Geometry, *, options: StanOptions, width: int) -> None:
        super().__init__()
        clip_embeddings = vit.embeddings(backbone.visual)
        needs_clip = options.position == "clip" or options.class_start != "mean"
        if needs_clip and (clip_embeddings is None or clip_embeddings[1].shape != (1 + geometry.patches, width)):
            raise BackboneError(
                f"{type(backbone.visual).__name__} has no position table for {geometry.patches} patches of width "
                f"{width}, which this preset re-uses; choose branch stan"
            )
        start = torch.randn(options.time_size, width)
        if options.time_init == "sinusoid":
            start = sinusoids(options.time_size, width)
        self.time: nn.Parameter = nn.Parameter(options.time_std * start)
        is_learned = options.position == "learned"
        self.space: nn.Parameter | None = nn.Parameter(torch.zeros(geometry.patches, width)) if is_learned else None
        self.clip: Borrowed = Borrowed(backbone.visual)
        self.clip_class: bool = options.class_start == "release"
        # BT-Adapter's token starts at zero and has CLIP's position of the class token added
        self.own_class: nn.Parameter | None = (
            nn.Parameter(clip_embeddings[1][0].detach().clone())
            if options.class_start == "own" and clip_embeddings
            else None
        )

    def forward(self, cls: Float[Tensor, "b d"], patch: Float[Tensor, "b t n d"]) -> tuple[Tensor, Tensor]:
        visual = self.clip.visual
        if self.own_class is not None:
            cls = (cls + self.own_class) / 2
        if self.clip_class:
            cls = (cls + visual.class_embedding + visual.positional_embedding[0]) / 2
        space = visual.positional_embedding[1:] if self.space is None else self.space
        return cls, patch + space + stretched(self.time, patch.shape[1])[:, None]


class Balance(nn.Module):
    """w clip + (1 - w) branch, with a trained sigmoid w per channel that starts at one half (BT-Adapter's gates).

    The released code multiplies the logit by 100 or more; otherwise it would hardly change at a branch's learning rate.
    """

    def __init__(self, width: int, *, scale: float = 100.0) -> None:
        super().__init__()
        self.scale = scale
        self.logit: nn.Parameter = nn.Parameter(torch.zeros(width))

    def forward(self, clip: Float[Tensor, "*batch d"], branch: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        weight = (self.scale * self.logit).sigmoid()
        return weight * clip + (1 - weight) * branch


class _GatedFusion(nn.Module):
    """Frame embedding + gate(branch output); the gate is a zero-initialised linear, so step 0 is CLIP.

    The gate reads the video token, as the published fusion does, and the patches' `LocalMotion`, which we added:
    mixers change the patches, and the last mixer would otherwise affect the output through one attention step only.
    """

    def __init__(self, backbone: Backbone, geometry: Geometry, width: int) -> None:
        super().__init__()
        self.grid = geometry.grid
        self.norm = nn.LayerNorm(width)
        self.motion = LocalMotion(width, 2 * width)
        self.gate = nn.Linear(3 * width, geometry.embed_dim, bias=False)
        nn.init.zeros_(self.gate.weight)

    def forward(self, taps: Taps, cls: Float[Tensor, "b d"], patch: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t e"]:
        motion = self.motion(patch, grid=self.grid, mask=taps.mask)
        return taps.frames + self.gate(torch.cat([self.norm(cls), motion], dim=-1))[:, None]


class _ReleaseFusion(nn.Module):
    """proj(ln_post(class token + branch)) per frame, as published, with CLIP's own norm and projection."""

    def __init__(self, backbone: Backbone, geometry: Geometry, width: int, *, balanced: bool = False) -> None:
        super().__init__()
        self.balance = Balance(width) if balanced else None
        head = vit.head(backbone.visual)
        if head is None or head[1].shape[0] != width:
            raise BackboneError(
                f"{type(backbone.visual).__name__} does not end in proj(ln_post(class token)), which the published "
                "fusion needs; choose branch stan, whose fusion fits every tower"
            )
        self.clip = Borrowed(backbone.visual)

    def forward(self, taps: Taps, cls: Float[Tensor, "b d"], patch: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t e"]:
        frame = taps.cls[-1]
        fused = frame + cls[:, None] if self.balance is None else self.balance(frame, cls[:, None].expand_as(frame))
        norm, projection = self.clip.visual.ln_post, _wide(self.clip.visual.proj)
        return F.layer_norm(_wide(fused), fused.shape[-1:], _wide(norm.weight), _wide(norm.bias), norm.eps) @ projection


_FUSIONS: dict[str, Callable[[Backbone, Geometry, int], nn.Module]] = {
    "gated": _GatedFusion,
    "release": _ReleaseFusion,
    "balanced": partial(_ReleaseFusion, balanced=True),
}


def _wide(x: Tensor) -> Tensor:
    """Cast to at least float32: a tower in half precision has some of these weights in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _projection(level_width: int, width: int) -> nn.Linear:
    """Build W_proj of eq. 5-6. If widths agree it starts as the identity, so that project and add agree at step 0."""
    linear = nn.Linear(level_width, width, bias=level_width != width)
    if level_width == width:
        nn.init.eye_(linear.weight)
    return linear
