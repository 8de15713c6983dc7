"""Time and memory of the retrieval metrics, compared in the same run with the full sort of the usual scripts.

    python benchmarks/retrieval_eval.py                         # writes benchmarks/results/retrieval_eval.json
    python benchmarks/retrieval_eval.py --sizes 1000 10000 --out small.json

Random embeddings of width 512 with one correct video per caption; both directions, including the matrix product.
clipvid: all metrics, with the outcome of each query and bootstrap intervals. plain: plain_metrics.py, without these, up
to `--plain_up_to`, because larger matrices do not fit on most machines. Each is measured in a separate process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cells import COMMIT, machine, peak_memory, write_json
from plain_metrics import plain_retrieval
from torch import Tensor

from clipvid.evaluation.metrics import Products, retrieval_metrics

RESULTS = Path(__file__).parent / "results" / "retrieval_eval.json"
WIDTH = 512
METRICS = ("R@1", "R@5", "R@10", "MdR", "MnR")
Metrics = dict[str, dict[str, float]]


def embeddings(size: int, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Return normalised embeddings of captions and of their videos."""
    generator = torch.Generator().manual_seed(0)
    video = torch.nn.functional.normalize(torch.randn(size, width, generator=generator), dim=-1)
    text = torch.nn.functional.normalize(video + 0.25 * torch.randn(size, width, generator=generator), dim=-1)
    return text, video


def ours(text: Tensor, video: Tensor) -> Metrics:
    """Return clipvid's metrics of both directions."""
    result = retrieval_metrics(Products(text, video), torch.arange(len(text)))
    return {side: {name: getattr(result, side)[name] for name in METRICS} for side in ("t2v", "v2t")}


def plain(text: Tensor, video: Tensor) -> Metrics:
    """Return the metrics of the full sort, of both directions."""
    return plain_retrieval(text.numpy(), video.numpy())


SIDES: dict[str, Callable[[Tensor, Tensor], Metrics]] = {"clipvid": ours, "plain": plain}


def largest_difference(first: Metrics, second: Metrics) -> float:
    """Return the largest difference between two sets of metrics."""
    return max(abs(first[side][name] - second[side][name]) for side in first for name in METRICS)


def measure(side: str, size: int) -> dict[str, Any]:
    """Return seconds, and MiB in addition to the embeddings, for `size` captions and as many videos."""
    text, video = embeddings(size)
    SIDES[side](text[:64], video[:64])  # warms up what is slow only once
    with peak_memory("cpu") as peak:
        start, worked = time.perf_counter(), time.process_time()
        metrics = SIDES[side](text, video)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    return {"seconds": seconds, "core_seconds": worked, "beyond_embeddings_mib": peak[0], "metrics": metrics}


def compare(size: int, *, with_plain: bool) -> dict[str, Any]:
    """Measure both sides, each in a separate process, so that no peak hides another."""
    row: dict[str, Any] = {"size": size}
    for side in SIDES if with_plain else ("clipvid",):
        command = [sys.executable, __file__, "--one", side, "--sizes", str(size)]
        row[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if with_plain:
        seconds, memory = ([row[side][of] for side in SIDES] for of in ("seconds", "beyond_embeddings_mib"))
        row["speedup"] = seconds[1] / seconds[0]
        row["memory_share"] = memory[0] / memory[1]
        row["largest_metric_difference"] = largest_difference(row["clipvid"]["metrics"], row["plain"]["metrics"])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--plain_up_to", type=int, default=10_000, help="largest size at which the full sort runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.sizes[0])))
        return
    small = embeddings(500, 64)
    if largest_difference(ours(*small), plain(*small)) > 1e-9:
        raise RuntimeError("clipvid and the plain metrics disagree on 500 pairs, so their times are not compared")
    rows = []
    for size in args.sizes:
        rows.append(compare(size, with_plain=size <= args.plain_up_to))
        print(json.dumps(rows[-1]), flush=True)
    command = "python benchmarks/retrieval_eval.py"
    write_json(args.out, {"command": command, "width": WIDTH, "commit": COMMIT, **machine(), "rows": rows})


if __name__ == "__main__":
    main()
