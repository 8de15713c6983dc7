"""Intermediate branches: trained copies of the tower's last blocks, with space-time attention inside them.

Contract: Taps in (the one level that enters the copied blocks), or Pixels if the branch has its own stem; frame
embeddings (B, T, E) out. The extra steps of the blocks start at zero; `IntermediateOptions.scheme` says which schemes
then equal CLIP. Knows nothing of files, text or losses.
Papers: Bertasius et al., TimeSformer (ICML 2021), section 3; Arnab et al., ViViT (ICCV 2021), sections 3.2 and 3.3;
on CLIP, as "intermediate structures": Liu et al., STAN (CVPR 2023), figure 1 and table 6.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.errors import BackboneError
from clipvid.models.backbone import vit
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Geometry, Pixels, Taps
from clipvid.models.branches.base import LayeredBranch, State, heads_of
from clipvid.models.branches.posterior import Refinement, over_frames
from clipvid.models.branches.presets import IntermediateOptions, PosteriorOptions
from clipvid.nn.attention import Block
from clipvid.nn.pooling import mean_over_frames, stretched
from clipvid.nn.schemes import SCHEMES
from clipvid.nn.spacetime import SpaceTimeBlock, keys_per_patch, scheme_block, with_cls_of_frames
from clipvid.nn.stem import Stem, inflated
from clipvid.registry import MIXERS


class Intermediate(LayeredBranch):
    """Copies of the tower's last blocks with space-time attention, and of the layers after them (`tail`)."""

    copied: tuple[str, ...] = (".block.", ".tail.", ".stem.")
    reads_frames: bool = False

    def __init__(self, backbone: Backbone, options: IntermediateOptions | None = None) -> None:
        super().__init__()
        o = options or IntermediateOptions()
        self.options: IntermediateOptions = o
        self.reads_pixels: bool = o.stem != "tower"
        depth = backbone.levels if o.depth is None or self.reads_pixels else o.depth
        first_level = backbone.levels - len(backbone.last_levels(depth))
        g = backbone.geometry((first_level,) if backbone.has_blocks else ())
        self.geometry: Geometry = g
        copies = backbone.copy_blocks(depth, class_token=g.class_token) if backbone.has_blocks else []
        if not copies:
            raise BackboneError(
                f"{type(backbone.visual).__name__} is no plain ViT, so it has no blocks to copy; "
                "choose a side branch (stan) or a posterior one (posterior)"
            )
        self.levels: tuple[int, ...] = () if self.reads_pixels else (first_level,)
        self.width: int = g.widths[0]
        scheme = SCHEMES[o.scheme]
        self.frame_cls: bool = g.class_token and scheme.cls == "frame"
        self.layers: nn.ModuleList = nn.ModuleList(_layers(copies, o, width=g.widths[0]))
        self.stem: Stem | None = _stem(backbone, o) if self.reads_pixels else None
        shape = (o.time_size, g.patches + self.frame_cls) if o.position == "token" else (o.time_size, 1)
        self.time: nn.Parameter = nn.Parameter(torch.zeros(*shape, g.widths[0]))
        self.tail: vit.Tail = backbone.copy_tail()
        self.one_token: bool = g.class_token and not self.frame_cls and self.tail.reads_class_token
        self.over_frames: Refinement | None = (
            over_frames(backbone, PosteriorOptions(o.temporal_depth, token=True)) if o.temporal_depth else None
        )

    def start(self, taps: Taps | Pixels) -> State:
        cls, patch = self._first_input(taps)
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
        if self.stem is not None:  # all frames of a tubelet share its embedding
            frames = frames.repeat_interleave(self.stem.tubelet, dim=1)
        return frames if self.over_frames is None else self.over_frames(frames, mask=state.taps.mask)

    def dense(self, state: State) -> Float[Tensor, "b t n d"]:
        return state.patch[:, :, 1:] if self.frame_cls else state.patch

    def keys_per_patch(self, frames: int) -> list[int]:
        o, g = self.options, self.geometry
        frames = frames if self.stem is None else frames // self.stem.tubelet
        return [] if o.mixer else keys_per_patch(o.scheme, frames=frames, grid=g.grid, cls=g.class_token)

    def _first_input(self, taps: Taps | Pixels) -> tuple[Tensor | None, Tensor]:
        """Return the input of the first copied block: class tokens of the frames (B, T, D) or None, and patches."""
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
    """Build the stem that reads frames or tubelets, initialised from the tower's stem."""
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
