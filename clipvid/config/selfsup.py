"""Settings of ConST-CL, the objective that needs neither captions nor labels.

Contract: plain data that checks itself; importing this file loads nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from clipvid.config import checks


@dataclass(frozen=True)
class SelfSupervision:
    """Settings of ConST-CL, the objective that needs neither captions nor labels (Yuan et al. 2022)."""

    global_weight: float = 1.0
    """Weight of the loss between clips."""
    local_weight: float = 0.001
    """Weight of the loss between regions: 0.001 as released; 1 gives the plain sum, as descriptions of the paper have
    it."""
    temperature_global: float = 0.1
    """Temperature of the loss between clips."""
    temperature_local: float = 0.2
    """Temperature of the loss between regions."""
    regions: int = 8
    """Boxes in the middle frame of each clip."""
    generator: Literal["random", "lowlevel"] = "random"
    """Source of the boxes: random, which is enough, or lowlevel, segments of similar colour in each clip (SLIC; about
    24 ms per clip on one CPU core). Custom boxes: `clipvid.training.selfsup.objective.SelfSupervised.parts`."""
    context: int = 5
    """Frames of the other clip in which a region is searched for, an odd number; all frames if the clip has fewer."""
    split: int = 1
    """Last layers of the branch that each loss has to itself (the Y split); 0 shares all layers."""
    target: Literal["grad", "stopgrad"] = "grad"
    """Gradient through a pair of regions: grad trains both sides (released), stopgrad only the predicted one."""
    norm: Literal["layer", "batch"] = "layer"
    """Normalisation in the projection head: layer works with any batch size, batch (released) needs a large one."""
    hidden: int = 2048
    """Hidden width of the projection head."""
    out: int = 128
    """Output width of the projection head."""
    stride: int = 2
    """Step between consecutive frames of a clip, in video frames; the sampler of data_config does not apply."""
    flip: float = 0.5
    """Probability of mirroring each of the two clips, as released. Use 0 for data where left and right differ in
    meaning."""

    def __post_init__(self) -> None:
        checks.choices(self, _SELFSUP_CHOICES)
        checks.least(self, regions=1, context=1, hidden=1, out=1, stride=1)
        if self.context % 2 == 0:
            raise ValueError(
                f"context must be an odd integer, got {self.context}; it is the middle frame and as many on either side"
            )
        checks.least(self, "it counts layers, 0 for none", split=0)
        checks.probability(self, "flip")
        for name in ("temperature_global", "temperature_local", "global_weight", "local_weight"):
            checks.number(name, getattr(self, name))
        for name in ("temperature_global", "temperature_local"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be above 0 and finite, got {getattr(self, name)}; the default is "
                    f"{getattr(SelfSupervision, name)}"
                )
        weights = self.global_weight, self.local_weight
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise ValueError(
                f"global_weight and local_weight must be finite and >= 0, and not both 0, got {weights}; raise one"
            )


_SELFSUP_CHOICES = {"generator": ("random", "lowlevel"), "target": ("grad", "stopgrad"), "norm": ("layer", "batch")}
