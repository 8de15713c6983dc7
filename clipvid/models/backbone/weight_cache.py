"""Values computed from a module's weights, each remembered until a weight or a part of the module changes.

Contract: a module and a function in, its value out, from memory where nothing has changed since. Safe from many
threads. Writes that torch does not see are not noticed: through `.data`, through NumPy or DLPack views, by other
processes and by replayed CUDA graphs. Call `forget` after those, or `torch.autograd.graph.increment_version(weight)`.
Knows nothing of what the values are.
"""

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
    """Values by key, with the weights that each was computed from; empty after being copied or unpickled."""

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
        """Compute every value anew when it is next asked for."""
        with self._lock:
            self._values.clear()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


class Snapshot:
    """The weights of a module at one moment: the tensors, torch's count of writes to each, and the parts without any.

    Optimizer steps count beside torch's own count, which fused optimizers do not raise.
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
        """True while every weight is the same tensor, in the same memory, unwritten since."""
        weights = list(weights_of(module))
        return (
            not self._stepped
            and len(weights) == len(self._weights)
            and all(
                weight is seen and weight._version == version and weight.data_ptr() == alias.data_ptr()
                for weight, (seen, alias, version) in zip(weights, self._weights, strict=True)
            )
            and parts_of(module) == self._parts
        )

    def note_step(self, stepped: set[int]) -> None:
        """Take note that an optimizer has moved the tensors of these identities."""
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


def weights_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    return chain(module.parameters(), module.buffers())


def is_tracked(module: nn.Module) -> bool:
    """True where torch counts writes: not for weights that were created in inference mode."""
    return not any(weight.is_inference() for weight in weights_of(module))


def parts_of(module: nn.Module) -> tuple[list[str], list[bool]]:
    """Everything else that decides a module's result: its parts without weights, and the mode of each part."""
    return plain_parts(module), [part.training for part in module.modules()]


def plain_parts(module: nn.Module) -> list[str]:
    """The parts of a module that compute without weights, such as activations."""
    parts = ((part, chain(part._modules.values(), part._parameters.values())) for part in module.modules())
    return [repr(part) for part, members in parts if all(member is None for member in members)]
