"""Views of a clip that chance decides, drawn once and kept: frames and augmentations as training on videos has them.

Contract: settings, a model's transform and the clips' keys in; for each view the clips as they are to be encoded, and
their names in a cache. View v of a clip is a function of (v, the clip's key), so neither the order of a data set, nor
what else is in it, nor the seed of a training decides a kept view. Knows nothing of taps, folders or losses.
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
    """How views that are kept were drawn; epoch e of a training then reads view e mod `views`.

    The other fields are those of TrainConfig. Raises ValueError for what they cannot be.
    """

    views: int
    """Views of each clip."""
    crop_scale: tuple[float, float] | None = None
    flip: float = 0.0
    rand_augment: int = 0
    rand_magnitude: int = 10

    def __post_init__(self) -> None:
        checks.least(self, views=1)
        augmented(VideoTransform(), self)  # refuses wrong numbers
        scale = None if self.crop_scale is None else tuple(map(float, self.crop_scale))
        plain = {"crop_scale": scale, "flip": float(self.flip)}  # what is equal is written alike, and has one folder
        for name, value in (plain if self.rand_augment else {**plain, "rand_magnitude": 10}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, config: TrainConfig) -> AugmentedViews | None:
        """As training asks for them; None where it asks for one fixed view."""
        if not config.cache_views:
            return None
        own: dict[str, Any] = {name: getattr(config, name) for name in asdict(cls(1)) if name != "views"}
        return cls(config.cache_views, **own)

    def __str__(self) -> str:
        """What decides a view, but for its number and clip: more views of the same kind may be added later."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "views"}, sort_keys=True)


def augmented(base: VideoTransform, settings: TrainConfig | AugmentedViews) -> VideoTransform:
    """A base model's transform with the augmentations of these settings."""
    crop, rand = {"crop_scale": settings.crop_scale, "flip": settings.flip}, settings.rand_augment
    return replace(base, **crop, rand_layers=rand, rand_magnitude=settings.rand_magnitude)
