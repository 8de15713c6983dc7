"""The two heads of ConST-CL: the decoder that predicts regions from a context, and the MLP before the global loss.

Contract: region features (B, R, D) and context tokens (B, T, N, D) in, predicted regions (B, R, D) out; embeddings
(B, D) in, projections (B, E) out. Knows nothing of boxes, views or losses.
Paper: Yuan et al., Contextualized Spatio-Temporal Contrastive Learning with Self-Supervision (ConST-CL, CVPR 2022);
layers and sizes from its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.nn.attention import attend

POSITION_CHANNELS = 8
"""Channels of the temporal position embedding, and of the spatial one."""
EPS = 1e-12
"""Epsilon of the layer norms, as in the released configuration."""
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": partial(nn.BatchNorm1d, track_running_stats=False),
    "layer": nn.LayerNorm,
}
"""Norms of the projection head: batch as released; layer for batches too small for statistics. The head is used only in
training and needs no running statistics; without them, its parameters are all there is to save."""


class RegionDecoder(nn.Module):
    """Cross-attention layers that predict each region of one view from the context tokens of the other view.

    Regions do not attend to each other. Embeddings of their position in time and space are concatenated to the context
    tokens, not to the regions. `unit` is the width of one attention head.
    """

    def __init__(self, width: int, *, layers: int = 3, heads: int = 3, unit: int = 128) -> None:
        super().__init__()
        if min(layers, heads, unit) < 1:
            raise ValueError(
                f"layers, heads and unit must be integers >= 1, got {layers}, {heads} and {unit}; raise the one below 1"
            )
        self.time: nn.Module = _position_mlp(1)
        self.space: nn.Module = _position_mlp(2)
        memory_width = width + 2 * POSITION_CHANNELS
        inner = heads * unit
        self.layers: nn.ModuleList = nn.ModuleList(
            _Layer(inner if layer else width, memory_width, heads=heads, unit=unit) for layer in range(layers)
        )
        self.out: nn.Linear = _initialise(nn.Linear(inner, width))

    def forward(
        self,
        regions: Float[Tensor, "b r d"],
        context: Float[Tensor, "b t n d"],
        *,
        grid: tuple[int, int],
        frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "b r d"]:
        """Predict regions from context tokens; both must be L2-normalised over D, as released.

        `frames` is the time index of each context frame; None numbers them consecutively, as released.
        """
        h, w = grid
        t, n = context.shape[1:3]
        if h * w != n:
            raise ValueError(f"context has {n} tokens per frame, but grid is {h}x{w}; pass the grid of these tokens")
        if frames is not None and len(frames) != t:
            raise ValueError(
                f"context has {t} frames, but frames has {len(frames)} entries: {list(frames)}; pass one per frame"
            )
        positions = self._positions(range(t) if frames is None else frames, grid, like=context)
        memory = torch.cat([context, positions.expand(len(context), -1, -1, -1)], dim=-1).flatten(1, 2)
        for layer in self.layers:
            regions = layer(regions, memory)
        return self.out(regions)

    def _positions(self, frames: Sequence[int], grid: tuple[int, int], *, like: Tensor) -> Float[Tensor, "t n p"]:
        """Return learned embeddings of each token's offset from the centre of the context, in time and in space."""
        axes = [torch.tensor(axis, dtype=like.dtype, device=like.device) for axis in (frames, *map(range, grid))]
        offsets = torch.stack(torch.meshgrid(*(axis - axis.mean() for axis in axes), indexing="ij"), dim=-1)
        offsets = offsets.flatten(1, 2)  # (T, N, 3)
        return torch.cat([self.time(offsets[..., :1]), self.space(offsets[..., 1:])], dim=-1)


class ProjectionHead(nn.Sequential):
    """The global head: three times linear without bias, norm and ReLU, then a linear with bias."""

    def __init__(self, width: int, *, hidden: int = 2048, out: int = 128, norm: str = "batch") -> None:
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")
        layers: list[nn.Module] = []
        for in_width in (width, hidden, hidden):
            layers += [nn.Linear(in_width, hidden, bias=False), NORMS[norm](hidden), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden, out))


class _Layer(nn.Module):
    """`heads` parallel units, each a single-head decoder: an FFN after LN(attention + projected query).

    The FFN has no residual connection, and units do not mix within a layer; the query projection of the next layer is
    the first to combine them. `unit` is their width.
    """

    def __init__(self, width: int, memory_width: int, *, heads: int, unit: int) -> None:
        super().__init__()
        self.heads, self.unit = heads, unit
        self.q = _initialise(nn.Linear(width, heads * unit), chunks=heads)
        self.kv = _initialise(nn.Linear(memory_width, 2 * heads * unit), chunks=2 * heads)
        self.norm_weight = nn.Parameter(torch.ones(heads, 1, unit))
        self.norm_bias = nn.Parameter(torch.zeros(heads, 1, unit))
        self.ffn1 = _LinearPerUnit(heads, unit)
        self.ffn2 = _LinearPerUnit(heads, unit)

    def forward(self, x: Float[Tensor, "b r d"], memory: Float[Tensor, "b m c"]) -> Float[Tensor, "b r e"]:
        q = self.q(x).unflatten(-1, (self.heads, self.unit)).transpose(1, 2)  # (B, heads, R, unit)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, self.unit)).permute(2, 0, 3, 1, 4)
        hidden = F.layer_norm(attend(q, k, v) + q, (self.unit,), eps=EPS)
        hidden = hidden * self.norm_weight + self.norm_bias
        hidden = self.ffn2(F.gelu(self.ffn1(hidden)))
        return hidden.transpose(1, 2).flatten(2)  # (B, R, heads * unit)


class _LinearPerUnit(nn.Module):
    """A separate linear for each unit, computed as one batched product."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units, width, width))
        self.bias = nn.Parameter(torch.zeros(units, 1, width))
        for weight in self.weight.data:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Float[Tensor, "b a r d"]) -> Float[Tensor, "b a r d"]:
        return x @ self.weight.mT + self.bias


def _position_mlp(axes: int) -> nn.Sequential:
    """Build the MLP that embeds offsets along `axes` axes."""
    return nn.Sequential(_initialise(nn.Linear(axes, 4)), nn.ReLU(), _initialise(nn.Linear(4, POSITION_CHANNELS)))


def _initialise(linear: nn.Linear, *, chunks: int = 1) -> nn.Linear:
    """Initialise as Keras does, each of the `chunks` chunks of rows separately, and return the linear.

    Biases start at zero: torch's random ones would be larger than the products with inputs of norm 1.
    """
    for weight in linear.weight.data.chunk(chunks):
        nn.init.xavier_uniform_(weight)
    nn.init.zeros_(linear.bias)
    return linear
