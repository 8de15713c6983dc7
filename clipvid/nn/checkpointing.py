"""Activation checkpointing: recompute activations in the backward pass to save memory at the cost of time.

Contract: a function and its tensors in, its values out. Gradients equal those of a run without checkpointing, bit for
bit where kernels are deterministic, because the second run draws the same random numbers. Knows nothing of models.
Paper: Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def checkpointed(run: Callable[..., Any], *inputs: Tensor | None) -> Any:
    """Return `run(*inputs)`; autograd stores only `inputs` and recomputes the rest in the backward pass.

    The random state is replayed for the CPU and for the GPU that holds a tensor of `inputs`. To replay a GPU's random
    state, pass at least one tensor on that GPU.
    """
    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=True)
