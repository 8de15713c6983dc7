"""Preprocessing of frames of any size for a base model: equal to open_clip's, but batched over frames.

Contract: uint8 (..., 3, H, W) in; `fit` returns uint8 (..., 3, S, S), `crops` several of them, `normalize` float32. The
clip stays uint8, a quarter of the bytes, until it reaches the model's device. Knows nothing of files. Only `augment` is
random. It draws from the caller's `random.Random` once per clip, so all frames change alike and motion stays intact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import pad

from clipvid.config import checks
from clipvid.video.augment import RandAugment, crop_box
from clipvid.video.resize import resize

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = {
    "bicubic": "bicubic",
    "bilinear": "bilinear",
    "random": "bicubic",  # open_clip randomises only in training and evaluates with bicubic
}
RESIZE_MODES = ("shortest", "longest", "squash")
EXTREME = 4
"""Ratio of resized size to target size from which "shortest" computes only the pixels of its crop."""


@dataclass(frozen=True)
class VideoTransform:
    """Resizing, cropping and normalisation as the base model was trained.

    The fields up to `fill_color` are open_clip's preprocess config; the others configure `augment`.
    """

    size: int | tuple[int, int] = 224
    """Side, or (height, width), in pixels."""
    mean: tuple[float, ...] = OPENAI_MEAN
    """Mean of each channel, for values in [0, 1]."""
    std: tuple[float, ...] = OPENAI_STD
    """Standard deviation of each channel."""
    interpolation: str = "bicubic"
    """Interpolation of the resize, a key of `INTERPOLATIONS`."""
    resize_mode: str = "shortest"
    """Mode of `fit`. shortest: resize the short side, crop the middle. longest: resize the long side, pad. squash:
    resize both sides, which changes the aspect ratio."""
    fill_color: int = 0
    """Grey level of the padding of "longest"."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the area for `augment`'s random crop (0.08, 1.0 in STAN); None for no crop."""
    flip: float = 0.0
    """Probability that `augment` mirrors the clip. Use 0 for data where left and right differ in meaning (SSv2)."""
    rand_layers: int = 0
    """Number of RandAugment operations in `augment`, after crop and mirroring; 0 for none."""
    rand_magnitude: int = 10
    """Magnitude of the RandAugment operations, 0 to 30."""

    def __post_init__(self) -> None:
        if not all(isinstance(side, int) and side > 0 for side in _pair(self.size)):
            raise ValueError(
                f"size must be a side or (height, width) in integer pixels >= 1, got {self.size}; "
                "give a size such as 224"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must have three values each, std > 0, got {self.mean} and {self.std}; "
                "take those of the base model"
            )
        checks.choices(self, {"interpolation": tuple(INTERPOLATIONS), "resize_mode": RESIZE_MODES})
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale must be (smallest, largest) share of the area, in (0, 1], got {self.crop_scale}; "
                "give a pair such as (0.5, 1.0)"
            )
        checks.probability(self, "flip")
        RandAugment(
            self.rand_layers, self.rand_magnitude
        )  # raises for wrong values here rather than in a loader's worker

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, crop_scale: tuple[float, float] | None = None, flip: float = 0.0
    ) -> VideoTransform:
        """Build the transform from open_clip's preprocess dict.

        Its keys are size, mode, mean, std, interpolation, resize_mode and fill_color. Raises ValueError for other keys
        and for a mode other than RGB.
        """
        fields = {"size", "mean", "std", "interpolation", "resize_mode", "fill_color"}
        if unknown := sorted(set(config) - fields - {"mode"}):
            raise ValueError(f"unknown preprocess settings {unknown}; open_clip's are {sorted(fields)}")
        if config.get("mode", "RGB") != "RGB":
            raise ValueError(f"mode must be 'RGB', got {config['mode']!r}; convert frames to RGB, and set mode to that")
        settings: dict[str, Any] = {key: config[key] for key in fields & set(config)}
        for key in ("size", "mean", "std"):
            if isinstance(settings.get(key), list):  # JSON has no tuples
                settings[key] = tuple(settings[key])
        return cls(**settings, crop_scale=crop_scale, flip=flip)

    @property
    def target(self) -> tuple[int, int]:
        """Size (height, width) of the frames that `fit` returns."""
        return _pair(self.size)

    def __call__(self, frames: Tensor) -> Float32[Tensor, "*batch 3 h w"]:
        """Return uint8 frames (..., 3, H, W) fitted and normalised for the base model."""
        return self.normalize(self.fit(frames))

    def fit(self, frames: Tensor) -> UInt8[Tensor, "*batch 3 h w"]:
        """Resize and crop or pad uint8 (..., 3, H, W) to the target size, as open_clip does for evaluation."""
        _check_frames(frames)
        if frames.shape[-2:] == self.target:
            return frames  # no mode changes a frame of the right size
        if self.resize_mode == "squash":
            return self._resize(frames, self.target)
        if self.resize_mode == "longest":
            return self._longest(frames)
        return self._shortest(frames, positions=(0.5,))[0]

    def crops(self, frames: Tensor, count: int = 1) -> UInt8[Tensor, "count *batch 3 h w"]:
        """Return `count` crops of uint8 frames (..., 3, H, W), stacked in front; their predictions are to be averaged.

        1 is `fit`. 3 crops the start, the middle (equal to `fit`) and the end of the side that is too long after the
        resize, as TimeSformer's three-crop test. Frames of the target's aspect ratio give the same crop three times, as
        there. Raises ValueError as `check_crops`.
        """
        _check_frames(frames)
        self.check_crops(count)
        if count == 1:
            return self.fit(frames)[None]
        if frames.shape[-2:] == self.target:
            return torch.stack([frames] * 3)
        return torch.stack(self._shortest(frames, positions=(0.0, 0.5, 1.0)))

    def check_crops(self, count: int) -> None:
        """Raise ValueError if `crops` does not support this number of crops."""
        if count not in (1, 3):
            raise ValueError(
                f"count must be 1 (the middle) or 3 (both ends and the middle), got {count}; choose one of these"
            )
        if count == 3 and self.resize_mode != "shortest":
            raise ValueError(
                f"3 crops need a base model of resize_mode 'shortest', got {self.resize_mode!r}, which shows the whole "
                "frame, so there is no side to crop from; use 1"
            )

    def normalize(self, frames: UInt8[Tensor, "*batch 3 h w"]) -> Float32[Tensor, "*batch 3 h w"]:
        """Convert to float32, normalised by the base model's mean and standard deviation per channel."""
        mean = torch.tensor(self.mean, device=frames.device)[:, None, None]
        std = torch.tensor(self.std, device=frames.device)[:, None, None]
        return frames.float().div_(255).sub_(mean).div_(std)

    def augment(self, frames: Tensor, rng: Random) -> UInt8[Tensor, "*batch 3 h w"]:
        """Apply a random resized crop (`crop_scale`), mirroring (`flip`) and RandAugment (`rand_layers`), else `fit`.

        Takes uint8 (..., 3, H, W); for one state of `rng`, a single frame changes as it would within its clip. Draws
        exactly one number from `rng`, whatever the options, so they do not shift later draws.
        """
        _check_frames(frames)
        clip_rng = Random(rng.getrandbits(64))
        mirrored = clip_rng.random() < self.flip
        if self.crop_scale is None:
            fitted = self.fit(frames)
        else:
            top, left, height, width = crop_box(frames.shape[-2], frames.shape[-1], scale=self.crop_scale, rng=clip_rng)
            fitted = self._resize(frames[..., top : top + height, left : left + width], self.target)
        fitted = fitted.flip(-1) if mirrored else fitted
        return RandAugment(self.rand_layers, self.rand_magnitude)(fitted, clip_rng) if self.rand_layers else fitted

    def _resize(self, frames: Tensor, size: Sequence[int]) -> Tensor:
        return _resized(frames, size, INTERPOLATIONS[self.interpolation])

    def _longest(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        ratio = max(height / self.target[0], width / self.target[1])
        resized = self._resize(frames, [max(1, round(side / ratio)) for side in (height, width)])
        down, right = (full - side for full, side in zip(self.target, resized.shape[-2:], strict=True))
        border = (right // 2, right - right // 2, down // 2, down - down // 2)  # left, right, top, bottom
        return pad(resized, border, value=float(self.fill_color))

    def _shortest(self, frames: Tensor, *, positions: Sequence[float]) -> list[Tensor]:
        """Return crops of the resized frames at `positions`, from 0 (top or left end) to 1 (bottom or right end)."""
        height, width = frames.shape[-2:]
        square = self.target[0] == self.target[1]
        ratio = min(height / self.target[0], width / self.target[1])
        side, short = self.target[0], min(height, width)
        # open_clip rounds down for a square target. For others it rounds to the nearest and is always bicubic.
        size = [int(side * x / short) if square else round(x / ratio) for x in (height, width)]
        bilinear = square and self.interpolation == "bilinear"
        margins = [full - part for full, part in zip(size, self.target, strict=True)]
        corners = [[round(margin * position) for margin in margins] for position in positions]
        if max(full / part for full, part in zip(size, self.target, strict=True)) >= EXTREME:
            return [_resized_part(frames, size, corner, self.target, bilinear=bilinear) for corner in corners]
        resized = _resized(frames, size, "bilinear" if bilinear else "bicubic")
        return [resized[..., top : top + self.target[0], left : left + self.target[1]] for top, left in corners]


def _pass_order(source: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Return the axes of the two passes: width first, unless the height loses more than twice as many pixels.

    Values are rounded and clamped between the passes, so the order is visible at sharp edges. This is Pillow's order
    since 13, inferred from trials of sizes; before, it always started with the width.
    """
    return (-2, -1) if source[-2] - size[-2] > 2 * max(0, source[-1] - size[-1]) else (-1, -2)


def _resized(
    frames: UInt8[Tensor, "*batch 3 height width"], size: Sequence[int], method: str
) -> UInt8[Tensor, "*batch 3 h w"]:
    if _pass_order(frames.shape, size) == (-2, -1):  # torch always starts with the width
        frames = resize(frames, (size[0], frames.shape[-1]), method)
    return resize(frames, size, method)


def _resized_part(
    frames: UInt8[Tensor, "*batch 3 height width"],
    size: Sequence[int],
    corner: Sequence[int],
    part: Sequence[int],
    *,
    bilinear: bool,
) -> UInt8[Tensor, "*batch 3 h w"]:
    """Resize to `size` and crop `part` at `corner`, computing only the pixels of the part.

    A 4096x16 strip would otherwise become 57344x224 on the way to 224x224. Values are rounded to integers between the
    passes, as in Pillow and torch.
    """
    for axis in _pass_order(frames.shape, size):
        start, weights = _weights(
            frames.shape[axis], size[axis], first=corner[axis], count=part[axis], bilinear=bilinear
        )
        inputs = frames.narrow(axis, start, weights.shape[1]).float().movedim(axis, -1)
        resampled = inputs @ weights.to(frames.device).T
        frames = resampled.movedim(-1, axis).round_().clamp_(0, 255).to(torch.uint8)
    return frames


def _weights(source: int, target: int, *, first: int, count: int, bilinear: bool) -> tuple[int, Float32[Tensor, "o i"]]:
    """Return the first source pixel and the antialiasing weights of `count` output pixels, starting at `first`."""
    scale = source / target
    stretch, support = max(scale, 1.0), 1 if bilinear else 2
    centres = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) * scale
    start = max(0, math.floor(float(centres[0]) - support * stretch))
    stop = min(source, math.ceil(float(centres[-1]) + support * stretch))
    distance = ((torch.arange(start, stop, dtype=torch.float64) + 0.5 - centres[:, None]) / stretch).abs()
    if bilinear:
        weights = (1 - distance).clamp(min=0)
    else:  # Keys' cubic kernel with a = -1/2, as in Pillow
        near, far = (1.5 * distance - 2.5) * distance**2 + 1, ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
    return start, (weights / weights.sum(dim=1, keepdim=True)).float()


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim < 3 or frames.shape[-3] != 3 or 0 in frames.shape[-2:]:
        raise ValueError(
            f"frames must be uint8 (..., 3, H, W), got {frames.dtype} {tuple(frames.shape)}; "
            "values 0 to 255, channels before height and width"
        )
