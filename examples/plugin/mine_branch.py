"""A branch that adds the mean change between frames to CLIP's frame embeddings."""

from dataclasses import dataclass

from torch import nn

from clipvid.models.branches.base import Branch
from clipvid.models.branches.options import BranchOptions
from clipvid.registry import register_branch


class Change(Branch):
    """Frame embeddings plus a gated MLP of the change from frame to frame; equals CLIP before training."""

    levels = ()  # it reads only the frame embeddings, not the taps of blocks

    def __init__(self, backbone, options):
        super().__init__()
        self.options = options
        width = backbone.embed_dim
        self.mlp = nn.Sequential(nn.Linear(width, options.hidden), nn.GELU(), nn.Linear(options.hidden, width))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, taps):
        change = taps.frames.diff(dim=1).mean(dim=1, keepdim=True)  # (B, 1, E)
        return taps.frames + self.mlp(change)


@register_branch("mine", summary="the mean change between frames, through a gated MLP")
@dataclass(frozen=True)
class ChangeOptions(BranchOptions):
    """Options of the branch, saved with it."""

    branch = Change
    hidden: int = 64
    """Hidden width of the MLP."""
