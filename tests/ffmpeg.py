"""Frames decoded by the FFmpeg program, which shares no code with clipvid and no build with clipvid's decoders."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor


def frames(path: Path, size: tuple[int, int], chosen: Sequence[int] | None = None) -> Tensor:
    """Return frames of the first video stream by a full sequential decode, as uint8 (T, 3, H, W).

    `chosen` holds frame numbers in ascending order. The program turns pictures upright and applies edit lists by
    itself; `size` is (H, W) of the upright picture.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-map", "0:v:0"]
    if chosen is not None:
        command += ["-vf", "select=" + "+".join(rf"eq(n\,{k})" for k in chosen)]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.uint8).copy()
    return torch.from_numpy(pixels).view(-1, *size, 3).permute(0, 3, 1, 2)
