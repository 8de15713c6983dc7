"""Time from a folder of videos to embeddings, compared with decoding alone and the tower alone.

    python benchmarks/pipeline.py                          # writes benchmarks/results/pipeline.json
    python benchmarks/pipeline.py --videos FOLDER --device cuda --workers 8

ViT-B-32 with random weights, branch stan, 12 frames per clip. Measured in one process, taking turns: decoding alone,
with the same number of threads or processes; tower and branch alone, on clips that are already decoded; and both, as
`clipvid embed` runs them; also the machine's rate of multiplying matrices of the tower's shape. If decoder and tower
share the cores of a CPU, no pipeline can take less time than the sum of their core seconds divided by the number of
cores (`min_seconds_on_cores`). Without --videos and without the shared videos beside the checkout, clips are
rendered.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cells import COMMIT, invocation, machine, result_of, write_json
from torch import Tensor

from clipvid.config.data_config import DataConfig
from clipvid.data import motion_shapes
from clipvid.data.batches.batch import Batch, in_order
from clipvid.data.files import discover
from clipvid.data.loader import batches_of
from clipvid.data.records import Record, VideoDataset
from clipvid.features.embed import embed_videos
from clipvid.features.encode import clip_dataset
from clipvid.models.backbone.open_clip import MINI
from clipvid.models.factory import create_model
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.precision import autocast, resolve
from clipvid.runtime.profiling import Profile, profiled

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data" / "videos"
FRAMES, DEPTH = 12, 4


def videos(folder: Path | None, *, limit: int, made: Path) -> VideoDataset:
    """Return the videos of a folder, or rendered clips if there is no folder."""
    if folder is None and not SHARED.is_dir():
        return motion_shapes.write_dataset(made, "test", limit + limit % 2 or 40)
    return VideoDataset(
        tuple(Record(path) for path in discover(folder or SHARED).clips[: limit or None]), name="videos"
    )


def timed(run: Callable[[], Any], device: str) -> tuple[float, float]:
    """Return elapsed seconds, and core seconds of this process and of child processes that ended during the call."""
    elapsed, worked = time.perf_counter(), sum(os.times()[:4])
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - elapsed, sum(os.times()[:4]) - worked


def matmul_rate(model: VideoCLIP, data_config: DataConfig) -> float:
    """Return the machine's multiply-accumulates per second, in the tower's type and at its widest product."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(
        resolve(data_config.precision, model.device), torch.float32
    )
    geometry = model.backbone.geometry(model.branch.levels)
    rows, width = (
        data_config.batch_size * data_config.frames * (geometry.patches + geometry.class_token),
        geometry.widths[-1],
    )
    left = torch.randn(rows, width, device=model.device).to(dtype)
    right = torch.randn(width, 4 * width, device=model.device).to(dtype)
    runs = [timed(lambda: torch.mm(left, right), model.device.type)[0] for _ in range(12)]
    return rows * width * 4 * width / statistics.median(runs[2:])


def alone(model: VideoCLIP, batches: list[Batch], data_config: DataConfig) -> None:
    """Run tower and branch on decoded clips, as `embed_videos` does."""
    with torch.no_grad(), autocast(data_config.precision, model.device):
        for batch in batches:
            mask = None if bool(batch.mask.all()) else batch.mask
            video: Tensor = batch.video.to(model.device, non_blocking=True)
            model.encode_video(video, mask=mask, normalize=False).float().cpu()


def measured(
    model: VideoCLIP, data: VideoDataset, data_config: DataConfig, *, runs: int
) -> tuple[dict[str, Any], Profile]:
    """Return median seconds and core seconds of each part, and the profile of the last pipeline."""
    dataset, device = clip_dataset(model, data, data_config), model.device.type
    batch_order = in_order(len(data), data_config.batch_size)

    def decoded() -> list[Batch]:
        return list(batches_of(dataset, batch_order, workers=data_config.workers, device=model.device))

    batches = [batch for batch in decoded() if len(batch)]
    alone(model, batches[:1], data_config)  # warms up what is slow only once
    parts: dict[str, list[tuple[float, float]]] = {"decoding": [], "tower_and_branch": [], "pipeline": []}
    profiles: list[Profile] = []
    for _ in range(runs):
        parts["decoding"].append(timed(decoded, device))
        parts["tower_and_branch"].append(timed(lambda: alone(model, batches, data_config), device))
        with profiled() as profile:
            parts["pipeline"].append(timed(lambda: embed_videos(model, data, data_config), device))
        profiles.append(profile)
    result = {
        name: {
            "seconds": statistics.median(s for s, _ in turns),
            "core_seconds": statistics.median(c for _, c in turns),
        }
        for name, turns in parts.items()
    }
    return {"clips": sum(map(len, batches)), "parts": result}, profiles[-1]


def ratios(result: dict[str, Any], model: VideoCLIP, rate: float) -> dict[str, Any]:
    """Return the pipeline's time relative to its slower part, to the cores, and to plain matrix products."""
    parts, clips = result["parts"], result["clips"]
    pipeline, decoding, tower = (parts[k] for k in ("pipeline", "decoding", "tower_and_branch"))
    cores = len(os.sched_getaffinity(0))
    slower = max(decoding["seconds"], tower["seconds"])
    shared = (decoding["core_seconds"] + tower["core_seconds"]) / cores if model.device.type == "cpu" else slower
    cost = model.trainable_summary(FRAMES)
    macs = clips * (cost.tower_macs.total + cost.branch_macs.total)
    return {
        "clips_per_second": {name: clips / part["seconds"] for name, part in parts.items()},
        "time_vs_slower_part": pipeline["seconds"] / slower,
        "min_seconds_on_cores": max(slower, shared),
        "time_vs_min_on_cores": pipeline["seconds"] / max(slower, shared),
        "matmul_gmac_per_s": rate / 1e9,
        "share_of_matmul_rate": {
            name: macs / part["seconds"] / rate for name, part in parts.items() if name != "decoding"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--videos", type=Path, help="folder of videos")
    parser.add_argument("--limit", type=int, default=0, help="maximum number of clips; 0 for all")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0, help="decoder processes; 0 decodes in threads")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    args.out = args.out or result_of(__file__, args.device)
    weights = None if args.model == MINI else "random"
    model = create_model(args.model, weights, branch="stan", branch_kwargs={"depth": DEPTH}, device=args.device).eval()
    data_config = DataConfig(frames=FRAMES, batch_size=args.batch, workers=args.workers, unreadable="skip")
    with TemporaryDirectory() as folder:
        data = videos(args.videos, limit=args.limit, made=Path(folder))
        result, profile = measured(model, data, data_config, runs=args.runs)
    result |= ratios(result, model, matmul_rate(model, data_config))
    made = {"command": invocation(), "model": args.model, "depth": DEPTH, "frames": FRAMES}
    made |= {"batch": args.batch, "workers": args.workers, "device": args.device, "commit": COMMIT, **machine()}
    write_json(args.out, {**made, **result, "profile": profile.plain()})
    print(profile)
    print(f"time relative to the slower part: {result['time_vs_slower_part']:.2f}")
    print(f"time relative to the minimum that the cores allow: {result['time_vs_min_on_cores']:.2f}")


if __name__ == "__main__":
    main()
