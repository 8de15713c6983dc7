"""Inference and training steps of STAN on CLIP ViT-B/32, compared with a plain implementation of the released code.

    python benchmarks/train_step.py                  # writes benchmarks/results/train_step.json
    python benchmarks/train_step.py --device cuda --batch 32 --out train_step-cuda.json

Both sides get the same weights, clips and losses, in one process, and take turns: every ratio is of two consecutive
runs, and the median of the ratios is reported. Their outputs are compared before anything is timed. Peak memory is
measured in a separate process for each side; on a GPU, over two steps of each. The plain side is plain_stan.py, in fp32
(as its attention runs) and under bf16 autocast; it cannot train from taps, which the released code does not have, so
its live step is compared. Weights are random, which changes no time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import COMMIT, invocation, machine, peak_memory, read_json, result_of, write_json
from plain_stan import PlainSTAN
from rates import Step, flops, products, take_turns, times_as_fast
from released import released_names
from torch import Tensor, nn

import clipvid
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.malloc import keep_freed_memory
from clipvid.runtime.precision import autocast
from clipvid.training.losses import matching
from clipvid.training.optim import adamw

FRAMES, DEPTH = 12, 4
COMPILED = "clipvid_compiled"
BARE = [(2352, 768, 3072)] * 4
"""Four products of four clips (12 x 49 patches) with a linear of an MLP. Their rate shows how steady the machine is:
the bf16 rate of some machines changes by a factor of two within minutes."""


def ours(*, train_clip: str = "none") -> VideoCLIP:
    torch.manual_seed(0)
    model = clipvid.create_model("ViT-B-32-quickgelu", "random", branch="stan-release", branch_kwargs={"depth": DEPTH})
    model.set_trainable(train_clip, text=False)
    return model


def plain_of(model: VideoCLIP, *, frozen: bool) -> PlainSTAN:
    """Return the plain model with the same weights."""
    plain, visual, branch = PlainSTAN(), model.backbone.visual, dict(model.branch.named_parameters())
    state: dict[str, Tensor] = {
        "backbone.class_embedding": visual.class_embedding,
        "backbone.patch_embedding.weight": visual.conv1.weight,
        "backbone.position_embedding.weight": visual.positional_embedding,
        "visual_projection.weight": visual.proj.T,
    }
    for released, norm in (("pre_layrnorm", visual.ln_pre), ("post_layernorm", visual.ln_post)):
        state |= {f"backbone.{released}.{k}": v for k, v in norm.state_dict().items()}
    for index, block in enumerate(visual.transformer.resblocks):
        parts = {"layer_norm1": block.ln_1, "layer_norm2": block.ln_2, "self_attn.out_proj": block.attn.out_proj}
        parts |= {"mlp.fc1": block.mlp.c_fc, "mlp.fc2": block.mlp.c_proj}
        layer = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
        for kind, value in (("weight", block.attn.in_proj_weight), ("bias", block.attn.in_proj_bias)):
            layer |= {f"self_attn.{c}_proj.{kind}": v for c, v in zip("qkv", value.chunk(3), strict=True)}
        state |= {f"backbone.layers.{index}.{k}": v for k, v in layer.items()}
    for released, (name, third) in released_names(model).items():
        state[f"backbone.{released}"] = branch[name] if third is None else branch[name].chunk(3)[third]
    plain.load_state_dict(state)
    if frozen:
        plain.freeze_tower()
    return plain.to(model.device)


def batch_of(size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return preprocessed clips, caption embeddings and the index of each caption's video."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(size, FRAMES, 3, 224, 224, generator=generator)
    text = F.normalize(torch.randn(size, 512, generator=generator), dim=-1)
    return video.to(device), text.to(device), torch.arange(size, device=device)


def training(
    module: nn.Module,
    embed: Callable[[], Tensor],
    text: Tensor,
    video_index: Tensor,
    context: Any,
    *,
    with_our_optimizer: bool,
) -> Step:
    """Return a full step: forward, loss, backward, clipped gradients and AdamW (on request built as clipvid does)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    device = parameters[0].device.type
    optimizer = (
        adamw(parameters, lr=1e-6, device=device) if with_our_optimizer else torch.optim.AdamW(parameters, lr=1e-6)
    )

    def step() -> None:
        with context():
            loss = matching(text @ F.normalize(embed().float(), dim=-1).T, video_index, scale=100.0)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(run: Callable[[], Tensor], context: Any) -> Step:
    def once() -> Tensor:
        with torch.no_grad(), context():
            return run().float()

    return once


ROWS = {  # clipvid's mode, and whether the plain model's tower is frozen
    "inference": ("inference", True),
    "frozen, live": ("live", True),
    "frozen, from taps": ("taps", True),
    "frozen, from taps, activation checkpointing": ("checkpointed", True),
    "from taps, vs. the released default (all trained)": ("taps", False),
    "all trained": ("all", False),
}


