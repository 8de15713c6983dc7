"""The branch: passes and training steps from taps, beside the bare matrix products; and attention by two roads.

    python benchmarks/branch.py                      # STAN on ViT-B-32, writes benchmarks/results/branch.json
    python benchmarks/branch.py --device cuda --clips 32 --out branch-cuda.json

In bf16, by turns in one process. The bare products of a training step are those of its linears, forth and twice back.
The second table is what `clipvid.nn.attention.attend` chooses by: torch's fused kernel against plain products, for the
pass alone and with the way back, at the lengths that branches meet.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import COMMIT, invocation, machine, result_of, write_json
from rates import Shape, Step, flops, products, shares, take_turns, times_as_fast
from torch import Tensor
from train_step import batch_of, ours, training

from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.attention import by_products
from clipvid.runtime.precision import autocast

FRAMES = 12
LENGTHS = ((196, 12), (48, 50), (12, 197), (4, 589))
"""Sequences and tokens: along time, within frames of B/32 and of B/16, all of a clip."""


def linears(model: VideoCLIP, clips: int) -> list[Shape]:
    """The matrix products of one pass of the branch; class tokens' own rows are left out."""
    width, patches = model.branch.width, model.branch.geometry.patches  # type: ignore[union-attr]
    tokens, within = clips * FRAMES * patches, clips * FRAMES * (patches + 1)
    over_time = [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, width)]
    in_frame = [(within, width, 3 * width), (within, width, width)]
    mlp = [(tokens, width, 4 * width), (tokens, 4 * width, width)]
    return [*over_time, *in_frame, *mlp] * len(model.branch.layers)  # type: ignore[arg-type]


def with_way_back(shapes: list[Shape]) -> list[Shape]:
    """Each product, and the two that give the gradients of its factors."""
    return [s for m, i, o in shapes for s in ((m, i, o), (m, o, i), (o, m, i))]


def steps(model: VideoCLIP, clips: int) -> dict[str, dict[str, Step]]:
    device = model.device.type
    video, text, video_index = batch_of(clips, device)

    def own() -> Any:
        return autocast("bf16-mixed", model.device)

    with torch.no_grad(), own():
        taps: Any = model.reads(video)

    def infer() -> Tensor:
        with torch.no_grad(), own():
            return model.encode_video(taps, normalize=False)

    shapes = linears(model, clips)
    learn = training(model, lambda: model.encode_video(taps, normalize=False), text, video_index, own, own=True)
    return {
        "forward pass": {"clipvid": infer, "bare products": products(shapes, device=device)},
        "training step": {"clipvid": learn, "bare products": products(with_way_back(shapes), device=device)},
    }


def attention(*, device: str, runs: int) -> list[dict[str, Any]]:
    """Milliseconds of attention with 12 heads of 64, by road."""
    rows = []
    for sequences, tokens in LENGTHS:
        x = torch.randn(3, sequences, 12, tokens, 64, device=device, dtype=torch.bfloat16)
        roads = {"fused": F.scaled_dot_product_attention, "products": lambda q, k, v: by_products(q, k, v, None)}

        def forth(road: Any, x: Tensor = x) -> Any:
            with torch.no_grad():
                return road(*x)

        def back(road: Any, x: Tensor = x) -> Any:
            own = x.detach().requires_grad_()
            road(*own).sum().backward()

        row: dict[str, Any] = {"sequences": sequences, "tokens": tokens}
        for name, run in (("forward pass", forth), ("forward and backward", back)):
            turns: dict[str, Step] = {road: (lambda f=f, run=run: run(f)) for road, f in roads.items()}
            seconds = take_turns(turns, runs=runs, device=device)
            row[name] = {road: 1000 * statistics.median(found) for road, found in seconds.items()}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    args.out = args.out or result_of(__file__, args.device)
    model = ours().to(args.device)
    shapes, rows = linears(model, args.clips), {}
    for name, turns in steps(model, args.clips).items():
        model.train(name == "training step")
        seconds = take_turns(turns, runs=args.runs, device=args.device)
        work = flops(shapes) * (3 if name == "training step" else 1)
        rows[name] = {
            "ms per clip": {side: 1000 * statistics.median(found) / args.clips for side, found in seconds.items()},
            "GFLOP/s of the linears": {side: work / statistics.median(found) / 1e9 for side, found in seconds.items()},
            "share of the bare products' rate": 1 / times_as_fast(seconds, "bare products")["clipvid"],
            "where the time goes": shares(turns["clipvid"], device=args.device),
        }
    found = {
        "command": invocation(),
        "model": "ViT-B-32, stan-release, K=4",
        "clips": args.clips,
        "frames": FRAMES,
        "rows": rows,
        "attention, ms": attention(device=args.device, runs=args.runs),
        "commit": COMMIT,
        **machine(),
    }
    write_json(args.out, found)
    print(found)


if __name__ == "__main__":
    main()
