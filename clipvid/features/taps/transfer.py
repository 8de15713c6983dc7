"""Transfer of taps to a GPU during its computation: from page-locked memory, on a separate CUDA stream.

Contract: taps in, gathered by a reading thread; a function out, which the computing thread calls to get them on the
device. For a device other than CUDA the function is a plain `Taps.to`. Knows nothing of the use of the taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from clipvid.models.backbone.taps import Taps


def start_transfer(taps: Taps, device: torch.device) -> Callable[[], Taps]:
    """Start the transfer to `device` and return a function that returns the taps there.

    The function makes the current CUDA stream of its caller wait for the transfer. A plain copy would start only after
    all queued work of the device, and the device would be idle during the copy.
    """
    if device.type != "cuda" or taps.frames.is_cuda:
        return lambda: taps.to(device)
    stream = _stream(device)
    with torch.cuda.stream(stream):
        transferred = _change_all(taps, lambda t: t.pin_memory().to(device, non_blocking=True))
        transfer_done = stream.record_event()

    def taps_on_device() -> Taps:
        reader = torch.cuda.current_stream(device)
        reader.wait_event(transfer_done)

        def in_use(t: Tensor) -> Tensor:
            t.record_stream(reader)  # the memory of `t` is not reused before the work queued on `reader` is done
            return t

        return _change_all(transferred, in_use)

    return taps_on_device


def _change_all(taps: Taps, change: Callable[[Tensor], Tensor]) -> Taps:
    """Return the taps with `change` applied to the features and the mask."""
    changed = taps.map(change)
    return changed if taps.mask is None else replace(changed, mask=change(taps.mask))


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
