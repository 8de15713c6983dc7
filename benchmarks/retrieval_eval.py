"""How long scoring a retrieval takes and what memory, for galleries of 1,000 to 100,000: time grows, memory does not.

    python benchmarks/retrieval_eval.py                         # writes benchmarks/results/retrieval_eval.json
    python benchmarks/retrieval_eval.py --sizes 1000 10000 --out small.json

Random embeddings of width 512 with one right video a caption; both directions, all figures and intervals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cells import COMMIT, machine, peak_memory, write_json

from clipvid.metrics import Products, retrieval_metrics

RESULTS = Path(__file__).parent / "results" / "retrieval_eval.json"
WIDTH = 512


def measure(size: int) -> dict[str, Any]:
    """Seconds, and MiB above the embeddings, for `size` captions and as many videos."""
    made = torch.Generator().manual_seed(0)
    video = torch.nn.functional.normalize(torch.randn(size, WIDTH, generator=made), dim=-1)
    text = torch.nn.functional.normalize(video + 0.25 * torch.randn(size, WIDTH, generator=made), dim=-1)
    with peak_memory("cpu") as peak:
        start = time.perf_counter()
        found = retrieval_metrics(Products(text, video), torch.arange(size))
        seconds = time.perf_counter() - start
    figures = {f"{side} {name}": found.to_dict()[side][name] for side in ("t2v", "v2t") for name in ("R@1", "MnR")}
    return {"size": size, "seconds": seconds, "MiB above the embeddings": peak[0], "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    rows = []
    for size in args.sizes:  # a process each, so that no peak hides another
        command = [sys.executable, __file__, "--one", str(size)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(json.dumps(rows[-1]), flush=True)
    command = "python benchmarks/retrieval_eval.py"
    write_json(args.out, {"command": command, "width": WIDTH, "commit": COMMIT, **machine(), "rows": rows})


if __name__ == "__main__":
    main()
