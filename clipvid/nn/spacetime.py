"""The space-time block: steps across frames around a transformer block, and the named schemes of such blocks.

Contract: class token (B, D) or None and patches (B, T, N, D) in, the same out. STAN's layers, TimeSformer's blocks and
those of ViViT's models 1, 3 and 4 are this one class with other steps. Knows nothing of towers, taps or heads.
Papers: Bertasius et al., TimeSformer (ICML 2021), section 3; Arnab et al., ViViT (ICCV 2021), section 3.3; Liu et al.,
STAN (CVPR 2023), section 3.2-3.3. `SCHEMES` says of each what is paper, release or ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from clipvid.nn.attention import Block
from clipvid.nn.attention_patterns import attend_in_groups, comparisons
from clipvid.nn.mixers import AttentionStep

Place = Literal["before", "between", "after"]
Drop = Literal["released", "clip"]


@dataclass(frozen=True)
class Scheme:
    """What a block's tokens attend to, step by step."""

    own: str
    """Kind of the block's own attention."""
    steps: tuple[str, ...] = ()
    """Kinds of the extra steps, which start as identities."""
    cls: Literal["video", "frame"] = "video"
    """video: one class token for the clip, shown to every sequence. frame: each frame keeps its own, which is then a
    position like any patch; in a model without class token, none at all."""
    place: Place = "before"
    """Where the extra steps stand: before the block, between its attention and its MLP, or after it."""
    linear: bool = True
    """Extra steps end in a zero-initialised linear; else their output projection starts at zero."""
    cls_key: bool = False
    """The class token is a key in the extra steps too."""


SCHEMES: dict[str, Scheme] = {
    "space": Scheme("space", cls="frame"),
    "joint": Scheme("joint"),
    "divided": Scheme("space", ("time",)),  # the release: without the class token as key, which eq. 11 has
    "local_global": Scheme("grid", ("local",), cls_key=True),  # paper only: which window is ours
    "axial": Scheme("height", ("time", "width"), cls_key=True),  # paper only
    "factorised": Scheme("space", ("time",), cls="frame", place="between", linear=False),  # ViViT's model 3
    "dot_product": Scheme("split", cls="frame"),  # ViViT's model 4
}
"""TimeSformer's five (figure 1 there), and ViViT's models 3 and 4; its model 1 is `joint`, its model 2 `space` before a
temporal transformer."""


def compared(
    scheme: str, *, frames: int, grid: tuple[int, int], cls: bool = True, cls_key: bool | None = None
) -> list[int]:
    """Keys that a patch is compared with in each step of a block, in order; their sum is what the papers count.

    `cls`: there is a class token, or one in each frame; `cls_key` overrides whether it is a key in the extra steps.
    """
    s = SCHEMES[scheme]
    in_steps = cls and (s.cls_key if cls_key is None else cls_key)
    extra = [comparisons(kind, frames=frames, grid=grid, cls=in_steps) for kind in s.steps]
    own = comparisons(s.own, frames=frames, grid=grid, cls=cls)
    return [*extra, own] if s.place == "before" else [own, *extra]


