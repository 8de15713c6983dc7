"""Relational self-attention (RSA): kernel and context of a position are both built from relations to its neighbours.

Contract: (B, T, h, w, C) in, (B, T, h, w, C) out, without residual or norm. Masked frames and neighbours beyond the
border count as zeros. The factored form is computed, so no tensor of size M x M is created, where M = kt kh kw is the
number of neighbours. Knows nothing of CLIP.
Paper: Kim et al., Relational Self-Attention: What's Missing in Attention for Video Understanding (NeurIPS 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

PARTS = ("V", "R", "VplusR")
"""Terms of the kernel and of the context: V basic, R relational, VplusR their sum."""
EPS = 1e-6  # added inside the square root of the L2 norm, as in the released code


class RSA(nn.Module):
    """Relational self-attention y[l] = (kV[l] + kR[l]) (X_V + X_R) for L queries l; output channel l·C/L + c.

    Q, K and V are projected without bias and L2-normalised over channels, without softmax. With the neighbourhood's
    X_K and X_V (M x C/L): kV = q P^T, kR = vec(q . X_K) H, X_R = X_V X_V^T G. H and P share a factor of rank C/L, so
    `forward` can sum over the neighbours first.
    """

    def __init__(
        self,
        width: int,
        *,
        queries: int,
        kernel: Sequence[int] = (5, 7, 7),
        kernel_type: str = "VplusR",
        context_type: str = "VplusR",
        form: str = "hadamard",
    ) -> None:
        super().__init__()
        for name, value in (("kernel_type", kernel_type), ("context_type", context_type)):
            if value not in PARTS:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(PARTS)}")
        if form not in ("hadamard", "dot"):
            raise ValueError(f"unknown form {form!r}; choose one of hadamard, dot")
        if not isinstance(queries, int) or queries < 1 or width % queries:
            raise ValueError(
                f"width must be divisible by queries, an integer >= 1, got {width} and {queries}; change one of them"
            )
        if not _is_kernel(kernel):
            raise ValueError(
                f"kernel must be three odd numbers >= 1 (time, height, width), got {kernel!r}; the paper uses (5, 7, 7)"
            )
        self.queries = queries
        self.kernel_type = kernel_type
        self.context_type = context_type
        d = width // queries
        self.d: int = d  # channels of each query, key and value, and the shared rank
        self.padding: list[int] = [k // 2 for k in kernel]
        self.q: nn.Linear = nn.Linear(width, width, bias=False)
        self.k: nn.Linear | None = nn.Linear(width, d, bias=False) if "R" in kernel_type else None
        self.v: nn.Linear = nn.Linear(width, d, bias=False)
        neighbours = math.prod(kernel)

        def conv(channels: int) -> nn.Parameter:  # Kaiming normal over the fan-out, as in the released network
            return nn.Parameter(torch.randn(channels, 1, *kernel) * (2 / (channels * neighbours)) ** 0.5)

        self.h1: nn.Parameter | None = conv(d if form == "dot" else d * d) if "R" in kernel_type else None
        self.h2: nn.Parameter = conv(d)
        self.g: nn.Parameter | None = conv(d) if "R" in context_type else None
        self.p1: nn.Parameter | None = None
        if kernel_type == "VplusR":
            self.p1 = nn.Parameter(torch.randn(d, d) * (1 / (neighbours * d)) ** 0.5)
        self.identity: nn.Parameter | None = nn.Parameter(torch.eye(d)) if context_type == "VplusR" else None

    def forward(
        self, x: Float[Tensor, "b t h w c"], *, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t h w c"]:
        q = _unit(self.q(x).unflatten(-1, (self.queries, self.d)))  # (B, T, h, w, L, d)
        v = self._unit_unmasked(self.v(x), mask)
        kernel = q if self.kernel_type == "V" else torch.einsum("...lk,...ke->...le", q, self._keys(x, mask))
        context = self._per_channel(v, self.h2)  # V H2: (B, T, h, w, d of V, rank)
        if self.g is not None:
            mixed = self._per_channel(v, self.g)  # V G
            if self.identity is not None:
                mixed = mixed + self.identity
            context = torch.einsum("...vc,...ve->...ce", mixed, context)
        return torch.einsum("...le,...ce->...lc", kernel, context).flatten(-2)

    def _keys(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return K H1 + P1, (B, T, h, w, d of K, rank)."""
        assert self.k is not None
        assert self.h1 is not None
        k = self._unit_unmasked(self.k(x), mask)
        if len(self.h1) == self.d:
            keys = self._per_channel(k, self.h1)
        else:
            keys = F.conv3d(k.movedim(-1, 1), self.h1, padding=self.padding, groups=self.d)
            keys = keys.unflatten(1, (self.d, self.d)).movedim((1, 2), (-2, -1))
        return keys if self.p1 is None else keys + self.p1

    def _unit_unmasked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """L2-normalise over channels and set masked frames to zero."""
        x = _unit(x)
        return x if mask is None else x.masked_fill(~mask[:, :, None, None, None], 0)

    def _per_channel(
        self, x: Float[Tensor, "b t h w d"], weight: Float[Tensor, "e 1 i j k"]
    ) -> Float[Tensor, "b t h w d e"]:
        """Apply the same convolution to each channel separately."""
        b, d = x.shape[0], x.shape[-1]
        out = F.conv3d(x.movedim(-1, 1).flatten(0, 1)[:, None], weight, padding=self.padding)
        return out.unflatten(0, (b, d)).movedim((1, 2), (-2, -1))


def _unit(x: Tensor) -> Tensor:
    """L2-normalise over channels."""
    return x * (x.square().sum(dim=-1, keepdim=True) + EPS).rsqrt()


def _is_kernel(kernel: object) -> bool:
    """Return True for a sequence of three odd positive integers."""
    if not isinstance(kernel, Sequence) or len(kernel) != 3:
        return False
    return all(isinstance(k, int) and k >= 1 and k % 2 == 1 for k in kernel)
