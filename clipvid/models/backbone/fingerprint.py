"""SHA-256 of weights.

Contract: named tensors in, a digest out. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def hash_of(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        data: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(data)
    return digest.hexdigest()
