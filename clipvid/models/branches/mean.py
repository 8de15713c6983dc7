"""The order-blind baseline: CLIP's own frame embeddings, averaged; optionally with a trained MLP on the average.

Contract: Taps in, frame embeddings (B, T, E) out. Cannot tell a clip from its reverse, by construction.
CLIP4Clip (Luo et al. 2021) calls the untrained form meanP.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Taps
from clipvid.models.branches.base import Branch
from clipvid.models.branches.presets import MeanOptions
from clipvid.nn.attention import MLP
from clipvid.nn.pooling import mean_over_frames


class Mean(Branch):
    """Frame-mean of CLIP embeddings, plus an MLP of it that starts at zero."""

    levels: tuple[int, ...] = ()  # the branch reads only the frame embeddings

    def __init__(self, backbone: Backbone, options: MeanOptions | None = None) -> None:
        super().__init__()
        self.options: MeanOptions = options or MeanOptions()
        self.refine: MLP | None = None
        if self.options.hidden:
            width = backbone.embed_dim
            self.norm: nn.LayerNorm = nn.LayerNorm(width)
            self.refine = MLP(width, self.options.hidden)
            for parameter in self.refine[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, taps: Taps) -> Float[Tensor, "b t e"]:
        if self.refine is None:
            return taps.frames
        return taps.frames + self.refine(self.norm(mean_over_frames(taps.frames, taps.mask)))[:, None]
