"""Transfer of taps to a GPU while it computes: from page-locked memory, on a separate CUDA stream.

Contract: taps that a thread has gathered in; a function that returns them on the device out, called by the thread that
computes with them. On any other device it is just `to`. Knows nothing of the use of the taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from clipvid.models.backbone.taps import Taps


def sent(taps: Taps, device: torch.device) -> Callable[[], Taps]:
    """Start the transfer to `device`; return a function that makes the caller's stream wait and gives the taps there.

    A plain copy would wait for all queued work of the device, and the device for the copy.
    """
    if device.type != "cuda" or taps.frames.is_cuda:
        return lambda: taps.to(device)
    stream = _stream(device)
    with torch.cuda.stream(stream):
        moved = _each(taps, lambda t: t.pin_memory().to(device, non_blocking=True))
        copied = stream.record_event()

    def arrived() -> Taps:
        reader = torch.cuda.current_stream(device)
        reader.wait_event(copied)

        def read(t: Tensor) -> Tensor:
            t.record_stream(reader)  # keeps the other stream from reusing its memory before the reader is done
            return t

        return _each(moved, read)

    return arrived


def _each(taps: Taps, change: Callable[[Tensor], Tensor]) -> Taps:
    """Return the taps with `change` applied to the features and the mask."""
    moved = taps.map(change)
    return moved if taps.mask is None else replace(moved, mask=change(taps.mask))


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
