"""Which floating-point type to compute in. Knows torch and devices, nothing of models."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from clipvid.config import PRECISIONS

_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve(precision: str, device: torch.device) -> str:
    """`auto` as bf16-mixed where the device has it natively, 32-true elsewhere; other names as they are."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if device.type == "cpu":
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return "bf16-mixed" if native else "32-true"
    return "32-true"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which a model runs at this precision."""
    dtype = _TYPES.get(resolve(precision, device))
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
