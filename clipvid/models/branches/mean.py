"""The order-blind baseline: CLIP's own frame embeddings, averaged; optionally with a trained MLP on the average.

Contract: Taps in, frame embeddings (B, T, E) out. Cannot tell a clip from its reverse, by construction.
CLIP4Clip (Luo et al. 2021) calls the untrained form meanP.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Taps
from clipvid.models.branches.base import Branch, BranchOptions
from clipvid.nn.attention import MLP
from clipvid.nn.pooling import mean_over_frames


@dataclass(frozen=True)
class MeanOptions(BranchOptions):
    """Options of a mean branch, saved with it."""

    hidden: int = 0
    """Hidden width of an MLP that refines the frame-mean; 0 trains nothing and is zero-shot CLIP."""

    def __post_init__(self) -> None:
        checks.least(self, hidden=0)


PRESETS = {"mean": MeanOptions()}
MeanOptions.kind, MeanOptions.presets = "mean", PRESETS


class Mean(Branch):
    """Frame-mean of CLIP embeddings, plus an MLP of it that starts at zero."""

    levels = ()  # the branch reads only the frame embeddings

    def __init__(self, backbone: Backbone, options: MeanOptions | None = None) -> None:
        super().__init__()
        self.options = options or MeanOptions()
        self.refine = None
        if self.options.hidden:
            width = backbone.embed_dim
            self.norm = nn.LayerNorm(width)
            self.refine = MLP(width, self.options.hidden)
            for parameter in self.refine[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, taps: Taps) -> Float[Tensor, "b t e"]:
        if self.refine is None:
            return taps.frames
        return taps.frames + self.refine(self.norm(mean_over_frames(taps.frames, taps.mask)))[:, None]
