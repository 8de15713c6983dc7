"""The demo: render clips, train a video branch on the frozen mini CLIP, evaluate and save it, and search with it.

Contract: an output folder in; videos, models, plots, an index and results.json in that folder, and one printed table.
Every metric is measured in this run, on clips that are not used in training. The module is also an example of how the
parts of clipvid work together.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid import plots
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data import motion_shapes
from clipvid.data.records import VideoDataset
from clipvid.evaluation.metrics import RecognitionMetrics, percent, share_interval
from clipvid.evaluation.recognition import evaluate_recognition, evaluate_zero_shot
from clipvid.evaluation.results import EvaluationResult
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.open_clip import MINI, load_clip
from clipvid.models.branches.options import BranchOptions, choose
from clipvid.models.factory import attach
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import atomic_file
from clipvid.search.index import VideoIndex
from clipvid.training.history import TrainResult
from clipvid.training.loop import train
from clipvid.video.decode import read_video

TEMPLATES = ("a shape that {}.",)  # the form of the captions that the mini model was trained on
DATA_CONFIG = DataConfig(frames=8, sampler="linspace", batch_size=64)  # linspace includes the first and last frames
COLUMNS = {
    "t2v_r1": "R@1 text to video",
    "v2t_r1": "R@1 video to text",
    "caption_over_reverse": "caption over its reverse",
    "motion_top1": "motion top-1",
}
"""Metrics of the table, and their headings."""
ROWS = ("zero-shot frame-mean", "frame-mean, trained", "STAN, trained", "STAN, frames shuffled")
"""Names of the table's rows. The second is the order-blind baseline: an MLP on the mean of the frame embeddings."""
SEARCHED_LABELS = (1, 4, 9)
"""Labels of the motions that the demo searches for, of three kinds: a change of place, of size and of opacity."""


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo's data sets and settings of its training runs."""

    train_clips: int = 4000
    val_clips: int = 200
    test_clips: int = 400
    epochs: int = 4
    """Epochs of STAN for retrieval; recognition starts from the trained weights and takes half as many epochs."""
    baseline_epochs: int = 20
    """Epochs of the order-blind baseline for each task; more than for STAN, because its epochs take less time."""
    depth: int = 2
    mixer: str = "conv_full"
    """STAN's module that mixes across frames; `depth` is its number of layers."""
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for split in motion_shapes.SPLITS:
            least = 2 if split == "train" else len(motion_shapes.MOTIONS)  # every motion needs a clip
            if (clips := getattr(self, f"{split}_clips")) < least or clips % 2:
                raise ValueError(
                    f"{split}_clips must be an even integer >= {least}, got {clips}; give another number, as clips "
                    "come in pairs"
                )
            motion_shapes.draw_scene(self.seed, split, clips - 1)  # raises ValueError for too many clips
        for name in ("epochs", "baseline_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be an integer >= 1, got {getattr(self, name)}; give 1 or more passes over the clips"
                )


