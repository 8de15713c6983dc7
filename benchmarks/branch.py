"""Speed of the branch: forward passes and training steps from taps, compared with bare matrix products.

    python benchmarks/branch.py                      # STAN on ViT-B-32, writes benchmarks/results/branch.json
    python benchmarks/branch.py --device cuda --clips 32 --out branch-cuda.json

Everything runs in bf16, in one process, taking turns. The bare products of a training step are those of its linears:
one each in the forward pass and two in the backward pass. A second table supports the choice of
`clipvid.nn.attention.attend`: torch's fused kernel against plain products, in the forward pass and in forward and
backward pass, at the sequence lengths of the branches.
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
"""Numbers of sequences and tokens: along time, within frames of B/32 and of B/16, and over an entire clip."""


def linears(model: VideoCLIP, clips: int) -> list[Shape]:
    """Return the matrix products of one forward pass of the branch, without the rows of class tokens."""
    width, patches = model.branch.width, model.branch.geometry.patches  # type: ignore[union-attr]
    tokens, within = clips * FRAMES * patches, clips * FRAMES * (patches + 1)
    over_time = [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, width)]
    in_frame = [(within, width, 3 * width), (within, width, width)]
    mlp = [(tokens, width, 4 * width), (tokens, 4 * width, width)]
    return [*over_time, *in_frame, *mlp] * len(model.branch.layers)  # type: ignore[arg-type]


def with_gradients(shapes: list[Shape]) -> list[Shape]:
    """Return each product, followed by the two that give the gradients of its factors."""
    return [s for m, i, o in shapes for s in ((m, i, o), (m, o, i), (o, m, i))]


def steps(model: VideoCLIP, clips: int) -> dict[str, dict[str, Step]]:
    """Return the steps of each row, by side."""
    device = model.device.type
    video, text, video_index = batch_of(clips, device)

    def precision() -> Any:
        return autocast("bf16-mixed", model.device)

    with torch.no_grad(), precision():
        taps: Any = model.reads(video)

    def infer() -> Tensor:
        with torch.no_grad(), precision():
            return model.encode_video(taps, normalize=False)

    shapes = linears(model, clips)
    learn = training(
        model, lambda: model.encode_video(taps, normalize=False), text, video_index, precision, with_our_optimizer=True
    )
    return {
        "forward pass": {"clipvid": infer, "bare_products": products(shapes, device=device)},
        "training step": {"clipvid": learn, "bare_products": products(with_gradients(shapes), device=device)},
    }


def attention(*, device: str, runs: int) -> list[dict[str, Any]]:
    """Return milliseconds of attention with 12 heads of width 64, by kernel."""
    rows = []
    for sequences, tokens in LENGTHS:
        x = torch.randn(3, sequences, 12, tokens, 64, device=device, dtype=torch.bfloat16)
        kernels = {"fused": F.scaled_dot_product_attention, "products": lambda q, k, v: by_products(q, k, v, None)}

        def forward(kernel: Any, x: Tensor = x) -> Any:
            with torch.no_grad():
                return kernel(*x)

        def backward(kernel: Any, x: Tensor = x) -> Any:
            inputs = x.detach().requires_grad_()
            kernel(*inputs).sum().backward()

        row: dict[str, Any] = {"sequences": sequences, "tokens": tokens}
        for name, run in (("forward_ms", forward), ("forward_backward_ms", backward)):
            turns: dict[str, Step] = {kernel: (lambda f=f, run=run: run(f)) for kernel, f in kernels.items()}
            seconds = take_turns(turns, runs=runs, device=device)
            row[name] = {kernel: 1000 * statistics.median(times) for kernel, times in seconds.items()}
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
            "ms_per_clip": {side: 1000 * statistics.median(times) / args.clips for side, times in seconds.items()},
            "linears_gflop_per_s": {side: work / statistics.median(times) / 1e9 for side, times in seconds.items()},
            "share_of_bare_products_rate": 1 / times_as_fast(seconds, "bare_products")["clipvid"],
            "time_share_by_operation": shares(turns["clipvid"], device=args.device),
        }
    result = {
        "command": invocation(),
        "model": "ViT-B-32, stan-release, K=4",
        "clips": args.clips,
        "frames": FRAMES,
        "rows": rows,
        "attention": attention(device=args.device, runs=args.runs),
        "commit": COMMIT,
        **machine(),
    }
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