class SpaceTimeBlock(nn.Module):
    """A transformer block within groups of tokens, with steps that mix frames before or after its attention.

    A class token belongs to the whole video: it is shown to every group, and the groups' answers are averaged.
    Stochastic depth, by `drop`: "released" drops the attention's single sequences, and with `drop_mlp` the MLP of whole
    clips, and rescales what stays; "clip" drops each part of whole clips without rescaling, as ViViT does.
    """

    def __init__(
        self,
        block: nn.Module,
        steps: Sequence[nn.Module] = (),
        *,
        own: str = "space",
        place: Place = "before",
        drop_path: float = 0.0,
        drop_mlp: bool = False,
        drop: Drop = "released",
    ) -> None:
        super().__init__()
        if own != "space" and not isinstance(block, Block):
            raise ValueError(
                f"{type(getattr(block, 'block', block)).__name__} is kept whole, with attention of its own that sees "
                f"one frame at a time; scheme {own!r} needs plain blocks: choose space, divided or factorised"
            )
        self.block: Any = block  # gives its two residuals apart: attention_residual, mlp_residual
        if own == "split" and self.block.attention.heads % 2:
            raise ValueError(
                f"half of the heads attend over time, so their number must be even, got {self.block.attention.heads}"
            )
        self.steps = nn.ModuleList(steps)
        self.own, self.place = own, place
        self.drop_path, self.drop_mlp, self.drop = drop_path, drop_mlp, drop

    def forward(
        self,
        cls: Float[Tensor, "b d"] | None,
        patch: Float[Tensor, "b t n d"],
        *,
        grid: tuple[int, int],
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b d"] | None, Float[Tensor, "b t n d"]]:
        if self.place == "before":
            patch = self._mixed(cls, patch, grid=grid, mask=mask)
        cls, patch = self._attended(cls, patch, grid=grid, mask=mask)
        if self.place == "between":
            patch = self._mixed(cls, patch, grid=grid, mask=mask)
        # apart on a CPU: with a row more for each clip matrices no longer fill the blocks that they are multiplied in,
        # which costs 4 to 5 % of a training step; at once on a GPU, which takes half the kernels
        of_cls, of_patch = self._through_mlp(cls, patch, apart=patch.device.type == "cpu")
        cls, patch = self._joined(cls, patch, of_cls, of_patch, drops=self.drop_mlp or self.drop == "clip")
        if self.place == "after":
            patch = self._mixed(cls, patch, grid=grid, mask=mask)
        return cls, patch

    def _mixed(self, cls: Tensor | None, patch: Tensor, *, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        for step in self.steps:
            extras = {"cls": cls} if isinstance(step, AttentionStep) else {}
            found = step(patch, grid=grid, mask=mask, **extras)  # which drops its own sequences, where they are dropped
            _, patch = self._joined(None, patch, None, found, drops=self.drop == "clip")
        return patch

    def _attended(
        self, cls: Tensor | None, patch: Tensor, *, grid: tuple[int, int], mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        of_cls, of_patch = attend_in_groups(self._of_group, patch, kind=self.own, grid=grid, cls=cls, mask=mask)
        return self._joined(cls, patch, of_cls, of_patch, drops=self.drop == "clip")

    def _through_mlp(self, cls: Tensor | None, patch: Tensor, *, apart: bool) -> tuple[Tensor | None, Tensor]:
        """What the MLP adds to each token; with `apart` the class token passes it on its own."""
        tokens = patch.flatten(1, 2)
        if cls is None or apart:
            of_cls = None if cls is None else self.block.mlp_residual(cls[:, None])[:, 0]
            return of_cls, self.block.mlp_residual(tokens).unflatten(1, patch.shape[1:3])
        found = self.block.mlp_residual(torch.cat([cls[:, None], tokens], dim=1))
        return found[:, 0], found[:, 1:].unflatten(1, patch.shape[1:3])

    def _of_group(self, x: Tensor, **extras: Any) -> Tensor:
        """The block's attention; a row of stochastic depth is one sequence, as in the released codes."""
        residual = self.block.attention_residual(x, **extras)
        if self.drop == "clip":
            return residual
        return stochastic_depth(residual, self.drop_path, "row", self.training)

    def _joined(
        self, cls: Tensor | None, patch: Tensor, of_cls: Tensor | None, of_patch: Tensor, *, drops: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Tokens with what a part of the block adds to them; with `drops`, to class token and patches alike."""
        if drops and self.training and self.drop_path:
            kept = stochastic_depth(
                of_patch.new_ones(len(patch), 1), self.drop_path, "row", True
            )  # 0 or 1 / (1 - rate)
            if self.drop == "clip":
                kept = kept * (1 - self.drop_path)
            of_patch = of_patch * kept[:, :, None, None]
            of_cls = None if of_cls is None else of_cls * kept
        return (cls if cls is None or of_cls is None else cls + of_cls), patch + of_patch


def with_cls_of_frames(cls: Float[Tensor, "b t d"], patch: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t m d"]:
    """Each frame's class token before its patches: from there on it is a position like any other."""
    return torch.cat([cls[:, :, None].to(patch.dtype), patch], dim=2)


def scheme_blocks(
    scheme: Scheme,
    width: int,
    depth: int,
    *,
    heads: int,
    eps: float = 1e-6,
    activation: Callable[[], nn.Module] = nn.GELU,
    drop_path: float = 0.0,
    drop: Drop = "released",
) -> list[SpaceTimeBlock]:
    """`depth` untrained blocks of a scheme, with linearly growing stochastic depth."""
    blocks = []
    for k in range(depth):
        rate = drop_path * k / max(1, depth - 1)
        block = Block(width, heads, activation=activation, eps=eps)
        blocks.append(scheme_block(scheme, block, width, heads=heads, eps=eps, drop_path=rate, drop=drop))
    return blocks


def scheme_block(
    scheme: Scheme,
    block: nn.Module,
    width: int,
    *,
    heads: int,
    eps: float = 1e-5,
    drop_path: float = 0.0,
    drop: Drop = "released",
    copy_attention: bool = True,
) -> SpaceTimeBlock:
    """A block with the extra steps of its scheme; with `copy_attention` these start from the block's own attention.

    TimeSformer's release copies (its `temporal_attn` starts as the image model's attention); released STAN does not.
    """
    steps = []
    for kind in scheme.steps:
        step = AttentionStep(
            width,
            heads,
            kind=kind,
            drop_path=0.0 if drop == "clip" else drop_path,
            linear=scheme.linear,
            cls_key=scheme.cls_key,
            eps=eps,
        )
        if copy_attention and isinstance(block, Block):
            step.copy_attention(block)
        steps.append(step)
    return SpaceTimeBlock(
        block, steps, own=scheme.own, place=scheme.place, drop_path=drop_path, drop_mlp=True, drop=drop
    )
