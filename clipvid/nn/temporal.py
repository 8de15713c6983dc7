"""A temporal transformer over one vector per frame, for a tower that encodes each frame on its own.

Contract: frame vectors (B, T, D) in; the same shape out, and the class token's vector (B, D) if it has one. Masked
frames are never attended to. Knows nothing of towers or fusion.
Papers: Luo et al., CLIP4Clip (2021), section 3.3 (seqTransf); Arnab et al., ViViT (ICCV 2021), section 3.3, model 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid.nn.attention import Block
from clipvid.nn.pooling import resized, stretched


class TemporalTransformer(nn.Module):
    """Positions, transformer blocks over the frames of a clip, and with `norm` a final LN.

    `rows` is the length of the position table. Shorter clips take its first rows, longer ones stretch it linearly
    (CLIP4Clip); with `resize` the table is resized to every clip length (ViViT). With `cls` a class token comes first.
    """

    def __init__(
        self,
        width: int,
        blocks: Sequence[Block],
        *,
        rows: int = 64,
        cls: bool = False,
        norm: bool = True,
        resize: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self._fit_positions = resized if resize else stretched
        self.position: nn.Parameter = nn.Parameter(0.02 * torch.randn(rows, width))
        self.cls: nn.Parameter | None = nn.Parameter(torch.zeros(width)) if cls else None
        self.cls_position: nn.Parameter | None = nn.Parameter(0.02 * torch.randn(width)) if cls else None
        self.blocks: nn.ModuleList = nn.ModuleList(blocks)
        self.norm: nn.Module = nn.LayerNorm(width, eps=eps) if norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b t d"], *, mask: Bool[Tensor, "b t"] | None = None
    ) -> tuple[Float[Tensor, "b d"] | None, Float[Tensor, "b t d"]]:
        x = x + self._fit_positions(self.position, x.shape[1])
        if self.cls is not None and self.cls_position is not None:
            x = torch.cat([(self.cls + self.cls_position).expand(len(x), 1, -1), x], dim=1)
            mask = None if mask is None else torch.cat([mask.new_ones(len(x), 1), mask], dim=1)
        for block in self.blocks:
            x = block(x, mask=mask)
        x = self.norm(x)
        return (None, x) if self.cls is None else (x[:, 0], x[:, 1:])


def plain_blocks(
    width: int, depth: int, *, heads: int, activation: Callable[[], nn.Module] = nn.GELU, eps: float = 1e-5
) -> list[Block]:
    """Return `depth` untrained pre-norm blocks with an MLP of hidden width 4 D."""
    return [Block(width, heads, activation=activation, eps=eps) for _ in range(depth)]
