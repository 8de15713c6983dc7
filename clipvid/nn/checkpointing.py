"""Run again in the backward pass what the forward pass did not keep: memory for time.

Contract: a function in, its values out; gradients are those of keeping everything, to the bit where kernels are
deterministic, since the second run draws the same random numbers. Knows nothing of models.
Paper: Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def checkpointed(run: Callable[..., Any], *given: Tensor | None) -> Any:
    """`run(*given)`, of which the graph keeps `given` alone; the rest is made anew when its gradient is taken.

    The random state is replayed: the CPU's, and that of the GPU on which a tensor of `given` lies, so pass one of its.
    """
    return checkpoint(run, *given, use_reentrant=False, preserve_rng_state=True)
