"""Posterior branches: a temporal transformer over CLIP's frame embeddings, behind a tower that knows nothing of time.

Contract: Taps in (their frame embeddings only), frame embeddings (B, T, E) out. Cheapest of all to train and to cache.
Papers: Luo et al., CLIP4Clip (2021), section 3.3, seqTransf; Arnab et al., ViViT (ICCV 2021), model 2.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from clipvid.errors import BackboneError
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Taps
from clipvid.models.branches.base import Branch, heads_of
from clipvid.models.branches.presets import PosteriorOptions
from clipvid.nn.temporal import TemporalTransformer, plain_blocks


class Posterior(Branch):
    """Temporal transformer after the tower: frames + gate(temporal transformer(frames))."""

    levels: tuple[int, ...] = ()  # the branch reads only the frame embeddings

    def __init__(self, backbone: Backbone, options: PosteriorOptions | None = None) -> None:
        super().__init__()
        o = options or PosteriorOptions()
        o = replace(o, depth=_depth(backbone, o))
        self.options: PosteriorOptions = o
        self.refine: Refinement = over_frames(backbone, o)

    def forward(self, taps: Taps) -> Float[Tensor, "b t e"]:
        return self.refine(taps.frames, mask=taps.mask)


class Refinement(nn.Module):
    """Frame embeddings plus the output of a temporal transformer over them."""

    def __init__(self, temporal: TemporalTransformer, embed_dim: int, *, gated: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.gate: nn.Module = nn.Linear(embed_dim, embed_dim, bias=False) if gated else nn.Identity()
        if isinstance(self.gate, nn.Linear):
            nn.init.zeros_(self.gate.weight)

    def forward(self, frames: Float[Tensor, "b t e"], *, mask: Tensor | None = None) -> Float[Tensor, "b t e"]:
        cls, refined = self.temporal(frames, mask=mask)
        return frames + self.gate(refined if cls is None else cls[:, None])


def _depth(backbone: Backbone, options: PosteriorOptions) -> int:
    if options.depth is not None:
        return options.depth
    return min(4, backbone.n_text_blocks or 4) if options.init == "text" else 4


def over_frames(backbone: Backbone, options: PosteriorOptions) -> Refinement:
    """Build the temporal transformer of these options, at the width of CLIP's embedding."""
    o, width, depth = options, backbone.embed_dim, _depth(backbone, options)
    positions = None
    if o.init == "text":
        blocks, positions = backbone.copy_text_blocks(depth)
        if positions.shape[1] != width:
            raise BackboneError(
                f"the text tower is {positions.shape[1]} wide, the embedding {width}, so its blocks do not fit; choose "
                "branch posterior, or init random"
            )
    else:
        blocks = plain_blocks(width, depth, heads=heads_of([], width))
    rows = o.time_size if positions is None else len(positions)
    gated = o.fusion == "gated"
    temporal = TemporalTransformer(width, blocks, rows=rows, cls=o.token, norm=gated)  # seqTransf has no final norm
    if positions is not None:
        temporal.position.data.copy_(positions)
    return Refinement(temporal, width, gated=gated)
