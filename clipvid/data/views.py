"""Views of a video: the fixed clips that evaluation averages over, and the random pairs of self-supervision.

Contract: plain settings that check themselves. Knows nothing of files or decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipvid.video.augment import CONST_CL, ContrastiveView


@dataclass(frozen=True)
class Views:
    """Fixed clips of a video whose predictions are averaged: each of `temporal` clips in `spatial` crops, in turn."""

    temporal: int = 1
    """Spread evenly over the video (`sampling.sample_views`)."""
    spatial: int = 1
    """1 or 3 (`VideoTransform.crops`)."""

    def __post_init__(self) -> None:
        if self.temporal < 1 or self.spatial not in (1, 3):
            raise ValueError(f"temporal starts at 1 and spatial is 1 or 3, got {self.temporal} and {self.spatial}")

    @property
    def count(self) -> int:
        return self.temporal * self.spatial

    def __str__(self) -> str:
        return f"{self.temporal} temporal x {self.spatial} spatial views"


ONE_VIEW = Views()
"""The one view of a video that training and most evaluations read."""


@dataclass(frozen=True)
class Pair:
    """Two random clips of a video, drawn and augmented apart, that self-supervision brings together (ConST-CL)."""

    stride: int = 2
    """Frames from one of a clip to the next."""
    recipes: tuple[ContrastiveView, ContrastiveView] = CONST_CL

    count = 2

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be 1 or more, got {self.stride}")

    def __str__(self) -> str:
        return f"pairs of clips of stride {self.stride}"
