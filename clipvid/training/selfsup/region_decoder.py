"""The two heads of ConST-CL: a decoder that predicts regions from a context, and the MLP before the global loss.

Contract: region features (B, R, D) and context tokens (B, T, N, D) in, predicted regions (B, R, D) out; embeddings
(B, D) in, projections (B, E) out. Knows nothing of boxes, of views or of losses.
Paper: Yuan et al., Contextualized Spatio-Temporal Contrastive Learning with Self-Supervision (ConST-CL, CVPR 2022);
layers and sizes from its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.nn.attention import attend

POSITION = 8
"""Channels of a position in time, and as many of one in space."""
EPS = 1e-12  # of the layer norms, as in the released configuration
NORMS = {"batch": partial(nn.BatchNorm1d, track_running_stats=False), "layer": nn.LayerNorm}
"""Norms of the projection head: batch as released; layer for batches too small for statistics. The head ends with
training, so nobody needs running statistics, and those a checkpoint of parameters would lose."""


class RegionDecoder(nn.Module):
    """Each region asks the context of the other view what it looks like there: layers of cross-attention alone.

    Regions do not see each other. Keys and values carry their position, in time and place, beside their features;
    queries carry none.
    """

    def __init__(self, width: int, *, layers: int = 3, heads: int = 3, unit: int = 128) -> None:
        super().__init__()
        if min(layers, heads, unit) < 1:
            raise ValueError(f"layers, heads and unit start at 1, got {layers}, {heads} and {unit}")
        self.time = _position(1)
        self.place = _position(2)
        memory = width + 2 * POSITION
        inner = heads * unit
        self.layers = nn.ModuleList(
            _Layer(inner if layer else width, memory, heads=heads, unit=unit) for layer in range(layers)
        )
        self.out = _start(nn.Linear(inner, width))

    def forward(
        self,
        regions: Float[Tensor, "b r d"],
        context: Float[Tensor, "b t n d"],
        *,
        grid: tuple[int, int],
        frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "b r d"]:
        """Predict regions from the tokens of some frames; both L2-normalised over D beforehand, as released.

        `frames` says when each frame of the context is; None takes them for neighbours, as released.
        """
        h, w = grid
        t, n = context.shape[1:3]
        if h * w != n:
            raise ValueError(f"context has {n} tokens a frame, which a grid of {h}x{w} does not hold; pass their grid")
        if frames is not None and len(frames) != t:
            raise ValueError(f"context has {t} frames, but {len(frames)} times are given: {list(frames)}; one for each")
        positions = self._positions(range(t) if frames is None else frames, grid, like=context)
        memory = torch.cat([context, positions.expand(len(context), -1, -1, -1)], dim=-1).flatten(1, 2)
        for layer in self.layers:
            regions = layer(regions, memory)
        return self.out(regions)

    def _positions(self, frames: Sequence[int], grid: tuple[int, int], *, like: Tensor) -> Float[Tensor, "t n p"]:
        """What is learned of each token's distance from the middle of all."""
        axes = [torch.tensor(axis, dtype=like.dtype, device=like.device) for axis in (frames, *map(range, grid))]
        places = torch.stack(torch.meshgrid(*(axis - axis.mean() for axis in axes), indexing="ij"), dim=-1)
        places = places.flatten(1, 2)  # (T, N, 3)
        return torch.cat([self.time(places[..., :1]), self.place(places[..., 1:])], dim=-1)


class ProjectionHead(nn.Sequential):
    """The global head: linear without bias, norm and ReLU, three times, then a linear with bias."""

    def __init__(self, width: int, *, hidden: int = 2048, out: int = 128, norm: str = "batch") -> None:
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")
        layers: list[nn.Module] = []
        for before in (width, hidden, hidden):
            layers += [nn.Linear(before, hidden, bias=False), NORMS[norm](hidden), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden, out))


class _Layer(nn.Module):
    """`heads` units side by side, each a decoder of one head: an FFN after LN(attention + projected query).

    Nothing goes round the FFN, and units never mix: the next layer's queries are the first to see all of them.
    """

    def __init__(self, width: int, memory: int, *, heads: int, unit: int) -> None:
        super().__init__()
        self.heads, self.unit = heads, unit
        self.q = _start(nn.Linear(width, heads * unit), units=heads)
        self.kv = _start(nn.Linear(memory, 2 * heads * unit), units=2 * heads)
        self.norm_weight = nn.Parameter(torch.ones(heads, 1, unit))
        self.norm_bias = nn.Parameter(torch.zeros(heads, 1, unit))
        self.ffn1 = _PerUnit(heads, unit)
        self.ffn2 = _PerUnit(heads, unit)

    def forward(self, x: Float[Tensor, "b r d"], memory: Float[Tensor, "b m c"]) -> Float[Tensor, "b r e"]:
        q = self.q(x).unflatten(-1, (self.heads, self.unit)).transpose(1, 2)  # (B, A, R, unit)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, self.unit)).permute(2, 0, 3, 1, 4)
        hidden = F.layer_norm(attend(q, k, v) + q, (self.unit,), eps=EPS)
        hidden = hidden * self.norm_weight + self.norm_bias
        hidden = self.ffn2(F.gelu(self.ffn1(hidden)))
        return hidden.transpose(1, 2).flatten(2)  # (B, R, A·unit)


class _PerUnit(nn.Module):
    """A linear for each unit on its own, in one product."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units, width, width))
        self.bias = nn.Parameter(torch.zeros(units, 1, width))
        for weight in self.weight.data:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Float[Tensor, "b a r d"]) -> Float[Tensor, "b a r d"]:
        return x @ self.weight.mT + self.bias


def _position(axes: int) -> nn.Sequential:
    return nn.Sequential(_start(nn.Linear(axes, 4)), nn.ReLU(), _start(nn.Linear(4, POSITION)))


def _start(linear: nn.Linear, *, units: int = 1) -> nn.Linear:
    """Start as Keras does, each unit on its own: inputs of norm 1 would drown in torch's random biases."""
    for weight in linear.weight.data.chunk(units):
        nn.init.xavier_uniform_(weight)
    nn.init.zeros_(linear.bias)
    return linear
