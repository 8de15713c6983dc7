"""Parts of a benchmark of computation: timing steps in turns, rates of matrix products, and time by operation.

Contract: functions that run one step in; seconds, ratios and shares out. Knows nothing about what is computed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]
Shape = tuple[int, int, int]
"""Rows, inner dimension and columns of a matrix product."""


def take_turns(steps: Mapping[str, Step], *, runs: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each step in each of its turns; a first turn of every step is not counted.

    The speed of a machine can change by a factor of two within minutes, so compared steps must alternate.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(runs + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def times_as_fast(seconds: Mapping[str, list[float]], ours: str) -> dict[str, float]:
    """Return how many times as fast `ours` is as each other step: the median over the turns."""
    our_seconds = seconds[ours]
    return {
        name: statistics.median(b / a for a, b in zip(our_seconds, theirs, strict=True))
        for name, theirs in seconds.items()
        if name != ours
    }


def products(shapes: Iterable[Shape], *, device: str, dtype: torch.dtype = torch.bfloat16) -> Step:
    """Return a step that computes the bare matrix products x W^T of these shapes, one after another."""
    factors = [
        (torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(columns, inner, device=device, dtype=dtype))
        for rows, inner, columns in shapes
    ]

    def step() -> None:
        with torch.no_grad():
            for x, weight in factors:
                torch.mm(x, weight.T)

    return step


def flops(shapes: Iterable[Shape]) -> float:
    """Return the floating-point operations of these products."""
    return float(sum(2 * rows * inner * columns for rows, inner, columns in shapes))


def shares(step: Step, *, device: str, least: float = 0.01, tries: int = 3) -> dict[str, float]:
    """Return the share of each operation in the time of a step, largest first, for the fastest of some tries.

    On a GPU, only the time of the kernels counts, not the idle time between them.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    best: tuple[float, Any] | None = None
    for _ in range(tries):
        start = time.perf_counter()
        with profile(activities=activities) as profiled:
            step()
            if device == "cuda":
                torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        if best is None or elapsed < best[0]:
            best = elapsed, profiled.key_averages()
    assert best is not None
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, field) for event in best[1] if event.device_type == DeviceType.CPU}
    total = sum(times.values())
    largest = sorted(((name, t / total) for name, t in times.items() if t > least * total), key=lambda x: -x[1])
    return dict(largest)
