"""The data config: how clips are read for the tower.

Contract: plain data that checks itself; importing this file loads nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from clipvid.config import checks

PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true")
AVERAGES = ("logits", "probabilities")
"""Quantities that recognition can average over the views of a clip."""


@checks.known_fields({"num_frames": "frames", "n_frames": "frames", "num_workers": "workers", "decoder": "backend"})
@dataclass(frozen=True)
class DataConfig:
    """Settings for reading clips: everything that determines the pixels, and how many workers decode."""

    frames: int = 12
    """Frames per clip (T)."""
    sampler: str = "uniform"
    """Frame sampling: uniform (middle of T equal segments, as STAN), linspace (as CLIP4Clip; pads and masks short
    videos) or dense."""
    temporal_views: int = 1
    """Evenly spaced clips per video that evaluation averages over; not with linspace. Training samples one."""
    spatial_views: int = 1
    """Crops per clip that evaluation averages over: 1 (the base model's own crop) or 3 (both ends and the middle of the
    long side, as TimeSformer)."""
    average: str = "logits"
    """Quantity averaged over views in recognition: logits (as ViViT and TimeSformer's release) or probabilities,
    after the softmax (as STAN and TimeSformer's paper). Retrieval averages normalised embeddings."""
    tokens: int | None = None
    """Maximum caption length in tokens; a longer one is cut but keeps its end token. None: the text tower's maximum."""
    backend: str = "pyav"
    """Decoder: pyav, decord or torchcodec."""
    time_limit: float = field(default=600.0, metadata=checks.FREE)
    """Seconds that decoding one video may take; a slower video counts as unreadable. 0 for no limit."""
    unreadable: str = field(default="raise", metadata=checks.FREE)
    """Behavior at a video that cannot be read: raise stops; skip leaves the video out and reports it."""
    batch_size: int = 16
    """Clips per forward pass of the tower; each view counts as a clip."""
    workers: int = field(default=0, metadata=checks.FREE)
    """Decoder processes; 0 decodes in threads of this process while the tower runs."""
    precision: str = "auto"
    """Floating-point precision: auto, bf16-mixed, 16-mixed or 32-true. auto is bf16-mixed if the hardware computes in
    bf16, else 16-mixed on CUDA and 32-true elsewhere."""

    def __post_init__(self) -> None:
        checks.least(self, frames=1, batch_size=1, workers=0, temporal_views=1, spatial_views=1)
        checks.number("time_limit", self.time_limit, must="a number of seconds")
        for name in ("sampler", "backend", "precision"):
            checks.text(name, getattr(self, name), advice="DataConfig's documentation lists its values")
        if not 0 <= self.time_limit < math.inf:
            raise ValueError(
                f"time_limit must be a finite number of seconds >= 0, got {self.time_limit}; 0 sets no limit"
            )
        if self.tokens is not None:
            checks.least(self, tokens=3)  # the start token, one word and the end token
        if self.spatial_views not in (1, 3):
            raise ValueError(f"spatial_views must be 1 or 3, got {self.spatial_views}; 3 are crops along the long side")
        if self.temporal_views > 1 and self.sampler == "linspace":
            raise ValueError(
                "temporal_views must be 1 with sampler linspace, which spans the whole video, got "
                f"{self.temporal_views}; choose sampler uniform or dense"
            )
        checks.choices(self, {"average": AVERAGES, "precision": PRECISIONS})

    @property
    def views(self) -> int:
        """Clips per video that evaluation averages over (V)."""
        return self.temporal_views * self.spatial_views


def checked_data_config(data_config: object) -> DataConfig | None:
    """Return the argument `data_config` of a public function; raise ValueError if it is no DataConfig and not None."""
    if data_config is None or isinstance(data_config, DataConfig):
        return data_config
    advice = "build it by clipvid.DataConfig(frames=12), or leave it out for the settings of the model's training"
    raise ValueError(f"data_config must be a DataConfig, got {data_config!r:.80}; {advice}")
