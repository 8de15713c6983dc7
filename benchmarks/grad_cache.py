"""Memory of a contrastive training step from taps: a small batch, and a large one in micro-batches.

    python benchmarks/grad_cache.py                         # writes benchmarks/results/grad_cache.json
    python benchmarks/grad_cache.py --model ViT-B-32 --out grad_cache-b32.json

Each row is the peak memory of two full steps (reading taps, forward, backward, AdamW) in a separate process, beyond
that of model and data. The large batch in micro-batches should need no more than the small batch plus its own
embeddings: frame embeddings (B, T, E) in float32, and as much for their gradient. With micro-batches of the small
batch's size the gradient of the weights is added, because that of the first micro-batch exists while the others run; so
smaller micro-batches are measured, too. Weights are random, which changes neither memory nor time, and a few clips are
repeated, so that the taps of 512 clips, which a cache would have on disk, need not be in memory. glibc is set to return
freed memory at once; otherwise the peak would include its reserves. Gradients with and without micro-batches are
compared in float32 for a batch that fits in one pass.
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
from clipvid.features.source import CachedClips
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone.taps import Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.precision import autocast
from clipvid.training.objectives import Retrieval
from clipvid.training.train_batch import TrainBatch

DISTINCT = 32
EAGER = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment in which glibc returns large blocks to the system when they are freed."""


@dataclass(frozen=True)
class Setup:
    """Settings that all rows have in common."""

    model: str
    frames: int
    device: str

    def arguments(self) -> list[str]:
        """Return the settings as arguments of `main`."""
        return ["--model", self.model, "--frames", str(self.frames), "--device", self.device]


@dataclass(frozen=True)
class Row:
    """Settings of a training step."""

    batch: int
    micro_batch_size: int = 0
    activation_checkpointing: bool = False


def made(setup: Setup) -> VideoCLIP:
    """Return a model with a random gate: a gate of zero would leave no gradient but its own."""
    torch.manual_seed(0)
    pretrained = None if setup.model == "clipvid-mini" else "random"
    model = clipvid.create_model(setup.model, pretrained, branch_kwargs={"drop_path": 0.0}).to(setup.device)
    for name, parameter in model.branch.named_parameters():
        if "gate" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


def stored(model: VideoCLIP, setup: Setup) -> TapStore:
    """Return a store of random taps of a few clips, in CPU memory and in bf16 like cached ones."""
    g, generator = model.backbone.geometry(model.branch.levels), torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(DISTINCT, setup.frames, *shape, generator=generator).bfloat16()

    cls = tuple(random(width) for width in g.widths) if g.class_token else ()
    taps = Taps(g.levels, tuple(random(g.patches, width) for width in g.widths), cls, random(g.embed_dim))
    records = tuple(Record(Path(f"{i}.mp4"), (f"clip {i}",)) for i in range(DISTINCT))
    return TapStore(taps, VideoDataset(records), DataConfig(frames=setup.frames), "")


def batch(model: VideoCLIP, store: TapStore, row: Row) -> TrainBatch:
    """Return a batch as training makes it from a store."""
    rows = [i % DISTINCT for i in range(row.batch)]
    clips = CachedClips(store, rows, model.device)
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
    """Return the peak memory of two steps in MiB, and the seconds of the second."""
    model = made(setup)
    store = stored(model, setup)
    objective = Retrieval(model, config(row)).to(model.device)
    model.branch.set_activation_checkpointing(row.activation_checkpointing)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-6, fused=True)
    seconds = 0.0
    with peak_memory(setup.device) as peak:
        for _ in range(2):
            start = time.perf_counter()
            train_batch = batch(model, store, row)
            with autocast("auto", model.device):
                loss = objective(train_batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            float(loss.detach())  # waits until a GPU has finished
            del train_batch, loss
            seconds = time.perf_counter() - start
    return {"peak_mib": peak[0], "seconds_per_step": seconds}


def difference(setup: Setup, *, size: int, micro_batch_size: int) -> float:
    """Return the largest difference of float32 gradients with and without micro-batches, relative to the largest."""
    model = made(setup)
    model.branch.float()
    store, gradients = stored(model, setup), []
    for row in (Row(size), Row(size, micro_batch_size)):
        train_batch = batch(model, store, row)
        train_batch.video = (
            train_batch.video.to(dtype=torch.float32)
            if isinstance(train_batch.video, Taps)
            else _Float(train_batch.video)
        )
        Retrieval(model, config(row))(train_batch).backward()
        gradients.append([p.grad.clone() for p in model.branch.parameters() if p.grad is not None])
        model.zero_grad()
    largest = max(float(g.abs().max()) for g in gradients[0])
    return max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) / largest


class _Float(CachedClips):
    """Taps converted to float32, because no autocast runs."""

    def __init__(self, clips: Any) -> None:
        super().__init__(clips.store, clips.rows, clips.device)

    def gather(self, indices: Any) -> Taps:
        return super().gather(indices).to(dtype=torch.float32)


def alone(setup: Setup, row: Row) -> dict[str, Any]:
    """Return the measurements of a row, made in a separate process."""
    command = [sys.executable, __file__, *setup.arguments(), "--row", json.dumps(vars(row))]
    measurements = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **EAGER}).stdout
    )
    print(row, measurements, flush=True)
    return {**vars(row), **measurements}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="clipvid-mini", help="clipvid-mini, or an open_clip model (random weights)")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--small", type=int, default=32, help="size of the batch in one pass")
    parser.add_argument("--large", type=int, default=512, help="size of the batch in micro-batches")
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
    settings = (
        Row(args.small),
        Row(args.small, activation_checkpointing=True),
        *(Row(args.large, size) for size in args.micro_batch_size),
    )
    rows = [alone(setup, row) for row in settings]
    for row in rows[2:]:
        row["peak_vs_small_batch_and_embeddings"] = row["peak_mib"] / (rows[0]["peak_mib"] + embeddings)
    largest_difference = difference(setup, size=args.small, micro_batch_size=max(1, args.small // 4))
    measurements = {
        "embeddings_mib": embeddings,
        "gradient_mib": weights,
        "largest_gradient_difference": largest_difference,
    }
    print(json.dumps(measurements), [row["peak_vs_small_batch_and_embeddings"] for row in rows[2:]])
    write_json(
        args.out, {"command": invocation(), **vars(setup), **measurements, "commit": COMMIT, **machine(), "rows": rows}
    )


if __name__ == "__main__":
    main()
