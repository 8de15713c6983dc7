"""Inference passes: eval mode, no gradients, one precision; safe from any number of threads.

Contract: `inference` wraps each such pass and alone decides these three settings; `evaluating` is its eval mode alone.
Between two passes a model is in the mode its user left it in. Knows nothing of taps, data sets or indices.
"""

# torch's public `modules` is several times as slow
# pyright: reportPrivateUsage=false

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from clipvid.runtime.precision import autocast

_LOCK = threading.Lock()
_PASSES: dict[nn.Module, int] = {}
"""Number of passes that keep a part in eval mode, for each part that is otherwise in training mode."""


@contextmanager
def inference(model: Any, precision: str) -> Iterator[None]:
    """Run the block in eval mode, without gradients, and at `precision` on the model's device.

    Enter it for each step, not across a `yield`: gradient mode and autocast belong to the thread, not to the generator.
    """
    with evaluating(model), torch.no_grad(), autocast(precision, model.device):
        yield


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Keep `model` and all its parts in eval mode during the block; afterwards each part is in its former mode.

    Blocks may nest and overlap across threads, also for models that share parts: the first to enter switches a part
    to eval mode, the last to leave restores it. An object that is no torch module has no mode and stays as it is.
    """
    with _LOCK:
        parts = [part for part in _parts(model) if _enter(part)]
    try:
        yield
    finally:
        with _LOCK:
            for part in parts:
                _leave(part)


def _parts(model: object) -> Iterator[nn.Module]:
    """Yield a module and all modules below it, shared ones repeatedly; several times as fast as `modules()`."""
    stack = [model] if isinstance(model, nn.Module) else []
    while stack:
        part = stack.pop()
        yield part
        stack.extend(child for child in part._modules.values() if child is not None)


def _enter(part: nn.Module) -> bool:
    """Switch a part to eval mode and count the pass; return False for a part whose user keeps it in eval mode."""
    passes = _PASSES.get(part, 0)
    if not passes and not part.training:
        return False
    _PASSES[part] = passes + 1
    part.training = False  # not part.eval(), which would change the parts below it as well
    return True


def _leave(part: nn.Module) -> None:
    """Count the end of a pass; after the last one, switch the part back to training mode."""
    _PASSES[part] -= 1
    if not _PASSES[part]:
        del _PASSES[part]
        part.training = True