@dataclass(frozen=True)
class Score:
    """A metric in percent with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


Row = dict[str, Score]
"""Metrics of one row of the table, by column."""


def run(
    out: str | Path = "clipvid-demo", config: DemoConfig | None = None, *, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run the demo, write its files to `out`, and return the contents of results.json.

    `say` prints a line of progress.
    """
    config, out, start = config or DemoConfig(), Path(out), time.perf_counter()
    data_config = DATA_CONFIG
    say(
        f"1/5  rendering {config.train_clips + config.val_clips + config.test_clips} short videos into {out / 'videos'}"
    )
    sizes = {"train": config.train_clips, "val": config.val_clips, "test": config.test_clips}
    workers = os.cpu_count() or 1
    data = {
        split: motion_shapes.write_dataset(out / "videos", split, n, seed=config.seed, workers=workers, progress=True)
        for split, n in sizes.items()
    }
    say(f"2/5  the frozen CLIP ({MINI}) encodes every clip once; its outputs stay in memory")
    backbone = load_backbone()
    options = choose("stan", {"depth": config.depth, "mixer": config.mixer, "drop_path": 0.0})
    encoder = attach(backbone, options)
    stores = {split: encode_dataset(encoder, dataset, data_config, progress=True) for split, dataset in data.items()}
    say("3/5  training the baseline, then STAN: for retrieval (captions), and from there for recognition (motions)")
    table, models, runs = _train_and_score(backbone, options, stores, config=config)
    table_time = time.perf_counter() - start
    say("")
    say(render_table(table))
    say("")
    say(f"4/5  saving models, plots and an index of the test clips to {out}")
    for name, model in models.items():
        model.save(out / f"model-{name}")
    _plot(out / "plots", models, stores["test"], runs)
    index_config = DataConfig(frames=data_config.frames, sampler=data_config.sampler, unreadable="skip")
    index = VideoIndex.build(models["retrieval"], out / "videos" / "test", index_config, save_to=out / "index")
    say("5/5  three sentences, looked up among the test clips")
    _search(index, data["test"], out / "plots", say=say)
    results = _results(table, runs, config=config, table_time=table_time, total_time=time.perf_counter() - start)
    with atomic_file(out / "results.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    say("")
    say(_closing_message(out, results["seconds"]))
    return results


def load_backbone() -> Backbone:
    """Load the mini model in the same way as any open_clip checkpoint."""
    clip, tokenizer, base = load_clip(MINI)
    return Backbone(clip, tokenizer=tokenizer, base=base)


def render_table(table: dict[str, Row]) -> str:
    """Return the table as text with aligned columns."""
    rows = [[name, *(str(row[column]) for column in COLUMNS)] for name, row in table.items()]
    cells = [["", *COLUMNS.values()], *rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def caption_over_reverse(model: VideoCLIP, store: TapStore) -> Score:
    """Return the percentage of clips closer to their caption than to the caption of the reversed motion.

    Ties count half.
    """
    motions = [store.data.classes[r.label] for r in store.data if r.label is not None]
    captions = [r.captions[0] for r in store.data]
    reversed_captions = [
        text.replace(motion, motion_shapes.reverse(motion)) for text, motion in zip(captions, motions, strict=True)
    ]
    video = F.normalize(embed_videos(model, store).video, dim=-1)
    similarities = [(video * embed_texts(model, texts)).sum(dim=-1) for texts in (captions, reversed_captions)]
    wins = (similarities[0] > similarities[1]).double() + 0.5 * (similarities[0] == similarities[1]).double()
    return _score(100 * wins.mean().item(), percent(share_interval(wins.numpy())))


def shuffled(store: TapStore, *, seed: int) -> TapStore:
    """Return the taps of the clips with their frames in random order."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(store.data_config.frames, generator=generator) for _ in range(len(store))]
    return store.reordered(torch.stack(orders))


def _train_and_score(
    backbone: Backbone, options: BranchOptions, stores: dict[str, TapStore], *, config: DemoConfig
) -> tuple[dict[str, Row], dict[str, VideoCLIP], dict[str, TrainResult]]:
    """Train and evaluate every row; return the table, the STAN models by task, and the training results by name."""
    frame_mean = attach(backbone, "mean")
    table = {
        ROWS[0]: _retrieval(frame_mean, stores["test"])
        | {"motion_top1": _top1(evaluate_zero_shot(frame_mean, stores["test"], templates=TEMPLATES))}
    }
    mean_branch = choose("mean", {"hidden": 4 * backbone.embed_dim})  # as in a block's MLP
    runs: dict[str, TrainResult] = {}
    models: dict[str, VideoCLIP] = {}
    epochs = {
        ROWS[1]: {"retrieval": config.baseline_epochs, "recognition": config.baseline_epochs},
        ROWS[2]: {"retrieval": config.epochs, "recognition": max(1, config.epochs // 2)},
    }
    for name, branch in ((ROWS[1], mean_branch), (ROWS[2], options)):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # initial weights are sampled on the CPU
            retriever = attach(backbone, branch)
        train_config = _train_config("retrieval", config, epochs=epochs[name]["retrieval"])
        runs[f"{name} (retrieval)"] = train(retriever, stores["train"], stores["val"], train_config)
        recogniser = attach(backbone, branch)
        recogniser.branch.load_state_dict(retriever.branch.state_dict())
        train_config = _train_config("recognition", config, epochs=epochs[name]["recognition"])
        runs[f"{name} (recognition)"] = train(recogniser, stores["train"], stores["val"], train_config)
        models = {"retrieval": retriever, "recognition": recogniser}  # STAN's after the loop
        table[name] = _retrieval(retriever, stores["test"])
        table[name]["motion_top1"] = _top1(evaluate_recognition(recogniser, stores["test"]))
    shuffled_store = shuffled(stores["test"], seed=config.seed)
    table[ROWS[3]] = _retrieval(models["retrieval"], shuffled_store)
    table[ROWS[3]]["motion_top1"] = _top1(evaluate_recognition(models["recognition"], shuffled_store))
    return table, models, runs


def _train_config(task: Literal["retrieval", "recognition"], config: DemoConfig, *, epochs: int) -> TrainConfig:
    return TrainConfig(
        task=task,
        epochs=epochs,
        batch_size=32,
        lr=config.lr,
        pretrained_lr_scale=1.0,  # at a lower rate, the turning motions are learnt later
        head_lr=3e-3,
        keep_together=2,  # a clip and its reversed copy are hard negatives of each other
        seed=config.seed,
        data_config=DATA_CONFIG,
    )


def _retrieval(model: VideoCLIP, store: TapStore) -> Row:
    metrics = evaluate_retrieval(model, store).metrics
    return {
        "t2v_r1": _score(metrics.t2v["R@1"], metrics.t2v.intervals["R@1"]),
        "v2t_r1": _score(metrics.v2t["R@1"], metrics.v2t.intervals["R@1"]),
        "caption_over_reverse": caption_over_reverse(model, store),
    }


def _top1(result: EvaluationResult[RecognitionMetrics]) -> Score:
    return _score(result["top-1"], result.metrics.intervals["top-1"])


def _score(value: float, interval: Sequence[float]) -> Score:
    low, high = interval
    return Score(float(value), float(low), float(high))


def _plot(folder: Path, models: dict[str, VideoCLIP], store: TapStore, runs: dict[str, TrainResult]) -> None:
    """Draw training curves, a confusion matrix and retrieval results."""
    history = [
        {"run": name, **{k: v for k, v in entry.items() if k in ("loss", "score")}, "epoch": int(entry["epoch"])}
        for name, result in runs.items()
        for entry in result.history
    ]
    for task, score in (("retrieval", "R@1"), ("recognition", "top-1")):
        entries = [entry for entry in history if task in entry["run"]]
        figure = plots.training_curve(entries, title=f"Training: {task}", score_name=f"validation {score} (%)")
        plots.save(figure, folder / f"training-{task}.png")
    confusion = evaluate_recognition(models["recognition"], store).metrics.confusion
    matrix = plots.confusion_matrix(confusion, store.data.classes, title="Motions, STAN on the test clips")
    plots.save(matrix, folder / "confusion.png")
    grid = plots.retrieval_grid(_grid_rows(models["retrieval"], store), title="Text to video, STAN")
    plots.save(grid, folder / "retrieval.png")


def _grid_rows(model: VideoCLIP, store: TapStore, *, queries: int = 5, hits: int = 3) -> list[plots.RetrievalRow]:
    """Return one query for each pair of a motion and its reverse (labels 2i and 2i + 1), with its first hits."""
    video = F.normalize(embed_videos(model, store).video, dim=-1)
    query_rows = [next(i for i, r in enumerate(store.data) if r.label == label) for label in range(0, 2 * queries, 2)]
    text = embed_texts(model, [store.data[i].captions[0] for i in query_rows])
    rows = []
    for query_row, similarity in zip(query_rows, text @ video.T, strict=True):
        best = similarity.topk(hits)
        strips = tuple(
            plots.RetrievedClip(_frames(store.data[i].path), score, i == query_row, caption=store.data[i].captions[0])
            for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        rows.append(plots.RetrievalRow(store.data[query_row].captions[0], strips))
    return rows


def _search(index: VideoIndex, data: VideoDataset, folder: Path, *, say: Callable[[str], None]) -> None:
    """Print the hits of three test captions, one of each motion in `SEARCHED_LABELS`, and draw them as film strips."""
    captions = {r.path.resolve(): r.captions[0] for r in data}
    queries = [next(r.captions[0] for r in data if r.label == label) for label in SEARCHED_LABELS]
    rows = []
    for query in queries:
        say(f"     {query!r}")
        hits = index.search(query, k=3)
        for hit in hits:
            say(f"       {hit.score:.3f}  {hit.path.name}  {captions[hit.path.resolve()]}")
        hit_captions = [captions[hit.path.resolve()] for hit in hits]
        strips = tuple(
            plots.RetrievedClip(_frames(hit.path), hit.score, text == query, caption=text)
            for hit, text in zip(hits, hit_captions, strict=True)
        )
        rows.append(plots.RetrievalRow(query, strips))
    plots.save(plots.retrieval_grid(rows, title="Search"), folder / "search.png")


def _frames(path: Path) -> Tensor:
    return read_video(path, frames=5)


def _results(
    table: dict[str, Row], runs: dict[str, TrainResult], *, config: DemoConfig, table_time: float, total_time: float
) -> dict[str, Any]:
    """Return the contents of results.json: versions, machine, configuration, table, training history and seconds."""
    from clipvid.runtime.version import __version__

    return {
        "clipvid": __version__,
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} CPU cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "config": asdict(config),
        "table": {name: {column: asdict(score) for column, score in row.items()} for name, row in table.items()},
        "history": {name: list(run.history) for name, run in runs.items()},
        "seconds": {"table": round(table_time, 1), "total": round(total_time, 1)},
    }


def _closing_message(out: Path, seconds: dict[str, float]) -> str:
    """Return the last lines: time, files, and commands for the user's own videos."""
    return f"""Done in {seconds["total"]:.0f} s. Pictures are in {out / "plots"}, models in {out}/model-*.

Now your own videos, with any open_clip model (its weights are downloaded once). For training, one sub-folder per class:
  clipvid index build my-videos --model ViT-B-32 --pretrained openai --out my-index
  clipvid search my-index "a dog runs on the beach"
  clipvid train my-videos --task recognition --model ViT-B-32 --pretrained openai --out my-run
  clipvid eval my-test-videos --model my-run/best"""
