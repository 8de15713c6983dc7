"""The stem of a video transformer: frames to patch or tubelet tokens, with a class token and position tables.

Contract: frames (B, T, 3, S, S) in; class token (B, D) or None and patches (B, T', N, D) out, T' = T / tubelet. Also
converts the stem weights of an image model. Knows nothing of the blocks that follow.
Papers: Arnab et al., ViViT (ICCV 2021), section 3.2 (tokens) and 3.4 (initialisation); Bertasius et al., TimeSformer
(ICML 2021), section 3 (position tables).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid.nn.pooling import resized

Table = Literal["space", "space_time", "token"]
Inflation = Literal["central", "inflate", "random"]


class Stem(nn.Module):
    """Convolution with kernel = stride, class token, positions, and with `norm` the LN that precedes CLIP's blocks.

    `table` selects the position table. space: one spatial table, class token first, used for every frame. space_time:
    also a temporal table, zero-initialised, for patches only (TimeSformer). token: one entry for every token of the
    clip (ViViT). For other numbers of frames, temporal tables are resized linearly. `keep` first selects that many
    evenly spaced frames (ViViT's uniform frame sampling).
    """

    def __init__(
        self,
        width: int,
        *,
        patch: tuple[int, int],
        grid: tuple[int, int],
        frames: int,
        tubelet: int = 1,
        cls: bool = True,
        bias: bool = True,
        table: Table = "space",
        norm: float | None = None,
        keep: int | None = None,
    ) -> None:
        super().__init__()
        if tubelet < 1 or frames < tubelet or frames % tubelet:
            raise ValueError(f"frames must be a multiple of tubelet, got {frames} and {tubelet}; both must be >= 1")
        size = (tubelet, *patch)
        self.conv: nn.Conv3d = nn.Conv3d(3, width, kernel_size=size, stride=size, bias=bias)
        self.grid = grid
        self.tubelet = tubelet
        self.keep = keep
        n_patches = grid[0] * grid[1]
        rows = (frames // tubelet) * n_patches if table == "token" else n_patches
        self.cls: nn.Parameter | None = nn.Parameter(torch.zeros(width)) if cls else None
        self.space: nn.Parameter = nn.Parameter(nn.init.trunc_normal_(torch.empty(rows + cls, width), std=0.02))
        has_time = table == "space_time"
        self.time: nn.Parameter | None = nn.Parameter(torch.zeros(frames // tubelet, width)) if has_time else None
        self.norm: nn.Module = nn.LayerNorm(width, eps=norm) if norm is not None else nn.Identity()

    def forward(
        self, video: Float[Tensor, "b t 3 s1 s2"]
    ) -> tuple[Float[Tensor, "b d"] | None, Float[Tensor, "b u n d"]]:
        size = tuple(n * k for n, k in zip(self.grid, self.conv.kernel_size[1:], strict=True))
        if tuple(video.shape[-2:]) != size:
            raise ValueError(
                f"frames are {tuple(video.shape[-2:])}, this stem takes {size}; use model.transform, or pass uint8 "
                "frames of any size"
            )
        if self.keep is not None:
            video = video[:, evenly(video.shape[1], self.keep)]
        if video.shape[1] % self.tubelet:
            raise ValueError(
                f"number of frames must be a multiple of the tubelet length, got {video.shape[1]} frames for tubelets "
                f"of {self.tubelet}"
            )
        patch = rearrange(self.conv(video.transpose(1, 2)), "b d t h w -> b t (h w) d")
        first = 0 if self.cls is None else 1
        space = self.space[first:]
        if len(space) == patch.shape[2]:
            patch = patch + space
        else:
            patch = patch + resized(space.unflatten(0, (-1, patch.shape[2])), patch.shape[1])
        if self.time is not None:
            patch = patch + resized(self.time, patch.shape[1])[:, None]
        patch = self.norm(patch)
        if self.cls is None:
            return None, patch
        return self.norm((self.cls + self.space[0]).expand(len(video), -1)), patch

    def frame_mask(self, mask: Bool[Tensor, "b t"] | None) -> Bool[Tensor, "b u"] | None:
        """Return the mask of the tubelets, True where any of their frames is valid; None without a mask."""
        if mask is None:
            return None
        if self.keep is not None:
            mask = mask[:, evenly(mask.shape[1], self.keep)]
            if not bool(mask.any(dim=1).all()):
                raise ValueError(
                    f"keep={self.keep} selects only padding frames of a shorter clip; read the clips with a sampler "
                    "that does not pad (uniform), or omit keep"
                )
        return mask.unflatten(1, (-1, self.tubelet)).any(dim=2)


def evenly(total: int, keep: int) -> list[int]:
    """Return the frame indices of ViViT's uniform sampling: round(i total / (keep + 1)), i from 1 to keep.

    >>> evenly(32, 8)
    [4, 7, 11, 14, 18, 21, 25, 28]
    """
    if not 1 <= keep <= total:
        raise ValueError(
            f"keep must be an integer from 1 to {total}, the frames of the clip, got {keep}; use longer clips or fewer "
            "frames"
        )
    return [min(total - 1, round(i * total / (keep + 1))) for i in range(1, keep + 1)]


def inflated(
    kernel: Float[Tensor, "d c p q"], tubelet: int, *, how: Inflation = "central"
) -> Float[Tensor, "d c tubelet p q"]:
    """Convert the patch kernel of an image model to a tubelet kernel (ViViT, section 3.4).

    central: zero except at frame t // 2, so a tubelet depends on that frame alone (eq. 9). inflate: 1/t of the kernel
    in every frame, so a tubelet depends on their mean (eq. 8). random: newly drawn; the output has the same standard
    deviation. For a tubelet of one frame the kernel is unchanged. Raises ValueError for an unknown `how`.
    """
    if how not in ("central", "inflate", "random"):
        raise ValueError(f"unknown inflation {how!r}; choose one of central, inflate, random")
    if tubelet == 1:
        return kernel[:, :, None]
    if how == "random":
        return torch.randn(*kernel.shape[:2], tubelet, *kernel.shape[2:]) * kernel.std() / tubelet**0.5
    repeated = kernel[:, :, None].repeat(1, 1, tubelet, 1, 1) / tubelet
    if how == "inflate":
        return repeated
    central = torch.zeros_like(repeated)
    central[:, :, tubelet // 2] = kernel
    return central


def tiled(space: Float[Tensor, "n d"], frames: int) -> Float[Tensor, "tokens d"]:
    """Repeat a spatial position table for every frame (ViViT, section 3.4)."""
    return space.repeat(frames, 1)


def resized_space(
    space: Float[Tensor, "n d"],
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Float[Tensor, "m d"]:
    """Resize a spatial position table, without class token, to another grid.

    bilinear aligns the corners (scipy's zoom of order 1, as in ViViT's release); bicubic is the usual choice for ViTs.
    """
    if old == new:
        return space
    image = space.T.unflatten(1, old)[None]
    image = F.interpolate(image, size=new, mode=mode, align_corners=mode == "bilinear")
    return image[0].flatten(1).T
