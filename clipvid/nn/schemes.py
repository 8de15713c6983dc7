"""Named schemes of space-time attention, as plain data: which tokens attend to each other, step by step.

Contract: plain data, and no torch, so that options can be checked at once. `spacetime.py` builds blocks from them.
Papers: Bertasius et al., TimeSformer (ICML 2021), section 3; Arnab et al., ViViT (ICCV 2021), section 3.3. Comments in
`SCHEMES` mark schemes that differ from the paper, and schemes of the paper for which no code was released.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StepPosition = Literal["before", "between", "after"]
Drop = Literal["released", "clip"]


@dataclass(frozen=True)
class Scheme:
    """Attention kinds of a block, step by step."""

    kind: str
    """Attention kind of the block itself."""
    steps: tuple[str, ...] = ()
    """Attention kinds of the extra steps; each starts as an identity."""
    cls: Literal["video", "frame"] = "video"
    """Class token. video: one per clip, added to every sequence. frame: one per frame, treated like a patch; none in a
    model without class tokens."""
    position: StepPosition = "before"
    """Position of the extra steps: before the block, between its attention and its MLP, or after the block."""
    linear: bool = True
    """True to end each extra step in a zero-initialised linear; False to zero-initialise the output projection of its
    attention instead."""
    cls_key: bool = False
    """True to make the class token a key in the extra steps, not only in the block's own attention."""


SCHEMES: dict[str, Scheme] = {
    "space": Scheme("space", cls="frame"),
    "joint": Scheme("joint"),
    "divided": Scheme("space", ("time",)),  # as released: the class token is no key in the time step, unlike eq. 11
    "local_global": Scheme("grid", ("local",), cls_key=True),  # no released code; see local_windows
    "axial": Scheme("height", ("time", "width"), cls_key=True),  # no released code
    "factorised": Scheme("space", ("time",), cls="frame", position="between", linear=False),  # ViViT's model 3
    "dot_product": Scheme("split", cls="frame"),  # ViViT's model 4
}
"""Named schemes: TimeSformer's five (its figure 1) and ViViT's models 3 and 4. ViViT's model 1 is `joint`; its model 2
is `space` followed by a temporal transformer."""
