"""What a benchmark of computation is made of: sides that take turns, the machine's own rate, and where the time goes.

Contract: functions that run one step in; seconds, ratios and shares out. Knows nothing of what is computed.
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
"""Rows, inner and columns of a matrix product."""


def take_turns(steps: Mapping[str, Step], *, runs: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step at each of its turns; every step has one turn before that is not counted.

    Machines here change their speed by two within minutes: what is compared must stand side by side.
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
    """How many times as fast `ours` is as each of the others: the median over the turns."""
    own = seconds[ours]
    return {
        name: statistics.median(b / a for a, b in zip(own, theirs, strict=True))
        for name, theirs in seconds.items()
        if name != ours
    }


def products(shapes: Iterable[Shape], *, device: str, dtype: torch.dtype = torch.bfloat16) -> Step:
    """The bare matrix products x W^T of these shapes, one after another: what the machine can do."""
    made = [
        (torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(columns, inner, device=device, dtype=dtype))
        for rows, inner, columns in shapes
    ]

    def step() -> None:
        with torch.no_grad():
            for x, weight in made:
                torch.mm(x, weight.T)

    return step


def flops(shapes: Iterable[Shape]) -> float:
    return float(sum(2 * rows * inner * columns for rows, inner, columns in shapes))


def shares(step: Step, *, device: str, least: float = 0.01, tries: int = 3) -> dict[str, float]:
    """Share of each operation in the time of a step, the largest first, of the fastest of some tries.

    On a GPU in the time of the kernels that it launches; idle time between them is not counted.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    best: tuple[float, Any] | None = None
    for _ in range(tries):
        start = time.perf_counter()
        with profile(activities=activities) as seen:
            step()
            if device == "cuda":
                torch.cuda.synchronize()
        passed = time.perf_counter() - start
        if best is None or passed < best[0]:
            best = passed, seen.key_averages()
    assert best is not None
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, field) for event in best[1] if event.device_type == DeviceType.CPU}
    total = sum(times.values())
    found = sorted(((name, t / total) for name, t in times.items() if t > least * total), key=lambda x: -x[1])
    return dict(found)
