"""Film strips: thumbnails of frames side by side, as JPEG bytes. Knows nothing of pages or plots."""

from __future__ import annotations

import io

import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.video.resize import resize

HEIGHT = 96
"""Default height of a strip, in pixels."""


def jpeg_strip(frames: UInt8[Tensor, "t 3 h w"], *, height: int = HEIGHT) -> bytes:
    """Return a JPEG of the frames from left to right, `height` pixels high, separated by thin white lines."""
    from PIL import Image

    width = max(1, round(frames.shape[-1] * height / frames.shape[-2]))
    small = resize(frames, (height, width))
    line = torch.full((3, height, 2), 255, dtype=torch.uint8)
    parts = [part for frame in small for part in (frame, line)][:-1]
    out = io.BytesIO()
    Image.fromarray(torch.cat(parts, dim=-1).permute(1, 2, 0).contiguous().numpy()).save(out, "JPEG", quality=80)
    return out.getvalue()
