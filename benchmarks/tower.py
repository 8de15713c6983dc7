"""Speed of the frozen tower in clipvid, in open_clip and in plain PyTorch, compared with bare matrix products.

    python benchmarks/tower.py                       # ViT-B-32, writes benchmarks/results/tower.json
    python benchmarks/tower.py --model ViT-L-14 --clips 1 --out large.json
    python benchmarks/tower.py --device cuda --clips 32 --out tower-cuda.json

All run in bf16, in one process, in turns, after a check that their frame embeddings agree. The bare products are those
of the tower's linears, with weights in the model's memory layout; their rate is the machine's rate of multiplication,
and a tower's share of it shows the cost of everything else. Weights are random, which changes no time.
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
from train_step import plain_of

import clipvid
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.precision import autocast

FRAMES = 12


def linears(visual: Any, images: int) -> list[Shape]:
    """Return the matrix products of one pass of open_clip's ViT."""
    width, blocks = visual.conv1.out_channels, visual.transformer.resblocks
    patches, kernel = visual.positional_embedding.shape[0] - 1, visual.conv1.weight[0].numel()
    rows, hidden = images * (patches + 1), blocks[0].mlp.c_fc.out_features
    block = [(rows, width, 3 * width), (rows, width, width), (rows, width, hidden), (rows, hidden, width)]
    return [(images * patches, kernel, width), *block * len(blocks)]


def sides(model: VideoCLIP, video: torch.Tensor, shapes: list[Shape], *, plain: bool) -> dict[str, Step]:
    """Return the steps to be timed in turns, by name."""
    backbone, levels, device = model.backbone, model.branch.levels, model.device.type

    def clipvid_pass() -> Any:
        with torch.no_grad(), autocast("bf16-mixed", model.device):
            return backbone(video, levels=levels)

    def open_clip_pass() -> Any:
        with torch.no_grad(), autocast("bf16-mixed", model.device):
            return backbone.visual(video.flatten(0, 1))

    turns: dict[str, Step] = {"clipvid": clipvid_pass, "open_clip": open_clip_pass}
    if plain:
        released = plain_of(model, frozen=True).eval()

        def plain_pass() -> Any:
            with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
                return released.backbone.tower(video.flatten(0, 1))

        turns["plain"] = plain_pass
    return {**turns, "bare_products": products(shapes, device=device)}


def check_equal(model: VideoCLIP, turns: dict[str, Step]) -> float:
    """Return the least cosine between clipvid's frame embeddings and the others; raise SystemExit below 0.999."""
    expected = turns["clipvid"]().frames.flatten(0, 1).float()  # (B·T, E)
    outputs = [turns["open_clip"]().float()]
    if "plain" in turns:
        visual = model.backbone.visual
        with torch.no_grad():
            outputs.append(visual.ln_post(turns["plain"]()[-1][:, 0].float()) @ visual.proj)
    least_cosine = min(float(F.cosine_similarity(expected, other).min()) for other in outputs)
    if least_cosine < 0.999:
        raise SystemExit(f"the towers differ: least cosine {least_cosine:.4f}; times are compared from 0.999 on")
    return least_cosine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    args.out = args.out or result_of(__file__, args.device)
    torch.manual_seed(0)
    model = (
        clipvid.create_model(args.model, "random", branch="stan-release", branch_kwargs={"depth": 4})
        .to(args.device)
        .eval()
    )
    video = torch.randn(args.clips, FRAMES, 3, *model.backbone.image_size, device=args.device)
    shapes = linears(model.backbone.visual, args.clips * FRAMES)
    turns = sides(model, video, shapes, plain=args.model.startswith("ViT-B-32"))
    least_cosine = check_equal(model, turns)
    seconds = take_turns(turns, runs=args.runs, device=args.device)
    rate = {name: flops(shapes) / statistics.median(times) / 1e9 for name, times in seconds.items()}
    result = {
        "command": invocation(),
        "model": args.model,
        "clips": args.clips,
        "frames": FRAMES,
        "min_frame_embedding_cosine": least_cosine,
        "ms_per_clip": {name: 1000 * statistics.median(times) / args.clips for name, times in seconds.items()},
        "speedup_over": times_as_fast(seconds, "clipvid"),
        "linears_gflop_per_s": rate,
        "share_of_bare_products_rate": 1 / times_as_fast(seconds, "bare_products")["clipvid"],
        "time_share_by_operation": shares(turns["clipvid"], device=args.device),
        "commit": COMMIT,
        **machine(),
    }
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
