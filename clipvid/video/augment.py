"""Augmentation of whole clips: RandAugment, and the two views of contrastive video learning (ConST-CL).

Contract: uint8 (T, 3, H, W) in and out, and one draw for all frames, so motion stays intact. All randomness is the
caller's `random.Random`, of which every call takes exactly one number; torch's own generators stay as they were.
Knows nothing of files, of a base model's preprocessing or of when to augment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from clipvid.config import checks

TOP_MAGNITUDE = 30


@dataclass(frozen=True)
class RandAugment:
    """`layers` operations drawn from RandAugment's fourteen, all of one magnitude (Cubuk et al. 2020).

    Consistent in time, as in ViViT (Arnab et al. 2021): every frame gets the operations, signs and sizes of its clip.
    A single frame changes as it would within its clip.
    """

    layers: int = 2
    magnitude: int = 10
    """0 to 30, torchvision's scale."""

    def __post_init__(self) -> None:
        if self.layers < 0 or not 0 <= self.magnitude <= TOP_MAGNITUDE:
            raise ValueError(
                f"RandAugment takes layers from 0 and a magnitude from 0 to {TOP_MAGNITUDE}, "
                f"got {self.layers} and {self.magnitude}"
            )

    def __call__(self, frames: UInt8[Tensor, "*batch 3 h w"], rng: Random) -> UInt8[Tensor, "*batch 3 h w"]:
        # torchvision draws from torch's generator, which other threads draw from meanwhile; the numbers are the same
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
            look: dict[str, Any] = {"interpolation": transform.interpolation, "fill": transform._fill}
            frames = cast(Tensor, transform._apply_image_or_video_transform(frames, name, strength, **look))
        return frames


@dataclass(frozen=True)
class ContrastiveView:
    """One view of a clip for contrastive learning; the defaults are the first of ConST-CL's two (Yuan et al. 2022).

    In two steps, so that a decoder may crop each frame as it comes: `crop` (equal draws crop alike) and `recolour`.
    """

    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest share of the frame's area that the crop keeps."""
    aspect: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest width / height of the crop, before it is resized."""
    flip: float = 0.5
    """Probability of mirroring, as of all that follows."""
    jitter: float = 0.8
    """Of changing brightness, contrast, saturation and hue, in random order."""
    strength: float = 1.0
    """How far: factors within 1 ± 0.8 · strength, hue turned by up to 0.2 · strength of the circle (SimCLR's)."""
    grey: float = 0.2
    blur: float = 1.0
    solarise: float = 0.0
    """Of inverting the values from 128 on."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is (least, most) of the area, within (0, 1], got {self.crop_scale}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is (least, most) of width / height, above 0, got {self.aspect}")
        if not 0 <= self.strength <= 2.5:
            raise ValueError(f"strength is 0 to 2.5, where hue has turned by half the circle, got {self.strength}")
        checks.probability(self, "flip", "jitter", "grey", "blur", "solarise")

    def crop(
        self,
        frames: UInt8[Tensor, "*batch 3 height width"],
        rng: Random,
        *,
        size: Sequence[int],
        interpolation: InterpolationMode = InterpolationMode.BICUBIC,
    ) -> UInt8[Tensor, "*batch 3 h w"]:
        """A random part, resized to `size` (height, width), mirrored or not."""
        own = Random(rng.getrandbits(64))
        mirrored = own.random() < self.flip
        box = crop_box(frames.shape[-2], frames.shape[-1], scale=self.crop_scale, aspect=self.aspect, rng=own)
        resized = F.resized_crop(frames, *box, size=list(size), interpolation=interpolation, antialias=True)
        return resized.flip(-1) if mirrored else resized

    def recolour(self, frames: UInt8[Tensor, "t 3 h w"], rng: Random) -> UInt8[Tensor, "t 3 h w"]:
        """Jitter, grey, blur and solarise, in this order and each with its probability."""
        own = Random(rng.getrandbits(64))
        if own.random() < self.jitter:
            frames = self._jittered(frames, own)
        if own.random() < self.grey:
            frames = F.rgb_to_grayscale(frames, num_output_channels=3)
        if own.random() < self.blur:
            frames = _blurred(frames, sigma=own.uniform(0.1, 2.0))
        if own.random() < self.solarise:
            frames = F.solarize(frames, threshold=128)
        return frames

    def _jittered(self, frames: UInt8[Tensor, "t 3 h w"], rng: Random) -> UInt8[Tensor, "t 3 h w"]:
        # As one tall picture: contrast then turns about the mean of the clip. About each frame's own mean, a clip
        # that gets brighter would lose some of that.
        tall = frames.transpose(0, 1).flatten(1, 2)  # (3, T·H, W)
        changes: list[Callable[[Tensor, float], Tensor]] = [
            F.adjust_brightness,
            F.adjust_contrast,
            F.adjust_saturation,
            F.adjust_hue,
        ]
        reach = 0.8 * self.strength
        amounts = [rng.uniform(max(0.0, 1 - reach), 1 + reach) for _ in range(3)]
        amounts.append(rng.uniform(-0.2, 0.2) * self.strength)
        for place in rng.sample(range(4), 4):
            tall = changes[place](tall, amounts[place])
        return tall.unflatten(1, (len(frames), -1)).transpose(0, 1)  # (T, 3, H, W)


CONST_CL = (ContrastiveView(), ContrastiveView(blur=0.1, solarise=0.2))
"""The two views of ConST-CL, as released."""


def _blurred(frames: UInt8[Tensor, "*batch 3 h w"], *, sigma: float) -> UInt8[Tensor, "*batch 3 h w"]:
    """With a Gaussian over a tenth of the height, made odd (SimCLR)."""
    side = 2 * (frames.shape[-2] // 10 // 2) + 1
    wide = F.gaussian_blur(frames.float(), [side, 1], [sigma, sigma])  # one axis at a time: several times faster
    return F.gaussian_blur(wide, [1, side], [sigma, sigma]).round_().to(torch.uint8)


def crop_box(
    height: int, width: int, *, scale: tuple[float, float], aspect: tuple[float, float] = (3 / 4, 4 / 3), rng: Random
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of random area (`scale`, of the whole) and width / height (`aspect`).

    After ten shapes that do not fit the frame (a strip), the middle square.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < h <= height and 0 < w <= width:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
