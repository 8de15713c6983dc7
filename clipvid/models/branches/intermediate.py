"""Intermediate structures: space-time attention between the tower's own blocks, which are copied and trained.

Contract: Taps in (the one level that enters the copied blocks), or Pixels where the branch has a stem of its own; frame
embeddings (B, T, E) out. With the extra steps at zero, the copies compute what the scheme's identity says: see
`IntermediateOptions.scheme`. Knows nothing of files, text or losses.
Papers: Bertasius et al., TimeSformer (ICML 2021), section 3; Arnab et al., ViViT (ICCV 2021), sections 3.2 and 3.3;
as structures on CLIP: Liu et al., STAN (CVPR 2023), figure 1 and table 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.errors import BackboneError
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.models.branches.base import BranchOptions, LayeredBranch, State, heads_of
from clipvid.models.branches.posterior import PosteriorOptions, over_frames
from clipvid.nn.attention import Block
from clipvid.nn.mixers import MIXERS, check_mixer
from clipvid.nn.pooling import mean_over_frames, stretched
from clipvid.nn.spacetime import SCHEMES, SpaceTimeBlock, compared, scheme_block, with_cls_of_frames
from clipvid.nn.stem import Stem, inflated


@dataclass(frozen=True)
class IntermediateOptions(BranchOptions):
    """Everything that decides an intermediate structure; saved with it."""

    scheme: str = "divided"
    """space, joint, divided, local_global, axial (TimeSformer), factorised, dot_product (ViViT's models 3 and 4). At
    step 0, space and factorised are CLIP; divided, local_global and axial are their block's own attention alone, with
    one class token for the clip; joint and dot_product mix frames from the start."""
    depth: int | None = 4
    """K: how many of the tower's last blocks are copied; the rest stay frozen. None copies all of them, as any stem but
    the tower's does."""
    mixer: str | None = None
    """Cross-frame module in place of divided's attention: attention, conv, conv_full or rsa."""
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the cross-frame module by name."""
    stem: Literal["tower", "frame", "tubelet"] = "tower"
    """tower: the frozen tower runs up to the copied blocks. frame, tubelet: all of the tower is copied, with a stem of
    its own that trains and reads one frame or `tubelet` of them (ViViT); nothing can be cached then."""
    tubelet: int = 2
    """Frames per tubelet."""
    inflation: Literal["central", "inflate", "random"] = "central"
    """Initialisation of the tubelet stem from CLIP's convolution (ViViT, section 3.4)."""
    position: Literal["time", "token"] = "time"
    """Trained positions, zero at first: one vector per frame (TimeSformer), or one per token (ViViT)."""
    time_size: int = 64
    """Rows of the position table; it is interpolated for longer clips."""
    temporal_depth: int = 0
    """Blocks of a temporal transformer over the frame embeddings that come out (ViViT's model 2)."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    drop: Literal["released", "clip"] = "released"
    """released: by sequence, what stays is rescaled (TimeSformer). clip: by clip, nothing is rescaled (ViViT)."""

    def __post_init__(self) -> None:
        checks.choices(self, _CHOICES)
        if self.mixer is not None:
            check_mixer(self.mixer, self.mixer_options)
            if self.scheme != "divided":
                raise ValueError(
                    f"scheme {self.scheme!r} says itself how frames are mixed, so it takes no mixer; choose 'divided', "
                    "whose cross-frame step can be any mixer"
                )
        elif self.mixer_options:
            raise ValueError(f"mixer_options {dict(self.mixer_options)} belong to a mixer; give mixer too")
        checks.least(self, time_size=1, tubelet=1, temporal_depth=0)
        if self.depth is not None:
            checks.least(self, depth=1)
        if self.stem != "tower" and self.depth not in (None, 4):
            raise ValueError(f"stem {self.stem!r} copies all blocks of the tower; leave depth {self.depth} out")
        if self.stem != "tubelet" and (self.tubelet, self.inflation) != (2, "central"):
            raise ValueError(
                f"tubelet {self.tubelet} and inflation {self.inflation!r} belong to stem 'tubelet', this one is "
                f"{self.stem!r}; leave them out, or choose that stem"
            )
        checks.probability(self, "drop_path", certain=False)


_CHOICES = {
    "scheme": tuple(SCHEMES),
    "stem": ("tower", "frame", "tubelet"),
    "inflation": ("central", "inflate", "random"),
    "position": ("time", "token"),
    "drop": ("released", "clip"),
}

PRESETS: dict[str, IntermediateOptions] = {
    "space": IntermediateOptions("space"),
    "joint": IntermediateOptions("joint"),
    "divided": IntermediateOptions("divided"),
    "local_global": IntermediateOptions("local_global"),
    "axial": IntermediateOptions("axial"),
    "vivit1": IntermediateOptions("joint", position="token", time_size=16, drop="clip"),
    "vivit2": IntermediateOptions("space", temporal_depth=4, drop="clip"),
    "vivit3": IntermediateOptions("factorised", position="token", time_size=16, drop="clip"),
    "vivit4": IntermediateOptions("dot_product", position="token", time_size=16, drop="clip"),
}
IntermediateOptions.kind, IntermediateOptions.presets = "intermediate", PRESETS


class Intermediate(LayeredBranch):
    """Copies of the tower's last blocks with space-time attention, and of its way to the embedding."""

    copied = (".block.", ".tail.", ".stem.")
    reads_frames = False

    def __init__(self, backbone: Backbone, options: IntermediateOptions | None = None) -> None:
        super().__init__()
        self.options = o = options or IntermediateOptions()
        self.reads_pixels = o.stem != "tower"
        depth = backbone.levels if o.depth is None or self.reads_pixels else o.depth
        first = backbone.levels - len(backbone.last_levels(depth))
        self.geometry = g = backbone.geometry((first,) if backbone.has_blocks else ())
        copies = backbone.copy_blocks(depth, class_token=g.class_token) if backbone.has_blocks else []
        if not copies:
            raise BackboneError(
                f"{type(backbone.visual).__name__} is no plain ViT, so there are no blocks to put attention between; "
                "choose a side branch (stan) or a posterior one (posterior)"
            )
        self.levels = () if self.reads_pixels else (first,)
        self.width = g.widths[0]
        scheme = SCHEMES[o.scheme]
        self.frame_cls = g.class_token and scheme.cls == "frame"
        self.layers = nn.ModuleList(_layers(copies, o, width=g.widths[0]))
        self.stem = _stem(backbone, o) if self.reads_pixels else None
        shape = (o.time_size, g.patches + self.frame_cls) if o.position == "token" else (o.time_size, 1)
        self.time = nn.Parameter(torch.zeros(*shape, g.widths[0]))
        self.tail = backbone.copy_tail()
        self.one_token = g.class_token and not self.frame_cls and self.tail.reads_class_token
        self.over_frames = (
            over_frames(backbone, PosteriorOptions(o.temporal_depth, token=True)) if o.temporal_depth else None
        )

    def start(self, taps: Taps | Pixels) -> State:
        cls, patch = self._entered(taps)
        if self.frame_cls and cls is not None:
            cls, patch = None, with_cls_of_frames(cls, patch)
        elif cls is not None:
            cls = mean_over_frames(cls, self._mask(taps))
        return State(taps, cls, patch + stretched(self.time, patch.shape[1]))

    def advance(self, state: State, k: int, layer: nn.Module) -> State:
        return State(state.taps, *self.through(layer, state.cls, state.patch, mask=self._mask(state.taps)))

    def finish(self, state: State) -> Float[Tensor, "b t e"]:
        tokens = state.patch
        if state.cls is not None:
            tokens = with_cls_of_frames(state.cls[:, None].expand(-1, tokens.shape[1], -1), tokens)
        frames = self.tail(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        if self.stem is not None:  # one embedding a tubelet, given to each of its frames
            frames = frames.repeat_interleave(self.stem.tubelet, dim=1)
        return frames if self.over_frames is None else self.over_frames(frames, mask=state.taps.mask)

    def dense(self, state: State) -> Float[Tensor, "b t n d"]:
        return state.patch[:, :, 1:] if self.frame_cls else state.patch

    def compared(self, frames: int) -> list[int]:
        o, g = self.options, self.geometry
        frames = frames if self.stem is None else frames // self.stem.tubelet
        return [] if o.mixer else compared(o.scheme, frames=frames, grid=g.grid, cls=g.class_token)

    def _entered(self, taps: Taps | Pixels) -> tuple[Tensor | None, Tensor]:
        """Return class tokens of the frames (B, T, D) or None, and patches, as they enter the first copied block."""
        if self.stem is not None and isinstance(taps, Pixels):
            cls, patch = self.stem(taps.video)
            return (None if cls is None else cls[:, None].expand(-1, patch.shape[1], -1)), patch
        assert isinstance(taps, Taps)
        taps = taps.select(self.levels)
        return (taps.cls[0] if taps.cls else None), taps.patches[0]

    def _mask(self, taps: Taps | Pixels) -> Tensor | None:
        return taps.mask if self.stem is None else self.stem.frame_mask(taps.mask)


def _layers(copies: list[nn.Module], options: IntermediateOptions, *, width: int) -> list[SpaceTimeBlock]:
    o, scheme, heads = options, SCHEMES[options.scheme], heads_of(copies, width)
    layers = []
    for k, block in enumerate(copies):
        rate = o.drop_path * k / max(1, len(copies) - 1)
        if o.mixer is None:
            eps = block.norm1.eps if isinstance(block, Block) else 1e-5
            layers.append(scheme_block(scheme, block, width, heads=heads, eps=eps, drop_path=rate, drop=o.drop))
        else:
            step_rate = 0.0 if o.drop == "clip" else rate  # with "clip", the block drops the step's residual
            step = MIXERS[o.mixer](width, heads, drop_path=step_rate, **o.mixer_options)
            layers.append(SpaceTimeBlock(block, [step], drop_path=rate, drop_mlp=True, drop=o.drop))
    return layers


def _stem(backbone: Backbone, options: IntermediateOptions) -> Stem:
    """Build a stem of frames or tubelets with the tower's weights."""
    parts, o = backbone.stem_parts(), options
    tubelet = o.tubelet if o.stem == "tubelet" else 1
    grid = backbone.geometry((backbone.levels,)).grid
    stem = Stem(
        len(parts.kernel),
        patch=(parts.kernel.shape[-2], parts.kernel.shape[-1]),
        grid=grid,
        frames=tubelet,
        tubelet=tubelet,
        cls=parts.cls is not None,
        bias=parts.bias is not None,
        norm=None if parts.norm is None else parts.norm.eps,
    )
    stem.conv.weight.data.copy_(inflated(parts.kernel.detach(), tubelet, how=o.inflation))
    stem.space.data.copy_(parts.positions.detach())
    if parts.bias is not None and stem.conv.bias is not None:
        stem.conv.bias.data.copy_(parts.bias.detach())
    if parts.cls is not None and stem.cls is not None:
        stem.cls.data.copy_(parts.cls.detach())
    if parts.norm is not None:
        stem.norm.load_state_dict(parts.norm.state_dict())
    return stem
