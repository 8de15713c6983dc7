"""A complete video transformer: stem, space-time blocks, final norm. TimeSformer and ViViT are configurations of it.

Contract: frames (B, T, 3, S, S) in, one vector (B, D) per clip out. Branches use the same blocks on CLIP's features;
nothing is implemented twice. Knows nothing of CLIP, texts or training.
Papers: Bertasius et al., TimeSformer (ICML 2021); Arnab et al., ViViT (ICCV 2021).
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid.nn.pooling import mean_over_frames
from clipvid.nn.spacetime import SpaceTimeBlock, with_cls_of_frames
from clipvid.nn.stem import Stem
from clipvid.nn.temporal import TemporalTransformer


class VideoTransformer(nn.Module):
    """Stem, space-time blocks, final norm. The output is the class token, or without one the mean over all tokens.

    If each frame has a class token, these are averaged before the norm (TimeSformer's space-only release) or, with
    `temporal`, normalised and passed to the temporal transformer (ViViT's model 2). `cls` is "video" for one
    class token per clip, "frame" for one per frame.
    """

    def __init__(
        self,
        stem: Stem,
        blocks: list[SpaceTimeBlock],
        *,
        cls: str,
        width: int,
        eps: float = 1e-6,
        temporal: TemporalTransformer | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks: nn.ModuleList = nn.ModuleList(blocks)
        self.norm: nn.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.temporal = temporal
        self.cls_per_frame: bool = cls == "frame"

    def tokens(
        self, video: Float[Tensor, "b t 3 s1 s2"], *, mask: Bool[Tensor, "b t"] | None = None
    ) -> tuple[Float[Tensor, "b d"] | None, Float[Tensor, "b u n d"]]:
        """Return class token and patches, of U tubelets, after the last block; a frame's class token precedes them."""
        cls, patch = self.stem(video)
        tubelet_mask = self.stem.frame_mask(mask)
        if cls is not None and self.cls_per_frame:
            cls, patch = None, with_cls_of_frames(cls[:, None].expand(-1, patch.shape[1], -1), patch)
        for block in self.blocks:
            cls, patch = block(cls, patch, grid=self.stem.grid, mask=tubelet_mask)
        return cls, patch

    def forward(
        self, video: Float[Tensor, "b t 3 s1 s2"], *, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b d"]:
        cls, patch = self.tokens(video, mask=mask)
        tubelet_mask = self.stem.frame_mask(mask)
        if cls is not None:
            return self.norm(cls)
        if self.stem.cls is None:
            frames = self.norm(patch).mean(dim=2)
            return self._pool_frames(frames, tubelet_mask)
        if self.temporal is None:
            return self.norm(mean_over_frames(patch[:, :, 0], tubelet_mask))
        return self._pool_frames(self.norm(patch[:, :, 0]), tubelet_mask)

    def _pool_frames(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Return one vector per clip, (B, D): by the temporal transformer if there is one, else the mean."""
        if self.temporal is None:
            return mean_over_frames(frames, mask)
        cls, frames = self.temporal(frames, mask=mask)
        return mean_over_frames(frames, mask) if cls is None else cls
