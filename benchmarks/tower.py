"""The frozen tower: clipvid's pass beside open_clip's own, the plain one, and the machine's bare matrix products.

    python benchmarks/tower.py                       # ViT-B-32, writes benchmarks/results/tower.json
    python benchmarks/tower.py --model ViT-L-14 --clips 1 --out large.json
    python benchmarks/tower.py --device cuda --clips 32 --out tower-cuda.json

All in bf16, in one process, by turns, after their frame embeddings were compared. The bare products are those of the
tower's own linears, weights as they lie in the model: their rate is what this machine multiplies at, and a tower's
share of it is what everything else costs. Weights are random, which changes no time.
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
    """The matrix products of one pass of open_clip's own ViT."""
    width, blocks = visual.conv1.out_channels, visual.transformer.resblocks
    patches, kernel = visual.positional_embedding.shape[0] - 1, visual.conv1.weight[0].numel()
    rows, hidden = images * (patches + 1), blocks[0].mlp.c_fc.out_features
    block = [(rows, width, 3 * width), (rows, width, width), (rows, width, hidden), (rows, hidden, width)]
    return [(images * patches, kernel, width), *block * len(blocks)]


def sides(model: VideoCLIP, video: torch.Tensor, shapes: list[Shape], *, plain: bool) -> dict[str, Step]:
    """What takes turns, by name."""
    backbone, levels, device = model.backbone, model.branch.levels, model.device.type

    def ours() -> Any:
        with torch.no_grad(), autocast("bf16-mixed", model.device):
            return backbone(video, levels=levels)

    def own() -> Any:
        with torch.no_grad(), autocast("bf16-mixed", model.device):
            return backbone.visual(video.flatten(0, 1))

    found: dict[str, Step] = {"clipvid": ours, "open_clip": own}
    if plain:
        released = plain_of(model, frozen=True).eval()

        def theirs() -> Any:
            with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
                return released.backbone.tower(video.flatten(0, 1))

        found["plain"] = theirs
    return {**found, "bare products": products(shapes, device=device)}


def check_equal(model: VideoCLIP, turns: dict[str, Step]) -> float:
    """Least cosine between clipvid's frame embeddings and each other's; SystemExit where they are not the same."""
    wanted = turns["clipvid"]().frames.flatten(0, 1).float()  # (B·T, E)
    found = [turns["open_clip"]().float()]
    if "plain" in turns:
        visual = model.backbone.visual
        with torch.no_grad():
            found.append(visual.ln_post(turns["plain"]()[-1][:, 0].float()) @ visual.proj)
    least = min(float(F.cosine_similarity(wanted, other).min()) for other in found)
    if least < 0.999:
        raise SystemExit(f"the towers do not compute the same, cosine {least:.4f}, so their times are not compared")
    return least


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
    model = clipvid.create_model(args.model, "random", branch="stan-release", depth=4).to(args.device).eval()
    video = torch.randn(args.clips, FRAMES, 3, *model.backbone.image_size, device=args.device)
    shapes = linears(model.backbone.visual, args.clips * FRAMES)
    turns = sides(model, video, shapes, plain=args.model.startswith("ViT-B-32"))
    least = check_equal(model, turns)
    seconds = take_turns(turns, runs=args.runs, device=args.device)
    rate = {name: flops(shapes) / statistics.median(times) / 1e9 for name, times in seconds.items()}
    found = {
        "command": invocation(),
        "model": args.model,
        "clips": args.clips,
        "frames": FRAMES,
        "least cosine of frame embeddings": least,
        "ms per clip": {name: 1000 * statistics.median(times) / args.clips for name, times in seconds.items()},
        "clipvid is times as fast as": times_as_fast(seconds, "clipvid"),
        "GFLOP/s of the linears": rate,
        "share of the bare products' rate": 1 / times_as_fast(seconds, "bare products")["clipvid"],
        "where the time goes": shares(turns["clipvid"], device=args.device),
        "commit": COMMIT,
        **machine(),
    }
    write_json(args.out, found)
    print(found)


if __name__ == "__main__":
    main()
