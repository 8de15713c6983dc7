"""Frames of any size to what a base model expects, equal to open_clip's own preprocessing but batched over frames.

Contract: uint8 (..., 3, H, W) in; `fit` gives uint8 (..., 3, S, S), `crops` several of them, `normalize` float32. The
clip stays uint8 until it reaches the model's device, a quarter of the bytes. Knows nothing of files. Only `augment` is
random, and its randomness is the caller's `random.Random`; one draw holds for the whole clip, so motion stays intact.
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
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from clipvid.config import checks
from clipvid.video.augment import RandAugment, crop_box

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = {
    "bicubic": InterpolationMode.BICUBIC,
    "bilinear": InterpolationMode.BILINEAR,
    "random": InterpolationMode.BICUBIC,  # "random" is for training images; open_clip itself evaluates with bicubic
}
RESIZE_MODES = ("shortest", "longest", "squash")
EXTREME = 4
"""From this many times the target size on, "shortest" resizes only what its crop will show."""


@dataclass(frozen=True)
class VideoTransform:
    """Resize, crop and normalise as a base model was trained; the fields are open_clip's preprocess config."""

    size: int | tuple[int, int] = 224
    """Side, or (height, width)."""
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    """"shortest": resize the short side, crop the middle. "longest": resize the long side, pad. "squash": neither."""
    fill_color: int = 0
    """Grey level of the padding of "longest"."""
    crop_scale: tuple[float, float] | None = None
    """Of `augment`: range of the part of the area that a random crop keeps (0.08, 1.0 in STAN); None: no crop."""
    flip: float = 0.0
    """Of `augment`: probability of mirroring the clip. Leave 0 where left and right mean something (SSv2)."""
    rand_layers: int = 0
    """Of `augment`: operations of RandAugment, after crop and mirror image; 0 none."""
    rand_magnitude: int = 10
    """Of `augment`: how strong those are, 0 to 30."""

    def __post_init__(self) -> None:
        if not all(isinstance(side, int) and side > 0 for side in _pair(self.size)):
            raise ValueError(f"size is a side or (height, width) in pixels, 1 or more, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std need three values, std above 0, got {self.mean} and {self.std}")
        checks.choices(self, {"interpolation": tuple(INTERPOLATIONS), "resize_mode": RESIZE_MODES})
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is (least, most) of the area, within (0, 1], got {self.crop_scale}")
        checks.probability(self, "flip")
        RandAugment(self.rand_layers, self.rand_magnitude)  # refuses wrong numbers now rather than in a loader's worker

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, crop_scale: tuple[float, float] | None = None, flip: float = 0.0
    ) -> VideoTransform:
        """From open_clip's preprocess dict: size, mode, mean, std, interpolation, resize_mode, fill_color."""
        known = {"size", "mean", "std", "interpolation", "resize_mode", "fill_color"}
        if unknown := sorted(set(config) - known - {"mode"}):
            raise ValueError(f"unknown preprocess settings {unknown}; open_clip's are {sorted(known)}")
        if config.get("mode", "RGB") != "RGB":
            raise ValueError(f"mode must be 'RGB', got {config['mode']!r}")
        given: dict[str, Any] = {key: config[key] for key in known & set(config)}
        for key in ("size", "mean", "std"):
            if isinstance(given.get(key), list):  # JSON has no tuples
                given[key] = tuple(given[key])
        return cls(**given, crop_scale=crop_scale, flip=flip)

    @property
    def target(self) -> tuple[int, int]:
        """(height, width) of what `fit` returns."""
        return _pair(self.size)

    def __call__(self, frames: Tensor) -> Float32[Tensor, "*batch 3 h w"]:
        """What the base model expects, from uint8 (..., 3, H, W)."""
        return self.normalize(self.fit(frames))

    def fit(self, frames: Tensor) -> UInt8[Tensor, "*batch 3 h w"]:
        """Resize and crop or pad uint8 (..., 3, H, W) to the target size, as open_clip does when it evaluates."""
        _check_frames(frames)
        if frames.shape[-2:] == self.target:
            return frames  # every mode leaves a frame of the right size as it is
        if self.resize_mode == "squash":
            return self._resize(frames, self.target)
        if self.resize_mode == "longest":
            return self._longest(frames)
        return self._shortest(frames, places=(0.5,))[0]

    def crops(self, frames: Tensor, count: int = 1) -> UInt8[Tensor, "count *batch 3 h w"]:
        """`count` crops of uint8 (..., 3, H, W) whose predictions are averaged, stacked in front; 1 is `fit`.

        3: from the start, the middle (this is `fit`) and the end of the side that the resize leaves too long, the
        three-crop test of TimeSformer. For frames of the target's own shape they are one crop three times, as there.
        """
        _check_frames(frames)
        self.check_crops(count)
        if count == 1:
            return self.fit(frames)[None]
        if frames.shape[-2:] == self.target:
            return torch.stack([frames] * 3)
        return torch.stack(self._shortest(frames, places=(0.0, 0.5, 1.0)))

    def check_crops(self, count: int) -> None:
        """ValueError with the reason if `crops` cannot give `count` of any frame."""
        if count not in (1, 3):
            raise ValueError(f"count must be 1 (the middle) or 3 (both ends and the middle), got {count}")
        if count == 3 and self.resize_mode != "shortest":
            raise ValueError(
                f"3 crops need a base model of resize_mode 'shortest', got {self.resize_mode!r}, which shows the whole "
                "frame and leaves nothing to choose a crop from; take 1"
            )

    def normalize(self, frames: UInt8[Tensor, "*batch 3 h w"]) -> Float32[Tensor, "*batch 3 h w"]:
        """To float32 with the base model's mean and deviation per channel."""
        mean = torch.tensor(self.mean, device=frames.device)[:, None, None]
        std = torch.tensor(self.std, device=frames.device)[:, None, None]
        return frames.float().div_(255).sub_(mean).div_(std)

    def augment(self, frames: Tensor, rng: Random) -> UInt8[Tensor, "*batch 3 h w"]:
        """A random resized crop (`crop_scale`), mirror image (`flip`) and RandAugment (`rand_layers`), else `fit`.

        Of uint8 (..., 3, H, W); equal draws change a frame alone as they change it within its clip. Takes one number
        from `rng`, whatever the options, so that they do not shift the draws of anything after.
        """
        _check_frames(frames)
        own = Random(rng.getrandbits(64))
        mirrored = own.random() < self.flip
        if self.crop_scale is None:
            fitted = self.fit(frames)
        else:
            top, left, height, width = crop_box(frames.shape[-2], frames.shape[-1], scale=self.crop_scale, rng=own)
            fitted = self._resize(frames[..., top : top + height, left : left + width], self.target)
        fitted = fitted.flip(-1) if mirrored else fitted
        return RandAugment(self.rand_layers, self.rand_magnitude)(fitted, own) if self.rand_layers else fitted

    def _resize(self, frames: Tensor, size: Sequence[int]) -> Tensor:
        return _resized(frames, size, INTERPOLATIONS[self.interpolation])

    def _longest(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        ratio = max(height / self.target[0], width / self.target[1])
        resized = self._resize(frames, [max(1, round(side / ratio)) for side in (height, width)])
        down, right = (whole - side for whole, side in zip(self.target, resized.shape[-2:], strict=True))
        border = [right // 2, down // 2, right - right // 2, down - down // 2]  # left, top, right, bottom
        return F.pad(resized, border, fill=[float(self.fill_color)])

    def _shortest(self, frames: Tensor, *, places: Sequence[float]) -> list[Tensor]:
        """Crops of the resized frames at `places`, 0 (top or left end) to 1 (bottom or right), 0.5 is the middle."""
        height, width = frames.shape[-2:]
        square = self.target[0] == self.target[1]
        ratio = min(height / self.target[0], width / self.target[1])
        side, short = self.target[0], min(height, width)
        # open_clip rounds down for a square target and to the nearest for others, for which it is always bicubic
        size = [int(side * x / short) if square else round(x / ratio) for x in (height, width)]
        bilinear = square and self.interpolation == "bilinear"
        rooms = [whole - part for whole, part in zip(size, self.target, strict=True)]
        corners = [[round(room * place) for room in rooms] for place in places]
        if max(whole / part for whole, part in zip(size, self.target, strict=True)) >= EXTREME:
            return [_resized_part(frames, size, corner, self.target, bilinear=bilinear) for corner in corners]
        method = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
        resized = _resized(frames, size, method)
        return [F.crop(resized, top, left, self.target[0], self.target[1]) for top, left in corners]


def _axes(source: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """The order of the two passes: width first, unless the height loses more than twice as many pixels.

    Values are rounded and clamped between the passes, so the order shows at sharp edges. This is Pillow's since 13,
    found by trying sizes; before, it always began with the width.
    """
    return (-2, -1) if source[-2] - size[-2] > 2 * max(0, source[-1] - size[-1]) else (-1, -2)


def _resized(
    frames: UInt8[Tensor, "*batch 3 height width"], size: Sequence[int], method: InterpolationMode
) -> UInt8[Tensor, "*batch 3 h w"]:
    if _axes(frames.shape, size) == (-2, -1):  # torch itself always begins with the width
        frames = F.resize(frames, [size[0], frames.shape[-1]], method, antialias=True)
    return F.resize(frames, list(size), method, antialias=True)


def _resized_part(
    frames: UInt8[Tensor, "*batch 3 height width"],
    size: Sequence[int],
    corner: Sequence[int],
    part: Sequence[int],
    *,
    bilinear: bool,
) -> UInt8[Tensor, "*batch 3 h w"]:
    """Resize to `size` and crop `part` at `corner`, computing only the pixels of the part.

    A 4096x16 strip would otherwise become 57344x224 on the way to 224x224. Rounded to whole grey levels between the
    passes, as Pillow and torch do, so that the values agree with theirs.
    """
    for axis in _axes(frames.shape, size):
        start, weights = _weights(
            frames.shape[axis], size[axis], first=corner[axis], count=part[axis], bilinear=bilinear
        )
        seen = frames.narrow(axis, start, weights.shape[1]).float().movedim(axis, -1)
        mixed = seen @ weights.to(frames.device).T
        frames = mixed.movedim(-1, axis).round_().clamp_(0, 255).to(torch.uint8)
    return frames


def _weights(source: int, target: int, *, first: int, count: int, bilinear: bool) -> tuple[int, Float32[Tensor, "o i"]]:
    """The antialiased kernel of `count` output pixels from `first`, and the source pixel where its columns begin."""
    scale = source / target
    stretch, support = max(scale, 1.0), 1 if bilinear else 2
    centres = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) * scale
    start = max(0, math.floor(float(centres[0]) - support * stretch))
    stop = min(source, math.ceil(float(centres[-1]) + support * stretch))
    away = ((torch.arange(start, stop, dtype=torch.float64) + 0.5 - centres[:, None]) / stretch).abs()
    if bilinear:
        weights = (1 - away).clamp(min=0)
    else:  # Keys' cubic with a = -1/2, the one of Pillow
        near, far = (1.5 * away - 2.5) * away**2 + 1, ((-0.5 * away + 2.5) * away - 4) * away + 2
        weights = torch.where(away < 1, near, torch.where(away < 2, far, torch.zeros_like(away)))
    return start, (weights / weights.sum(dim=1, keepdim=True)).float()


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim < 3 or frames.shape[-3] != 3 or 0 in frames.shape[-2:]:
        raise ValueError(
            f"frames must be uint8 (..., 3, H, W), got {frames.dtype} {tuple(frames.shape)}; "
            "values 0 to 255, channels before height and width"
        )
