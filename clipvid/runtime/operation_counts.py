"""Multiply-accumulates of code that runs on the meta device, by operation.

Contract: a function in, counts out; nothing is computed and no memory is allocated. The formulas are those of
torch.utils.flop_counter. Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_macs(run: Callable[[], object]) -> dict[str, int]:
    """Return the multiply-accumulates of a function call by the name of the operation, such as "addmm"."""
    with torch.enable_grad(), _MacCounter() as counter:
        run()
    return dict(counter.counts)


class _MacCounter(TorchDispatchMode):
    """Counter like torch's FlopCounterMode, in a third of its time.

    torch infers the shapes of most operations in Python, and a model repeats the same few: those of each operation are
    inferred once per shape of its inputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._results: dict[Hashable, tuple[list[Callable[[], Tensor | None]], bool, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        key = None if _is_aliasing(func) else _key((func, args, tuple(kwargs.items())))
        if key in self._results:
            makers, is_sequence, macs = self._results[key]
            results = tuple(make() for make in makers)
            result = results if is_sequence else results[0]
        else:
            result = func(*args, **kwargs)
            macs = flop_registry[packet](*args, **kwargs, out_val=result) // 2 if packet in flop_registry else 0
            results = result if isinstance(result, tuple) else (result,)
            if key is not None and all(r is None or (isinstance(r, Tensor) and r.is_meta) for r in results):
                self._results[key] = [_maker(r) for r in results], isinstance(result, tuple), macs
        if macs:
            self.counts[packet.__name__] += macs
        return result


def _is_aliasing(func: Any) -> bool:
    """Return True for an operation that writes to an input or returns a view of one."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def _key(value: Any) -> Hashable:
    """Return a value that is equal for arguments with equal shapes of results; None if there is none."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device) if value.is_meta else None
    if isinstance(value, tuple | list):
        keys = tuple(map(_key, value))
        return None if any(k is None for k in keys) else keys
    return type(value), value  # with the type, as 2 and 2.0 give results of different types


def _maker(result: Tensor | None) -> Callable[[], Tensor | None]:
    """Return a function that returns another result like this one."""
    if result is None:
        return lambda: None
    shape, stride, dtype = result.shape, result.stride(), result.dtype
    return lambda: torch.empty_strided(shape, stride, dtype=dtype, device="meta")
