"""Views of a video: the fixed clips that evaluation averages over, and the random pairs of self-supervision.

Contract: plain settings that check themselves. Knows nothing of files or decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipvid.video.augment import CONST_CL, ContrastiveView


@dataclass(frozen=True)
class Views:
    """Fixed views of a video whose predictions are averaged: `temporal` clips, each in `spatial` crops."""

    temporal: int = 1
    """Number of clips, spread evenly over the video (`sampling.sample_views`)."""
    spatial: int = 1
    """Number of crops per clip, 1 or 3 (`VideoTransform.crops`)."""

    def __post_init__(self) -> None:
        if self.temporal < 1 or self.spatial not in (1, 3):
            raise ValueError(
                f"temporal must be an integer >= 1 and spatial must be 1 or 3, got {self.temporal} and {self.spatial}"
            )

    @property
    def count(self) -> int:
        """Number of views per video."""
        return self.temporal * self.spatial

    def __str__(self) -> str:
        return f"{self.temporal} temporal x {self.spatial} spatial views"


ONE_VIEW = Views()
"""The single view that training and most evaluations use."""


@dataclass(frozen=True)
class Pair:
    """Two random clips of a video, sampled and augmented independently: the positive pair of ConST-CL."""

    stride: int = 2
    """Distance in frames between consecutive frames of a clip."""
    augmentations: tuple[ContrastiveView, ContrastiveView] = CONST_CL

    count = 2

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be an integer >= 1, got {self.stride}")

    def __str__(self) -> str:
        return f"pairs of clips of stride {self.stride}"
