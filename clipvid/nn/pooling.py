"""Averages over the frames of a clip, and temporal position tables for any number of frames.

Contract: pure functions of tensors; frames whose mask is False do not count. Knows nothing of towers or branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def mean_over_frames(x: Float[Tensor, "b t *rest"], mask: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b *rest"]:
    """Return the mean over the frames whose mask is True; over all frames when `mask` is None."""
    if mask is None:
        return x.mean(dim=1)
    weights = mask.to(x.dtype).view(*mask.shape, *[1] * (x.ndim - 2))
    return (x * weights).sum(dim=1) / weights.sum(dim=1)


def stretched(table: Float[Tensor, "rows *rest"], frames: int) -> Float[Tensor, "t *rest"]:
    """Return the first `frames` rows of a temporal table, or all rows stretched linearly if it is too short."""
    if frames <= len(table):
        return table[:frames]
    return resized(table, frames)


def resized(table: Float[Tensor, "rows *rest"], frames: int) -> Float[Tensor, "t *rest"]:
    """Return a temporal table resized linearly to `frames` rows; its first and last row do not change.

    Returns the table itself if it already has `frames` rows. Otherwise it is interpolated as an image of constant
    width, because torch's interpolation of sequences uses one GPU thread per row and took most of a forward pass for
    ViViT's table.
    """
    if frames == len(table):
        return table
    image = table.flatten(1)[None, None]  # (1, 1, rows, D)
    size = (frames, image.shape[-1])
    return F.interpolate(image, size=size, mode="bilinear", align_corners=True)[0, 0].unflatten(1, table.shape[1:])


def sinusoids(length: int, width: int) -> Float[Tensor, "length width"]:
    """Return sinusoids of wavelengths 2 pi to 20000 pi, root-mean-square 1 (Vaswani et al. 2017, section 3.5)."""
    rates = 10000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return 2**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
