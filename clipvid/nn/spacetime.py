"""The space-time block: a transformer block with extra steps across frames (named schemes are in schemes.py).

Contract: class token (B, D) or None and patches (B, T, N, D) in, the same out. STAN's layers, TimeSformer's blocks and
the blocks of ViViT's models 1, 3 and 4 are this class with different steps. Knows nothing of towers, taps or heads.
Papers: Bertasius et al., TimeSformer (ICML 2021), section 3; Arnab et al., ViViT (ICCV 2021), section 3.3; Liu et al.,
STAN (CVPR 2023), section 3.2-3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from clipvid.nn.attention import Block
from clipvid.nn.attention_patterns import attend_in_groups, comparisons
from clipvid.nn.mixers import AttentionStep
from clipvid.nn.schemes import SCHEMES, Drop, Scheme, StepPosition


def keys_per_patch(
    scheme: str, *, frames: int, grid: tuple[int, int], cls: bool = True, cls_key: bool | None = None
) -> list[int]:
    """Return the number of keys per patch for each step of a block, in order; the papers report their sum.

    `cls` is True when the clip or each frame has a class token; `cls_key` overrides the scheme's setting of that name.
    """
    named = SCHEMES[scheme]
    cls_in_steps = cls and (named.cls_key if cls_key is None else cls_key)
    extra_keys = [comparisons(kind, frames=frames, grid=grid, cls=cls_in_steps) for kind in named.steps]
    block_keys = comparisons(named.kind, frames=frames, grid=grid, cls=cls)
    return [*extra_keys, block_keys] if named.position == "before" else [block_keys, *extra_keys]


class SpaceTimeBlock(nn.Module):
    """A transformer block applied within groups of tokens, with extra steps across frames (`position` says where).

    A class token belongs to the entire clip: it joins every group, and its outputs are averaged over the groups.
    `drop` selects the stochastic depth. "released" drops attention per group, and with `drop_mlp` the MLP per clip, and
    rescales the remaining residuals. "clip" drops each residual per clip without rescaling, as ViViT does.
    """

    def __init__(
        self,
        block: nn.Module,
        steps: Sequence[nn.Module] = (),
        *,
        kind: str = "space",
        position: StepPosition = "before",
        drop_path: float = 0.0,
        drop_mlp: bool = False,
        drop: Drop = "released",
    ) -> None:
        super().__init__()
        if kind != "space" and not isinstance(block, Block):
            raise ValueError(
                f"block must be a plain Block, got {type(getattr(block, 'block', block)).__name__}, whose attention is "
                f"limited to single frames; scheme {kind!r} needs plain blocks: choose space, divided or factorised"
            )
        self.block: Any = block  # provides attention_residual and mlp_residual
        if kind == "split" and self.block.attention.heads % 2:
            raise ValueError(
                f"heads must be even, got {self.block.attention.heads}; in scheme split, half of them attend over time"
            )
        self.steps: nn.ModuleList = nn.ModuleList(steps)
        self.kind = kind
        self.position = position
        self.drop_path = drop_path
        self.drop_mlp = drop_mlp
        self.drop = drop

    def forward(
        self,
        cls: Float[Tensor, "b d"] | None,
        patch: Float[Tensor, "b t n d"],
        *,
        grid: tuple[int, int],
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b d"] | None, Float[Tensor, "b t n d"]]:
        if self.position == "before":
            patch = self._apply_steps(cls, patch, grid=grid, mask=mask)
        cls, patch = self._apply_attention(cls, patch, grid=grid, mask=mask)
        if self.position == "between":
            patch = self._apply_steps(cls, patch, grid=grid, mask=mask)
        # On a CPU the class token is computed separately: as an extra row per clip it does not fit the block size of
        # the matrix product and costs 4 to 5 % of a training step. On a GPU one call needs half as many kernels.
        cls_residual, patch_residual = self._mlp_residuals(cls, patch, separate_cls=patch.device.type == "cpu")
        cls, patch = self._add_residuals(
            cls, patch, cls_residual, patch_residual, drops=self.drop_mlp or self.drop == "clip"
        )
        if self.position == "after":
            patch = self._apply_steps(cls, patch, grid=grid, mask=mask)
        return cls, patch

    def _apply_steps(self, cls: Tensor | None, patch: Tensor, *, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Add the residuals of the extra steps to the patches."""
        for step in self.steps:
            options = {"cls": cls} if isinstance(step, AttentionStep) else {}
            residual = step(patch, grid=grid, mask=mask, **options)  # with "released", the step itself drops groups
            _, patch = self._add_residuals(None, patch, None, residual, drops=self.drop == "clip")
        return patch

    def _apply_attention(
        self, cls: Tensor | None, patch: Tensor, *, grid: tuple[int, int], mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Add the residuals of the block's attention to the class token and the patches."""
        cls_residual, patch_residual = attend_in_groups(
            self._group_attention, patch, kind=self.kind, grid=grid, cls=cls, mask=mask
        )
        return self._add_residuals(cls, patch, cls_residual, patch_residual, drops=self.drop == "clip")

    def _mlp_residuals(self, cls: Tensor | None, patch: Tensor, *, separate_cls: bool) -> tuple[Tensor | None, Tensor]:
        """Return the MLP residuals; with `separate_cls`, that of the class token is computed in a separate call."""
        tokens = patch.flatten(1, 2)
        if cls is None or separate_cls:
            cls_residual = None if cls is None else self.block.mlp_residual(cls[:, None])[:, 0]
            return cls_residual, self.block.mlp_residual(tokens).unflatten(1, patch.shape[1:3])
        residuals = self.block.mlp_residual(torch.cat([cls[:, None], tokens], dim=1))
        return residuals[:, 0], residuals[:, 1:].unflatten(1, patch.shape[1:3])

    def _group_attention(self, x: Tensor, **options: Any) -> Tensor:
        """Return the attention residual; with "released", stochastic depth drops the residuals of single groups."""
        residual = self.block.attention_residual(x, **options)
        if self.drop == "clip":
            return residual
        return stochastic_depth(residual, self.drop_path, "row", self.training)

    def _add_residuals(
        self, cls: Tensor | None, patch: Tensor, cls_residual: Tensor | None, patch_residual: Tensor, *, drops: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Return tokens plus residuals; with `drops`, stochastic depth drops all tokens of a clip together."""
        if drops and self.training and self.drop_path:
            factor = stochastic_depth(
                patch_residual.new_ones(len(patch), 1), self.drop_path, "row", True
            )  # (B, 1), 0 or 1 / (1 - rate)
            if self.drop == "clip":
                factor = factor * (1 - self.drop_path)
            patch_residual = patch_residual * factor[:, :, None, None]
            cls_residual = None if cls_residual is None else cls_residual * factor
        return (cls if cls is None or cls_residual is None else cls + cls_residual), patch + patch_residual


def with_cls_of_frames(cls: Float[Tensor, "b t d"], patch: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t m d"]:
    """Return the patches with each frame's class token as an additional patch in front, (B, T, N + 1, D)."""
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
    """Return `depth` untrained blocks of a scheme, with linearly increasing stochastic depth."""
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
    """Return a block with the extra steps of its scheme; `copy_attention` copies the block's attention into them.

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
        block, steps, kind=scheme.kind, position=scheme.position, drop_path=drop_path, drop_mlp=True, drop=drop
    )
