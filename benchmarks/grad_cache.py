"""Memory of a contrastive training step from taps: a small batch, and a large one in micro-batches.

    python benchmarks/grad_cache.py                         # writes benchmarks/results/grad_cache.json
    python benchmarks/grad_cache.py --model ViT-B-32 --out grad_cache-b32.json

Each row is the peak of two whole steps (taps read, forward, backward, AdamW) in a process of its own, above what model
and data hold before. The large batch in chunks must need no more than the small one and its own embeddings: frame
embeddings (B, T, E) in float32, and as much for their gradient. In chunks of the small batch's size the gradient of the
weights comes on top, since the first chunk's is there while the others run; so smaller chunks stand beside them.
Weights are random, which changes neither memory nor time, and a few clips stand for all, so that 512 clips' taps, which
a cache on disk would hold, need not be in memory. glibc is told to give freed memory back at once, else the peak would
be that of its reserves. The gradients of both ways are compared in float32 at a batch where the plain one fits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import COMMIT, invocation, machine, peak_memory, result_of, write_json
from torch import Tensor

import clipvid
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.features.source import TapStore
from clipvid.models.backbone.taps import Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.precision import autocast
from clipvid.training.objectives import Retrieval
from clipvid.training.train_batch import CachedClips, TrainBatch

DISTINCT = 32
EAGER = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Large blocks go back to the system when they are freed."""


@dataclass(frozen=True)
class Setup:
    """What all rows have in common."""

    model: str
    frames: int
    device: str

    def arguments(self) -> list[str]:
        """As `main` takes them."""
        return ["--model", self.model, "--frames", str(self.frames), "--device", self.device]


@dataclass(frozen=True)
class Row:
    """One way to take a step."""

    batch: int
    micro_batch_size: int = 0
    activation_checkpointing: bool = False


def made(setup: Setup) -> VideoCLIP:
    """A model whose branch says something: its gate, zero at first, would hide all gradients but its own."""
    torch.manual_seed(0)
    pretrained = None if setup.model == "clipvid-mini" else "random"
    model = clipvid.create_model(setup.model, pretrained, options={"drop_path": 0.0}).to(setup.device)
    for name, parameter in model.branch.named_parameters():
        if "gate" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


def stored(model: VideoCLIP, setup: Setup) -> TapStore:
    """A store of a few clips' taps, drawn at random, in the CPU's memory and in bf16 as a cache keeps them."""
    g, drawn = model.backbone.geometry(model.branch.levels), torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(DISTINCT, setup.frames, *shape, generator=drawn).bfloat16()

    cls = tuple(random(width) for width in g.widths) if g.class_token else ()
    taps = Taps(g.levels, tuple(random(g.patches, width) for width in g.widths), cls, random(g.embed_dim))
    records = tuple(Record(Path(f"{i}.mp4"), (f"clip {i}",)) for i in range(DISTINCT))
    return TapStore(taps, VideoDataset(records), DataConfig(frames=setup.frames), "")


def batch(model: VideoCLIP, store: TapStore, row: Row) -> TrainBatch:
    """As the feed for a store makes it."""
    places = [i % DISTINCT for i in range(row.batch)]
    clips = CachedClips(store, places, model.device)
    text = torch.randn(row.batch, model.embed_dim, generator=torch.Generator().manual_seed(1)).to(model.device)
    video_index = torch.arange(row.batch, device=model.device)
    video = clips if row.micro_batch_size else clips.gather(range(row.batch))
    return TrainBatch(0, video, mask=None, text=F.normalize(text, dim=-1), video_index=video_index, labels=video_index)


def config(row: Row) -> TrainConfig:
    return TrainConfig(
        batch_size=row.batch,
        micro_batch_size=row.micro_batch_size,
        activation_checkpointing=row.activation_checkpointing,
    )


def measured(setup: Setup, row: Row) -> dict[str, Any]:
    """Peak MiB of two steps, and the seconds that the second took."""
    model = made(setup)
    store = stored(model, setup)
    objective = Retrieval(model, config(row)).to(model.device)
    model.branch.set_activation_checkpointing(row.activation_checkpointing)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-6, fused=True)
    seconds = 0.0
    with peak_memory(setup.device) as found:
        for _ in range(2):
            start = time.perf_counter()
            work = batch(model, store, row)
            with autocast("auto", model.device):
                loss = objective(work)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            float(loss.detach())  # waits for a GPU
            del work, loss
            seconds = time.perf_counter() - start
    return {"peak MiB": found[0], "seconds per step": seconds}


def difference(setup: Setup, *, size: int, micro_batch_size: int) -> float:
    """Of the gradients in float32, whole against chunks; relative to the largest entry."""
    model = made(setup)
    model.branch.float()
    store, found = stored(model, setup), []
    for row in (Row(size), Row(size, micro_batch_size)):
        work = batch(model, store, row)
        work.video = work.video.to(dtype=torch.float32) if isinstance(work.video, Taps) else _Float(work.video)
        Retrieval(model, config(row))(work).backward()
        found.append([p.grad.clone() for p in model.branch.parameters() if p.grad is not None])
        model.zero_grad()
    largest = max(float(g.abs().max()) for g in found[0])
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) / largest


class _Float(CachedClips):
    """Taps read in float32, since no autocast takes them down."""

    def __init__(self, clips: Any) -> None:
        super().__init__(clips.store, clips.rows, clips.device)

    def gather(self, places: Any) -> Taps:
        return super().gather(places).to(dtype=torch.float32)


def alone(setup: Setup, row: Row) -> dict[str, Any]:
    """The row's figures, from a process of its own."""
    command = [sys.executable, __file__, *setup.arguments(), "--row", json.dumps(vars(row))]
    figures = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **EAGER}).stdout
    )
    print(row, figures, flush=True)
    return {**vars(row), **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="clipvid-mini", help="clipvid-mini, or an open_clip model (random weights)")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--small", type=int, default=32, help="the batch that is taken whole")
    parser.add_argument("--large", type=int, default=512, help="the batch that is taken in chunks")
    parser.add_argument("--micro_batch_size", type=int, nargs="+", default=[32, 16])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out or result_of(__file__, args.device)
    setup = Setup(args.model, args.frames, args.device)
    if args.row:
        print(json.dumps(measured(setup, Row(**json.loads(args.row)))))
        return
    model = made(setup)
    embeddings = 2 * args.large * args.frames * model.embed_dim * 4 / 2**20
    weights = sum(p.nbytes for p in model.branch.parameters()) / 2**20
    ways = (
        Row(args.small),
        Row(args.small, activation_checkpointing=True),
        *(Row(args.large, size) for size in args.micro_batch_size),
    )
    rows = [alone(setup, row) for row in ways]
    for row in rows[2:]:
        row["of small and embeddings"] = row["peak MiB"] / (rows[0]["peak MiB"] + embeddings)
    apart = difference(setup, size=args.small, micro_batch_size=max(1, args.small // 4))
    told = {"embeddings MiB": embeddings, "gradient MiB": weights, "gradients apart": apart}
    print(json.dumps(told), [row["of small and embeddings"] for row in rows[2:]])
    write_json(args.out, {"command": invocation(), **vars(setup), **told, "commit": COMMIT, **machine(), "rows": rows})


if __name__ == "__main__":
    main()
