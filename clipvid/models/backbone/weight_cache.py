"""Cache of values computed from a module's weights, valid until a weight or a part of the module changes.

Contract: a module and a function in, the function's value out, cached while nothing changes. Safe from many
threads. Writes that torch does not see are not noticed: through `.data`, through NumPy or DLPack views, by other
processes and by replayed CUDA graphs. Call `forget` after those, or `torch.autograd.graph.increment_version(weight)`.
Knows nothing about the values. Also holds the hook through which `load_state_dict` reports changed weights.
"""

# torch has no public way to read a module's slots that are None
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import cache
from itertools import chain
from threading import Lock
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class WeightCache:
    """Values by key, each with a snapshot of its weights; empty after being copied or unpickled."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: dict[Hashable, tuple[Snapshot, Any]] = {}

    def get(self, key: Hashable, module: nn.Module, compute: Callable[[], Any]) -> Any:
        """Return the value of `key` for the module as it is now; one thread computes it and the others wait."""
        if not is_tracked(module):
            return compute()
        with self._lock:
            entry = self._values.get(key)
            if entry is None or not entry[0].is_current(module):
                snapshot = Snapshot(module)  # before computing: a write in between makes the value outdated
                entry = self._values[key] = (snapshot, compute())
            return entry[1]

    def forget(self) -> None:
        """Drop every value; each is computed again on demand."""
        with self._lock:
            self._values.clear()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


class Snapshot:
    """State of a module at one moment: its weights, torch's version counter of each, and its weightless parts.

    Optimizer steps are tracked separately, because fused optimizers do not raise the version counters.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = parts_of(module)
        # The aliases keep the memory of each weight from being given to another tensor while it is compared
        self._weights = [(weight, weight.detach(), weight._version) for weight in weights_of(module)]
        self._ids = {id(weight) for weight, _, _ in self._weights}
        self._stepped = False
        _watch_optimizers()
        with _LOCK:
            _SNAPSHOTS.add(self)

    def is_current(self, module: nn.Module) -> bool:
        """Return True if every weight is the same tensor in the same memory, not written since."""
        weights = list(weights_of(module))
        return (
            not self._stepped
            and len(weights) == len(self._weights)
            and all(
                weight is saved and weight._version == version and weight.data_ptr() == alias.data_ptr()
                for weight, (saved, alias, version) in zip(weights, self._weights, strict=True)
            )
            and parts_of(module) == self._parts
        )

    def note_step(self, stepped: set[int]) -> None:
        """Record that an optimizer has changed the tensors with these ids."""
        self._stepped = self._stepped or not self._ids.isdisjoint(stepped)


_LOCK = Lock()
_SNAPSHOTS: WeakSet[Snapshot] = WeakSet()


@cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_note_step)


def _note_step(optimizer: Optimizer, *_: Any) -> None:
    stepped = {id(w) for group in optimizer.param_groups for w in group["params"] if w.grad is not None}
    with _LOCK:
        snapshots = list(_SNAPSHOTS)
    for snapshot in snapshots:
        snapshot.note_step(stepped)


def forget_after_load(module: Any, _: Any) -> None:
    """Forget a module's copies after `load_state_dict`; a plain function, so that the module can be pickled."""
    module.forget_copies()


def modules_of(module: nn.Module) -> list[nn.Module]:
    """Return a module and all modules below it, each once; several times as fast as `modules()`."""
    modules = {module: None}  # as a set, but ordered
    stack = [module]
    while stack:
        for child in stack.pop()._modules.values():
            if child is not None and child not in modules:
                modules[child] = None
                stack.append(child)
    return list(modules)


def weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Return all parameters and buffers of a module, repeatedly those that it has under several names."""
    for part in modules_of(module):
        for weight in chain(part._parameters.values(), part._buffers.values()):
            if weight is not None:
                yield weight


def is_tracked(module: nn.Module) -> bool:
    """Return True if torch counts writes to every weight: it does not for weights created in inference mode."""
    return not any(weight.is_inference() for weight in weights_of(module))


def parts_of(module: nn.Module) -> tuple[list[str], list[bool]]:
    """Return the rest of a module's state: its weightless parts and the training mode of each part."""
    return plain_parts(module), [part.training for part in modules_of(module)]


def plain_parts(module: nn.Module) -> list[str]:
    """Return the parts of a module without weights, such as activations, as text."""
    parts = ((part, chain(part._modules.values(), part._parameters.values())) for part in modules_of(module))
    return [repr(part) for part, members in parts if all(member is None for member in members)]
