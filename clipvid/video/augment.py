"""Augmentation of whole clips: RandAugment, and the two views of contrastive video learning (ConST-CL).

Contract: uint8 (T, 3, H, W) in and out. All frames of a clip change alike, so motion stays intact. Every call draws
exactly one number from the caller's `random.Random` and leaves torch's global generators unchanged. Knows nothing of
files or of a base model's preprocessing, and does not decide when to augment. Imports torchvision when it first changes
colours, because processes that only resize start twice as fast without it.
"""

# torchvision gives the parts of RandAugment no public names
# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.config import checks
from clipvid.video.resize import resize

TOP_MAGNITUDE = 30
"""Largest magnitude of RandAugment, on torchvision's scale."""


@dataclass(frozen=True)
class RandAugment:
    """Random augmentation by `layers` of RandAugment's fourteen operations, all of one magnitude (Cubuk et al. 2020).

    Consistent in time, as in ViViT (Arnab et al. 2021): all frames of a clip get the same operations, signs and sizes.
    For one state of `rng`, a single frame changes as it would within its clip.
    """

    layers: int = 2
    """Number of operations."""
    magnitude: int = 10
    """Magnitude of all operations, 0 to 30 (torchvision's scale)."""

    def __post_init__(self) -> None:
        if self.layers < 0 or not 0 <= self.magnitude <= TOP_MAGNITUDE:
            raise ValueError(
                f"layers must be an integer >= 0 and magnitude an integer from 0 to {TOP_MAGNITUDE}, "
                f"got {self.layers} and {self.magnitude}; "
                "the defaults of training are 0 and 10"
            )

    def __call__(self, frames: UInt8[Tensor, "*batch 3 h w"], rng: Random) -> UInt8[Tensor, "*batch 3 h w"]:
        from torchvision.transforms import v2

        # torchvision draws from torch's global generator, which other threads use at the same time. A local generator
        # gives the same numbers.
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        transform = v2.RandAugment(self.layers, self.magnitude, num_magnitude_bins=TOP_MAGNITUDE + 1)
        space = transform._AUGMENTATION_SPACE
        for _ in range(self.layers):
            name = tuple(space)[int(torch.randint(len(space), (), generator=generator))]
            magnitudes, signed = space[name]
            scale = magnitudes(transform.num_magnitude_bins, *frames.shape[-2:])
            strength = 0.0 if scale is None else float(scale[self.magnitude])
            if scale is not None and signed and torch.rand((), generator=generator) <= 0.5:
                strength = -strength
            options: dict[str, Any] = {"interpolation": transform.interpolation, "fill": transform._fill}
            frames = cast(Tensor, transform._apply_image_or_video_transform(frames, name, strength, **options))
        return frames


