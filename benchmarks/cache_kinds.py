"""Size and effect of each kind and mode of the tap cache: bytes per clip, difference of embeddings from live, recall.

    python benchmarks/cache_kinds.py                            # writes benchmarks/results/cache_kinds.json

A STAN branch on clipvid-mini is trained on MotionShapes for a few epochs, so that embeddings and recall depend on the
taps; then the test clips are embedded live and from a cache of each kind and mode. It takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from cells import COMMIT, machine, write_json
from torch import Tensor

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import VideoDataset
from clipvid.evaluation.metrics import Products, retrieval_metrics
from clipvid.evaluation.retrieval import queries
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.features.tap_cache import TapCache
from clipvid.models.factory import create_model
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.precision import resolve
from clipvid.training.loop import train

RESULTS = Path(__file__).parent / "results" / "cache_kinds.json"
KINDS_AND_MODES = (
    ("bf16", "taps"),
    ("fp16", "taps"),
    ("int8", "taps"),
    ("bf16", "first_layer"),
    ("int8", "first_layer"),
)
DEPTH, FRAMES = 4, 8


def trained(clips: VideoDataset, data_config: DataConfig, folder: Path, *, epochs: int) -> VideoCLIP:
    """Return a model that has learned to tell some motions apart."""
    torch.manual_seed(0)
    model = create_model("clipvid-mini", branch_kwargs={"depth": DEPTH})
    config = TrainConfig(
        epochs=epochs, batch_size=32, lr=1e-3, pretrained_lr_scale=1.0, keep_together=2, data_config=data_config
    )
    train(model, TapCache(folder).store(model, clips, data_config, progress=True), None, config)
    return model.eval()


def recall(text: Tensor, truth: Tensor, video: Tensor) -> dict[str, float]:
    """Return R@1 in both directions."""
    result = retrieval_metrics(Products(text, video), truth)
    return {"t2v R@1": result.t2v["R@1"], "v2t R@1": result.v2t["R@1"]}


def measure(model: VideoCLIP, clips: VideoDataset, data_config: DataConfig, folder: Path) -> dict[str, Any]:
    """Return a row for live embeddings and for each kind and mode, on the same clips."""
    texts, truth = queries(clips)
    text = embed_texts(model, texts, precision=data_config.precision)
    live = F.normalize(embed_videos(model, clips, data_config, progress=True).video, dim=-1)
    with model.branch_disabled():
        without_branch = F.normalize(embed_videos(model, clips, data_config).video, dim=-1)
    rows: list[dict[str, Any]] = [{"kind": "live", "mode": "live", **recall(text, truth, live)}]
    rows.append({"kind": "live", "mode": "without the branch", **recall(text, truth, without_branch)})
    for kind, mode in KINDS_AND_MODES:
        cache = TapCache(folder / f"{kind} {mode}", kind=kind, mode=mode)
        size = cache.needs(model, clips, data_config) / len(clips)
        video = F.normalize(embed_videos(model, cache.store(model, clips, data_config)).video, dim=-1)
        differences = (video - live).abs()
        row = {"kind": kind, "mode": mode, "bytes_per_clip": size, **recall(text, truth, video)}
        rows.append(
            {**row, "largest_difference": float(differences.max()), "mean_difference": float(differences.mean())}
        )
        print(rows[-1], flush=True)
    return {"dimensions": live.shape[1], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", type=int, default=400, help="training clips")
    parser.add_argument("--test", type=int, default=1000, help="test clips")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    data_config = DataConfig(frames=FRAMES)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = trained(
            write_dataset(folder, "train", args.train), data_config, folder / "train-taps", epochs=args.epochs
        )
        result = measure(model, write_dataset(folder, "test", args.test), data_config, folder)
    precision = resolve(data_config.precision, model.device)
    setup = {"command": "python benchmarks/cache_kinds.py", "depth": DEPTH, "frames": FRAMES, "precision": precision}
    clips = {"train_clips": args.train, "test_clips": args.test, "epochs": args.epochs}
    write_json(args.out, {**setup, **clips, "commit": COMMIT, **machine(), **result})


if __name__ == "__main__":
    main()
