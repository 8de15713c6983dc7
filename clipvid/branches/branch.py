"""What every branch is, and the one way in which frames are averaged. Knows nothing of any particular branch."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid.backbone import Taps


class Branch(nn.Module):
    """Taps in, frame embeddings (B, T, E) out; their mean over frames is the video embedding."""

    options: Any
    """The dataclass that this branch was built from, and can be rebuilt from."""
    depth: int
    """K: levels of the tower that it reads."""

    def forward(self, taps: Taps) -> Float[Tensor, "b t e"]:
        raise TypeError(f"{type(self).__name__} does not say what it does with taps")


def mean_over_frames(x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b d"]:
    """Mean over the frames whose mask is True."""
    if mask is None:
        return x.mean(dim=1)
    weights = mask.to(x.dtype)[..., None]
    return (x * weights).sum(dim=1) / weights.sum(dim=1)
