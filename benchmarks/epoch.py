"""Time of a training epoch: from the tap cache on disk, from batches of taps in memory, and live.

    python benchmarks/epoch.py                             # writes benchmarks/results/epoch.json
    python benchmarks/epoch.py --model clipvid-mini --frames 8

ViT-B-32 with random weights, branch stan, rendered MotionShapes. `branch_compute` is the same training with
every batch of taps in memory before it starts, so nothing is read, gathered or waited for. Each result is (seconds of
several epochs - seconds of one) / (number of epochs - 1), which leaves out what happens once per run; by then the files
of the cache are in the system's page cache. The profile of the cached run shows the time spent waiting.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cells import COMMIT, invocation, machine, result_of, write_json

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data import motion_shapes
from clipvid.data.records import VideoDataset
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone.open_clip import MINI
from clipvid.models.backbone.taps import Taps
from clipvid.models.factory import create_model
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.profiling import profiled
from clipvid.training.batches import batch_order
from clipvid.training.loop import train

DEPTH = 4


class Ready:
    """Taps of entire batches, prepared in advance; takes the place of taps that a store would read."""

    def __init__(self, store: TapStore, config: TrainConfig) -> None:
        batches = [rows for epoch in range(config.epochs) for rows in batch_order(len(store), config, epoch=epoch)]
        self.batches = {tuple(rows): store.batch(rows) for rows in batches}

    def select(self, levels: Sequence[int]) -> Ready:
        """Return these taps: the stored levels are the requested ones."""
        return self

    def part(self, rows: Sequence[int]) -> Ready:
        """Raise ValueError: a part would have other batches."""
        raise ValueError(f"batches that are ready cannot be a part of themselves, got {len(rows)} rows")

    def gather(self, rows: Sequence[int]) -> Taps:
        """Return the batch of these clips."""
        return self.batches[tuple(rows)]


def seconds(model: VideoCLIP, data: VideoDataset | TapStore, config: TrainConfig) -> float:
    """Return the seconds of one training run."""
    start = time.perf_counter()
    train(model, data, None, config, progress=False, accelerator=model.device.type)
    return time.perf_counter() - start


def an_epoch(model: VideoCLIP, data: VideoDataset | TapStore, config: TrainConfig) -> float:
    """Return the seconds of one epoch, without what happens once per run."""
    epochs = config.epochs
    return (seconds(model, data, config) - seconds(model, data, replace(config, epochs=1))) / (epochs - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="2 or epochs; one epoch of each run is not counted")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    args.out = args.out or result_of(__file__, args.device)
    if args.epochs < 2:
        parser.error(f"--epochs must be an integer >= 2, got {args.epochs}; one epoch is not counted")
    torch.manual_seed(0)
    weights = None if args.model == MINI else "random"
    model = create_model(args.model, weights, branch="stan", branch_kwargs={"depth": DEPTH}, device=args.device)
    data_config = DataConfig(frames=args.frames, batch_size=args.batch)
    config = TrainConfig(epochs=args.epochs, batch_size=args.batch, data_config=data_config)
    times: dict[str, list[float]] = {"from_cache": [], "branch_compute": [], "live": []}
    with TemporaryDirectory() as folder:
        data = motion_shapes.write_dataset(folder, "train", args.clips)
        cached = TapCache(Path(folder) / "taps").store(model, data, data_config)
        ready = replace(cached, taps=Ready(cached, config))
        seconds(model, cached, replace(config, epochs=1))  # warms up what is slow only once
        for run in range(args.runs):
            times["from_cache"].append(an_epoch(model, cached, config))
            times["branch_compute"].append(an_epoch(model, ready, config))
            if not run:  # live epochs take much longer, and one is precise enough
                times["live"].append(an_epoch(model, data, replace(config, epochs=2)))
        with profiled() as profile:
            seconds(model, cached, config)
    paired = zip(times["from_cache"], times["branch_compute"], strict=True)
    result: dict[str, Any] = {
        "seconds_per_epoch": {name: statistics.median(values) for name, values in times.items()},
        "cache_vs_branch_compute": statistics.median(a / b for a, b in paired),
        "live_vs_cache": times["live"][0] / statistics.median(times["from_cache"]),
        "waiting_share": profile.seconds.get("waiting for data", 0.0) / profile.total,
    }
    setup = {"command": invocation(), "model": args.model, "depth": DEPTH, **vars(args)}
    setup |= {"out": args.out.name, "commit": COMMIT, **machine()}
    write_json(args.out, {**setup, **result, "profile": profile.plain()})
    print(profile)
    print(result)


if __name__ == "__main__":
    main()
