"""Floating-point precision of a run, by device, and the test for finite values. Knows torch, nothing of models."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from clipvid.config.data_config import PRECISIONS

NATIVE_BF16 = "CLIPVID_NATIVE_BF16"
"""Environment variable that overrides the hardware test of `native_bf16`: 1 for yes, 0 for no."""
_CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_EMULATING = ("AVX512_CORE", "AVX512_CORE_VNNI")  # oneDNN's AVX-512 bf16 kernels compute in float32
_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def native_bf16(device: torch.device) -> bool:
    """Return whether `device` multiplies bfloat16 matrices in hardware; emulated, it is far slower than float32.

    The environment variable `CLIPVID_NATIVE_BF16` overrides the hardware test. Raises ValueError if it is neither 0
    nor 1.
    """
    if device.type not in ("cpu", "cuda"):
        return False
    answer = os.environ.get(NATIVE_BF16)
    if answer is None:
        return _cpu_has_bf16() if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
    if answer not in ("0", "1"):
        raise ValueError(f"{NATIVE_BF16} must be 0 or 1, got {answer!r}; unset it to test the hardware")
    return answer == "1"


def resolve(precision: str, device: torch.device) -> str:
    """Return `auto` as bf16-mixed where bf16 is native, else 16-mixed on CUDA and 32-true; other names as they are."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if native_bf16(device):
        return "bf16-mixed"
    return "16-mixed" if device.type == "cuda" else "32-true"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a model runs at this precision."""
    dtype = _TYPES.get(resolve(precision, device))
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def is_finite(tensor: Tensor) -> bool:
    """Return True if a tensor has no NaN and no infinity.

    Its least and largest value tell, in a tenth of the time of `isfinite`.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor))


def _cpu_has_bf16() -> bool:
    """Return whether the CPU has bf16 instructions and oneDNN, which multiplies matrices for torch, uses them.

    The first alone ignores a cap on oneDNN's instruction set; oneDNN's own answer is also yes on CPUs with AVX-512 but
    no bf16, which it emulates there.
    """
    instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    if not instructions or not torch.backends.mkldnn.is_available():
        return False
    if any(os.environ.get(cap, "").upper() in _EMULATING for cap in _CAPS):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
