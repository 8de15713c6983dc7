"""Augmented views: random frames and augmentations of training clips, sampled once per clip and cached.

Contract: settings of a training run and a model's transform in; the settings of its views and their transform out. View
v of a clip is a function of (v, the clip's key): it depends neither on the order of a data set, nor on its other clips,
nor on the seed of a run. Knows nothing of taps, folders or losses.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from clipvid.config import checks
from clipvid.config.settings import TrainConfig
from clipvid.video.transforms import VideoTransform


@dataclass(frozen=True)
class AugmentedViews:
    """Settings of cached augmented views; epoch e of a training run reads view e mod `views`.

    The other fields are those of TrainConfig. Raises ValueError for values outside their range.
    """

    views: int
    """Views per clip."""
    crop_scale: tuple[float, float] | None = None
    flip: float = 0.0
    rand_augment: int = 0
    rand_magnitude: int = 10

    def __post_init__(self) -> None:
        checks.least(self, views=1)
        augmented(VideoTransform(), self)  # raises ValueError for wrong numbers
        scale = None if self.crop_scale is None else tuple(map(float, self.crop_scale))
        canonical = {"crop_scale": scale, "flip": float(self.flip)}  # equal settings must share one cache folder
        for name, value in (canonical if self.rand_augment else {**canonical, "rand_magnitude": 10}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, config: TrainConfig) -> AugmentedViews | None:
        """Return the augmented views that training asks for, or None for one fixed view."""
        if not config.cache_views:
            return None
        fields: dict[str, Any] = {name: getattr(config, name) for name in asdict(cls(1)) if name != "views"}
        return cls(config.cache_views, **fields)

    def __str__(self) -> str:
        """Return the settings of a view as JSON, without the number of views, so that more may be added later."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "views"}, sort_keys=True)


def augmented(base: VideoTransform, settings: TrainConfig | AugmentedViews) -> VideoTransform:
    """Return a base model's transform with the augmentations of these settings."""
    crop, rand = {"crop_scale": settings.crop_scale, "flip": settings.flip}, settings.rand_augment
    return replace(base, **crop, rand_layers=rand, rand_magnitude=settings.rand_magnitude)
