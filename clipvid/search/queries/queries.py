"""Queries of an index that are embeddings: their check, before a store compares them.

Contract: an embedding as a caller has it in, a tensor (E,) out. Knows nothing of stores or models.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def query_vector(embedding: object) -> Tensor:
    """Return a query's embedding as a tensor (E,); raise ValueError for anything else, and for zeros."""
    advice = "give one row of what model.encode_text or encode_video returns"
    try:
        vector = torch.as_tensor(cast(Any, embedding))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"embedding must be a vector of numbers, got {embedding!r:.80}; {advice}") from error
    if vector.ndim != 1 or vector.is_complex():
        raise ValueError(f"embedding must be a vector (E,), got shape {tuple(vector.shape)}; {advice}")
    if not bool(vector.any()):
        raise ValueError(f"embedding must not be all zeros, which are equally near to every video; {advice}")
    return vector.float()
