"""Taps on their way to a GPU while it computes: from page-locked memory, on a stream of their own.

Contract: taps that a thread has gathered in; a call that gives them on the device out, made by whoever computes with
them. On any other device nothing but `to`. Knows nothing of what they are for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from clipvid.models.backbone.taps import Taps


def sent(taps: Taps, device: torch.device) -> Callable[[], Taps]:
    """Start on the way to `device`; the call gives the taps there, and its thread's stream waits for them.

    A plain copy would wait for all that the device has to compute, and the device for the copy.
    """
    if device.type != "cuda" or taps.frames.is_cuda:
        return lambda: taps.to(device)
    stream = _stream(device)
    with torch.cuda.stream(stream):
        moved = _each(taps, lambda t: t.pin_memory().to(device, non_blocking=True))
        there = stream.record_event()

    def arrived() -> Taps:
        reader = torch.cuda.current_stream(device)
        reader.wait_event(there)

        def read(t: Tensor) -> Tensor:
            t.record_stream(reader)  # its memory belongs to the other stream, which must not write there before
            return t

        return _each(moved, read)

    return arrived


def _each(taps: Taps, change: Callable[[Tensor], Tensor]) -> Taps:
    """Features and mask alike."""
    moved = taps.map(change)
    return moved if taps.mask is None else replace(moved, mask=change(taps.mask))


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
