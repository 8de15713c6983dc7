"""Speed of clipvid's video transformers, compared with those of `transformers`: passes and training steps, in turns.

    python benchmarks/transformers_peers.py          # writes benchmarks/results/transformers_peers.json
    python benchmarks/transformers_peers.py --device cuda --clips 16 --out transformers_peers-cuda.json

TimeSformer (divided, 8 frames) and ViViT (model 1, 32 frames) are the same models with the same weights, and their
outputs are compared before anything is timed. X-CLIP is another way to add time to CLIP ViT-B/32; it is compared with
clipvid's STAN on that tower, frozen, for 8 frames. bf16 autocast on both sides, random weights.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import COMMIT, invocation, machine, result_of, write_json
from rates import Step, take_turns, times_as_fast
from torch import Tensor, nn

import clipvid
from clipvid.models.backbone.fused import FusedCopies
from clipvid.models.branches.standalone import video_transformer
from clipvid.models.convert_hf import load_video_weights
from clipvid.registry import BRANCHES
from clipvid.runtime.precision import autocast
from clipvid.training.optim import adamw


def pair(name: str, device: str) -> tuple[nn.Module, Any, int]:
    """Return our model, theirs with the same weights, and the number of frames they take."""
    from transformers import TimesformerConfig, TimesformerModel, VivitConfig, VivitModel

    if name == "TimeSformer":
        theirs, preset, frames = TimesformerModel(TimesformerConfig()), "timesformer", 8
    else:
        theirs, preset, frames = VivitModel(VivitConfig()), "vivit-b1", 32
    ours = video_transformer(BRANCHES[preset])
    load_video_weights(ours, theirs.state_dict())
    return ours.to(device), theirs.to(device), frames


def passes(run: Any, device: torch.device) -> Step:
    def step() -> Tensor:
        with torch.no_grad(), autocast("bf16-mixed", device):
            return run()

    return step


def learns(module: nn.Module, run: Any, device: torch.device, *, with_our_optimizer: bool) -> Step:
    """Return a training step: forward, the mean square of the output as a loss, backward, AdamW."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = (
        adamw(parameters, lr=1e-6, device=device.type) if with_our_optimizer else torch.optim.AdamW(parameters, lr=1e-6)
    )

    def step() -> None:
        with autocast("bf16-mixed", device):
            loss = run().float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def same_model(name: str, *, clips: int, device: torch.device) -> dict[str, dict[str, Step]]:
    ours, theirs, frames = pair(name, device.type)
    video = torch.randn(clips, frames, 3, 224, 224, device=device)
    copies = FusedCopies()

    def encode_ours() -> Tensor:
        return copies.of(ours, grad=False)(video)

    def encode_theirs() -> Tensor:
        return theirs(video).last_hidden_state[:, 0]

    ours.eval()
    theirs.eval()
    forward = {"clipvid": passes(encode_ours, device), "transformers": passes(encode_theirs, device)}
    difference = 1 - float(F.cosine_similarity(forward["clipvid"]().float(), forward["transformers"]().float()).min())
    if difference > 0.01:
        raise SystemExit(f"{name}: the outputs differ, cosine {1 - difference:.3f}; times are compared from 0.99 on")
    training = {
        "clipvid": learns(ours, lambda: ours(video), device, with_our_optimizer=True),
        "transformers": learns(theirs, encode_theirs, device, with_our_optimizer=False),
    }
    return {f"{name}, forward pass": forward, f"{name}, training step": training}


def compare_with_xclip(*, clips: int, device: torch.device) -> dict[str, dict[str, Step]]:
    """Return the steps of X-CLIP's video encoder and of STAN on a frozen tower; X-CLIP trains all of its parameters."""
    from transformers import XCLIPConfig, XCLIPModel

    x_clip = XCLIPModel(XCLIPConfig()).to(device).eval()
    model = clipvid.create_model("ViT-B-32-quickgelu", "random", branch_kwargs={"depth": 4}).to(device).eval()
    video = torch.randn(clips, 8, 3, 224, 224, device=device)

    def encode_theirs() -> Tensor:
        output = x_clip.get_video_features(video)
        return output if isinstance(output, Tensor) else output.pooler_output

    def encode_ours() -> Tensor:
        return model.encode_video(video, normalize=False)

    forward = {"clipvid": passes(encode_ours, device), "transformers": passes(encode_theirs, device)}
    training = {
        "clipvid": learns(model, encode_ours, device, with_our_optimizer=True),
        "transformers": learns(x_clip, encode_theirs, device, with_our_optimizer=False),
    }
    return {"X-CLIP B/32 vs. STAN, forward pass": forward, "X-CLIP B/32 vs. STAN, training step": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="*", default=["TimeSformer", "ViViT", "X-CLIP"])
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    args.out = args.out or result_of(__file__, args.device)
    device, rows = torch.device(args.device), {}
    for name in args.only:
        torch.manual_seed(0)
        options = {"clips": args.clips, "device": device}
        turns = compare_with_xclip(**options) if name == "X-CLIP" else same_model(name, **options)
        for row, sides in turns.items():
            seconds = take_turns(sides, runs=args.runs, device=args.device)
            rows[row] = {
                "ms_per_clip": {s: 1000 * statistics.median(times) / args.clips for s, times in seconds.items()},
                "speedup": times_as_fast(seconds, "clipvid")["transformers"],
            }
            print(row, rows[row], flush=True)
    setup = {"command": invocation(), "clips": args.clips}
    write_json(args.out, {**setup, "rows": rows, "commit": COMMIT, **machine()})


if __name__ == "__main__":
    main()
