"""Storage formats of features: bfloat16, float16, float32, or eight bits with a scale per token.

Contract: a tensor whose last axis is a token's channels in, named parts out, and back. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from clipvid.runtime.precision import is_finite

AUTO = "auto"
"""Kind of a cache that stores features without rounding: the kind then follows the precision of the run."""
KINDS = ("bf16", "fp16", "fp32", "int8")
"""Storage formats. int8 rounds each token to 255 steps of its own largest channel."""
FIDELITY = {"int8": 0, "bf16": 1, "fp16": 2, "fp32": 3}
"""Rank of each kind: the higher, the less it rounds."""
SCALE = "scale"
"""Name of the part that holds the scales of int8."""
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def exact_kind(dtype: torch.dtype) -> str:
    """Return the smallest kind that stores every value of this type without rounding; fp32 at most."""
    return next((kind for kind, stored in _TYPES.items() if stored == dtype), "fp32")


def packed(features: Float[Tensor, "*tokens d"], kind: str) -> dict[str, Tensor]:
    """Return the parts that encode `features`: "" alone, or with int8 also "scale", one float32 per token.

    Raises ValueError for an unknown kind, and for values that float16 cannot hold.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
    if kind != "int8":
        stored = features.to(_TYPES[kind])
        if kind == "fp16" and not is_finite(stored) and is_finite(features):
            raise ValueError(
                f"features reach {float(features.abs().max()):g}, beyond float16; store them as bf16 or int8"
            )
        return {"": stored}
    values = features.float()
    scale = values.abs().amax(dim=-1) / 127
    steps = (values / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
    return {"": steps.to(torch.int8), SCALE: scale}


def unpacked(parts: Mapping[str, Tensor], dtype: torch.dtype | None) -> Float[Tensor, "*tokens d"]:
    """Return the features that parts of `packed` encode, in this type; None leaves them in the type of the parts."""
    features = parts[""] * parts[SCALE][..., None] if parts[""].dtype == torch.int8 else parts[""]
    return features if dtype is None else features.to(dtype)


def size(channels: int, kind: str) -> int:
    """Return the bytes of one token."""
    return channels + 4 if kind == "int8" else channels * _TYPES[kind].itemsize