def steps(name: str, *, size: int, device: str) -> dict[str, Step]:
    """Return the steps of a row: clipvid, and the plain model in fp32 and under bf16 autocast."""
    mode, frozen = ROWS[name]
    video, text, video_index = batch_of(size, device)
    model = ours(train_clip="all" if mode == "all" else "none").to(device)
    precision = partial(autocast, "auto", model.device)
    plain = plain_of(model, frozen=frozen)
    contexts = {"fp32": nullcontext, "bf16": partial(torch.autocast, device, dtype=torch.bfloat16)}
    if mode == "inference":
        model.eval()
        plain.eval()
        turns = {"clipvid": inference(lambda: model.encode_video(video, normalize=False), precision)}
        return turns | {f"plain_{k}": inference(lambda: plain(video), c) for k, c in contexts.items()}
    model.train()
    plain.train()
    source: Any = video
    if mode == "checkpointed":
        model.branch.set_activation_checkpointing(True)
    if mode in ("taps", "checkpointed"):
        with torch.no_grad(), precision():
            source = model.reads(video)

    def embed() -> Tensor:
        return model.encode_video(source, normalize=False)

    turns = {"clipvid": training(model, embed, text, video_index, precision, with_our_optimizer=True)}
    if mode in ("live", "taps") and (device == "cuda" or shutil.which("g++")):  # like `clipvid train --compile`
        compiled = ours().to(device).train()
        compiled.branch.compile()
        run = partial(compiled.encode_video, source, normalize=False)
        turns[COMPILED] = training(compiled, run, text, video_index, precision, with_our_optimizer=True)
    return turns | {
        f"plain_{k}": training(plain, lambda: plain(video), text, video_index, c, with_our_optimizer=False)
        for k, c in contexts.items()
    }


def compared(name: str, *, size: int, device: str, runs: int) -> dict[str, Any]:
    """Return milliseconds per clip of each step, and how many times as fast clipvid is."""
    turns = steps(name, size=size, device=device)
    if name == "inference":
        outputs = {side: turns[side]() for side in turns}
        difference = float((outputs["clipvid"] - outputs["plain_bf16"]).abs().max() / outputs["plain_fp32"].abs().max())
        if difference > 0.05:
            raise SystemExit(
                f"the outputs differ by {difference:.3f} of the largest value; times are compared up to 0.05"
            )
    peaks: dict[str, float] = {}
    if device == "cuda":  # its allocator counts each side separately, even in one process
        for side, step in turns.items():
            with peak_memory(device) as used:
                step()
                step()
            peaks[side] = used[0]
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    bare = {f"bare {kind}": products(BARE, device=device, dtype=dtype) for kind, dtype in kinds.items()}
    seconds = take_turns({**turns, **bare}, runs=runs, device=device)
    rate = {kind: flops(BARE) / statistics.median(seconds.pop(f"bare {kind}")) / 1e9 for kind in kinds}
    return {
        "ms_per_clip": {side: 1000 * statistics.median(times) / size for side, times in seconds.items()},
        "min_ms_per_clip": {side: 1000 * min(times) / size for side, times in seconds.items()},
        "speedup_over": times_as_fast(seconds, "clipvid"),
        **({"compiled_speedup_over": times_as_fast(seconds, COMPILED)} if COMPILED in seconds else {}),
        "bare_products_gflop_per_s": rate,
        **({"peak_mib": peaks} if peaks else {}),
    }


def peak_alone(name: str, side: str, *, batch: int) -> float:
    """Return `peak` from a separate process, because a CPU's memory cannot be counted separately for each side."""
    command = [sys.executable, __file__, "--batch", str(batch), "--peak", name, side]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(name: str, side: str, *, size: int) -> float:
    """Return the MiB that two steps on a CPU need in addition to models and batch."""
    step = steps(name, size=size, device="cpu")[side]
    with peak_memory("cpu") as peaks:
        step()
        step()
    return peaks[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=ROWS)
    parser.add_argument(
        "--keep-freed", action="store_true", help="keep freed memory, as `clipvid train` does; for both sides"
    )
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out or result_of(__file__, args.device)
    if args.keep_freed:
        keep_freed_memory()
    if args.peak:
        print(json.dumps(peak(*args.peak, size=args.batch)))
        return
    earlier = read_json(args.out)["rows"] if args.out.exists() else {}
    rows = {
        name: earlier[name] for name in ROWS if name in earlier
    }  # with --only, the other rows are not measured again
    setup = {"command": invocation(), "model": "ViT-B-32, stan-release", "batch": args.batch}
    setup |= {"frames": FRAMES, "depth": DEPTH, "commit": COMMIT, **machine()}
    for name in args.only:
        rows[name] = compared(name, size=args.batch, device=args.device, runs=args.runs)
        if args.device == "cpu":
            sides = [
                side for side in rows[name]["ms_per_clip"] if side != COMPILED
            ]  # the memory of its compiler would count
            rows[name]["peak_mib"] = {side: peak_alone(name, side, batch=args.batch) for side in sides}
        rows[name]["commit"] = COMMIT
        print(name, json.dumps(rows[name]), flush=True)
        write_json(args.out, {**setup, "rows": {name: rows[name] for name in ROWS if name in rows}})


if __name__ == "__main__":
    main()