@dataclass(frozen=True)
class ContrastiveView:
    """Random view of a clip for contrastive learning; the defaults are the first of ConST-CL's two (Yuan et al. 2022).

    It has two steps, `crop` and `recolour`, so that a decoder can crop each frame as soon as it is decoded; for one
    state of `rng` all frames are cropped alike.
    """

    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest area of the crop, as a share of the frame's."""
    aspect: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest width / height of the crop, before it is resized."""
    flip: float = 0.5
    """Probability of mirroring."""
    jitter: float = 0.8
    """Probability of changing brightness, contrast, saturation and hue, in random order."""
    strength: float = 1.0
    """Jitter strength: factors in 1 ± 0.8 · strength, hue turned by up to 0.2 · strength of the circle (SimCLR)."""
    grey: float = 0.2
    """Probability of conversion to greyscale."""
    blur: float = 1.0
    """Probability of a Gaussian blur."""
    solarise: float = 0.0
    """Probability of inverting values >= 128."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale must be (smallest, largest) share of the area, in (0, 1], got {self.crop_scale}; "
                "give a pair such as (0.5, 1.0)"
            )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(
                f"aspect must be (smallest, largest) width / height, > 0, got {self.aspect}; "
                "give a pair such as (0.75, 1.33)"
            )
        if not 0 <= self.strength <= 2.5:
            raise ValueError(f"strength must be in [0, 2.5], got {self.strength}; 2.5 turns the hue by half the circle")
        checks.probability(self, "flip", "jitter", "grey", "blur", "solarise")

    def crop(
        self,
        frames: UInt8[Tensor, "*batch 3 height width"],
        rng: Random,
        *,
        size: Sequence[int],
        interpolation: str = "bicubic",
    ) -> UInt8[Tensor, "*batch 3 h w"]:
        """Return a random crop, resized to `size` (height, width) and perhaps mirrored."""
        view_rng = Random(rng.getrandbits(64))
        mirrored = view_rng.random() < self.flip
        top, left, height, width = crop_box(
            frames.shape[-2], frames.shape[-1], scale=self.crop_scale, aspect=self.aspect, rng=view_rng
        )
        resized = resize(frames[..., top : top + height, left : left + width], size, interpolation)
        return resized.flip(-1) if mirrored else resized

    def recolour(self, frames: UInt8[Tensor, "t 3 h w"], rng: Random) -> UInt8[Tensor, "t 3 h w"]:
        """Apply jitter, greyscale, blur and solarisation, in this order and each with its probability."""
        from torchvision.transforms.v2 import functional as F

        view_rng = Random(rng.getrandbits(64))
        if view_rng.random() < self.jitter:
            frames = self._jittered(frames, view_rng)
        if view_rng.random() < self.grey:
            frames = F.rgb_to_grayscale(frames, num_output_channels=3)
        if view_rng.random() < self.blur:
            frames = _blurred(frames, sigma=view_rng.uniform(0.1, 2.0))
        if view_rng.random() < self.solarise:
            frames = F.solarize(frames, threshold=128)
        return frames

    def _jittered(self, frames: UInt8[Tensor, "t 3 h w"], rng: Random) -> UInt8[Tensor, "t 3 h w"]:
        from torchvision.transforms.v2 import functional as F

        # As one tall image, contrast changes about the mean of the clip. Changing it about each frame's mean would
        # weaken brightness changes within the clip.
        tall = frames.transpose(0, 1).flatten(1, 2)  # (3, T·H, W)
        changes: list[Callable[[Tensor, float], Tensor]] = [
            F.adjust_brightness,
            F.adjust_contrast,
            F.adjust_saturation,
            F.adjust_hue,
        ]
        spread = 0.8 * self.strength
        amounts = [rng.uniform(max(0.0, 1 - spread), 1 + spread) for _ in range(3)]
        amounts.append(rng.uniform(-0.2, 0.2) * self.strength)
        for k in rng.sample(range(4), 4):
            tall = changes[k](tall, amounts[k])
        return tall.unflatten(1, (len(frames), -1)).transpose(0, 1)  # (T, 3, H, W)


CONST_CL = (ContrastiveView(), ContrastiveView(blur=0.1, solarise=0.2))
"""The two views of ConST-CL, as released."""


def _blurred(frames: UInt8[Tensor, "*batch 3 h w"], *, sigma: float) -> UInt8[Tensor, "*batch 3 h w"]:
    """Blur with a Gaussian kernel of a tenth of the height, rounded to an odd size (SimCLR)."""
    from torchvision.transforms.v2 import functional as F

    side = 2 * (frames.shape[-2] // 10 // 2) + 1
    blurred = F.gaussian_blur(frames.float(), [side, 1], [sigma, sigma])  # one axis at a time: several times faster
    return F.gaussian_blur(blurred, [1, side], [sigma, sigma]).round_().to(torch.uint8)


def crop_box(
    height: int, width: int, *, scale: tuple[float, float], aspect: tuple[float, float] = (3 / 4, 4 / 3), rng: Random
) -> tuple[int, int, int, int]:
    """Draw a crop (top, left, height, width) of random area (`scale`, a share of the frame's) and `aspect` ratio.

    If ten shapes in a row do not fit the frame, as in a narrow strip, the crop is the largest central square.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
