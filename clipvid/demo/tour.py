"""The main job on the embedded default: render clips, train a branch on a frozen CLIP, score it, save it, search.

Contract: an output folder in; videos, models, plots, an index and results.json in it, and one table printed. Every
figure is measured in this run, on clips the training never saw. Also shows how the pieces of clipvid fit together.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clipvid import plots
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data import motion_shapes
from clipvid.evaluation.metrics import percent, share_interval
from clipvid.evaluation.recognition import evaluate_recognition, evaluate_zero_shot
from clipvid.evaluation.results import EvaluationResult
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.features.memory import encode_dataset
from clipvid.features.tap_store import TapStore
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.open_clip import MINI, load_clip
from clipvid.models.branches import BRANCHES, choose
from clipvid.models.branches.base import BranchOptions
from clipvid.models.factory import attach
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import atomic_file
from clipvid.search.index import VideoIndex
from clipvid.training.loop import TrainResult, train
from clipvid.video.decode import read_video

TEMPLATES = ("a shape that {}.",)  # the words in which the mini model's captions are written
DATA_CONFIG = DataConfig(frames=8, sampler="linspace", batch_size=64)  # from the first frame to the last
ROWS = ("zero-shot frame-mean", "frame-mean, trained", "STAN, trained", "STAN, frames shuffled")


@dataclass(frozen=True)
class Plan:
    """The size of the demo."""

    train_clips: int = 4000
    val_clips: int = 200
    test_clips: int = 400
    epochs: int = 4
    """Epochs of retrieval; recognition starts from that branch and takes half of them."""
    baseline_epochs: int = 20
    """Epochs per task of the order-blind baseline, whose steps are cheap: more than STAN gets."""
    depth: int = 2
    mixer: str = "conv_full"
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for split in motion_shapes.SPLITS:
            least = 2 if split == "train" else len(motion_shapes.MOTIONS)  # every motion is scored and shown
            if (clips := getattr(self, f"{split}_clips")) < least or clips % 2:
                raise ValueError(
                    f"{split}_clips must be even, as clips come in pairs, and {least} or more, got {clips}"
                )
            motion_shapes.draw_scene(self.seed, split, clips - 1)  # refuses more clips than a split has
        for name in ("epochs", "baseline_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} starts at 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Score:
    """A figure in percent with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


Row = dict[str, Score]


def run(
    out: str | Path = "clipvid-demo", plan: Plan | None = None, *, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run the demo into `out`; returns what results.json holds."""
    plan, out, start = plan or Plan(), Path(out), time.perf_counter()
    data_config = DATA_CONFIG
    say(f"1/5  rendering {plan.train_clips + plan.val_clips + plan.test_clips} short videos into {out / 'videos'}")
    sizes = {"train": plan.train_clips, "val": plan.val_clips, "test": plan.test_clips}
    workers = os.cpu_count() or 1
    data = {
        split: motion_shapes.write_dataset(out / "videos", split, n, seed=plan.seed, workers=workers, progress=True)
        for split, n in sizes.items()
    }
    say(f"2/5  the frozen CLIP ({MINI}) encodes every clip once; its taps stay in memory")
    backbone = load_backbone()
    options = choose("stan", {"depth": plan.depth, "mixer": plan.mixer, "drop_path": 0.0})
    encoder = attach(backbone, options)
    stores = {split: encode_dataset(encoder, part, data_config, progress=True) for split, part in data.items()}
    say("3/5  training for retrieval (captions), then from there for recognition (motions); the baseline the same way")
    table, models, runs = _train_and_score(backbone, options, stores, plan=plan)
    seconds = time.perf_counter() - start
    say("")
    say(render_table(table))
    say("")
    say(f"4/5  saving models, plots and an index of the test clips to {out}")
    for name, model in models.items():
        model.save(out / f"model-{name}")
    _plot(out / "plots", models, stores["test"], runs)
    index = VideoIndex.build(
        models["retrieval"],
        out / "videos" / "test",
        frames=data_config.frames,
        sampler=data_config.sampler,
        save_to=out / "index",
    )
    say("5/5  three sentences, looked up among the test clips")
    _search(index, data["test"], out / "plots", say=say)
    results = _results(table, runs, plan=plan, seconds=seconds, total=time.perf_counter() - start)
    with atomic_file(out / "results.json") as beside:
        beside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    say("")
    say(_farewell(out, results["seconds"]))
    return results


def load_backbone() -> Backbone:
    """Load the embedded model by the path that any open_clip checkpoint takes."""
    clip, tokenizer, base = load_clip(MINI)
    return Backbone(clip, tokenizer=tokenizer, base=base)


def render_table(table: dict[str, Row]) -> str:
    """Return the demo's table, aligned for a terminal."""
    columns = list(next(iter(table.values())))
    cells = [
        ["", *columns],
        *([name, *(str(row[c]) if c in row else "-" for c in columns)] for name, row in table.items()),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def against_reversed(model: VideoCLIP, store: TapStore) -> Score:
    """Return the share of clips whose caption beats the same caption with the motion reversed; ties count half."""
    motions = [store.data.classes[r.label] for r in store.data if r.label is not None]
    own = [r.captions[0] for r in store.data]
    other = [text.replace(motion, motion_shapes.reverse(motion)) for text, motion in zip(own, motions, strict=True)]
    video = F.normalize(embed_videos(model, store).video, dim=-1)
    margins = [(video * embed_texts(model, texts)).sum(dim=-1) for texts in (own, other)]
    won = (margins[0] > margins[1]).double() + 0.5 * (margins[0] == margins[1]).double()
    return _score(100 * won.mean().item(), percent(share_interval(won.numpy())))


def shuffled(store: TapStore, *, seed: int) -> TapStore:
    """Return the clips with their frames in random order."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(store.data_config.frames, generator=generator) for _ in range(len(store))]
    return store.reordered(torch.stack(orders))


def _train_and_score(
    backbone: Backbone, options: BranchOptions, stores: dict[str, TapStore], *, plan: Plan
) -> tuple[dict[str, Row], dict[str, VideoCLIP], dict[str, TrainResult]]:
    zero = attach(backbone, "mean")
    table = {
        ROWS[0]: _retrieval(zero, stores["test"])
        | {"motion top-1": _top1(evaluate_zero_shot(zero, stores["test"], templates=TEMPLATES))}
    }
    mean = replace(BRANCHES["mean"], hidden=4 * backbone.embed_dim)
    runs: dict[str, TrainResult] = {}
    models: dict[str, VideoCLIP] = {}
    epochs = {
        ROWS[1]: {"retrieval": plan.baseline_epochs, "recognition": plan.baseline_epochs},
        ROWS[2]: {"retrieval": plan.epochs, "recognition": max(1, plan.epochs // 2)},
    }
    for name, branch in ((ROWS[1], mean), (ROWS[2], options)):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(plan.seed)  # weights are drawn on the CPU
            retriever = attach(backbone, branch)
        config = _config("retrieval", plan, epochs=epochs[name]["retrieval"])
        runs[f"{name} (retrieval)"] = train(retriever, stores["train"], stores["val"], config)
        recogniser = attach(backbone, branch)
        recogniser.branch.load_state_dict(retriever.branch.state_dict())
        config = _config("recognition", plan, epochs=epochs[name]["recognition"])
        runs[f"{name} (recognition)"] = train(recogniser, stores["train"], stores["val"], config)
        models = {"retrieval": retriever, "recognition": recogniser}
        table[name] = _retrieval(retriever, stores["test"])
        table[name]["motion top-1"] = _top1(evaluate_recognition(recogniser, stores["test"]))
    mixed = shuffled(stores["test"], seed=plan.seed)
    table[ROWS[3]] = _retrieval(models["retrieval"], mixed)
    table[ROWS[3]]["motion top-1"] = _top1(evaluate_recognition(models["recognition"], mixed))
    return table, models, runs


def _config(task: Literal["retrieval", "recognition"], plan: Plan, *, epochs: int) -> TrainConfig:
    return TrainConfig(
        task=task,
        epochs=epochs,
        batch_size=32,
        lr=plan.lr,
        pretrained_lr_scale=1.0,  # at a lower rate turning was learnt later
        head_lr=3e-3,
        keep_together=2,  # a clip and itself played backwards: each is the other's hard negative
        seed=plan.seed,
        data_config=DATA_CONFIG,
    )


def _retrieval(model: VideoCLIP, store: TapStore) -> Row:
    found = evaluate_retrieval(model, store).metrics
    return {
        "R@1 text to video": _score(found.t2v["R@1"], found.t2v.intervals["R@1"]),
        "R@1 video to text": _score(found.v2t["R@1"], found.v2t.intervals["R@1"]),
        "caption over its reverse": against_reversed(model, store),
    }


def _top1(found: EvaluationResult) -> Score:
    return _score(found["top-1"], found.metrics.intervals["top-1"])


def _score(value: float, interval) -> Score:
    low, high = interval
    return Score(float(value), float(low), float(high))


def _plot(folder: Path, models: dict[str, VideoCLIP], store: TapStore, runs: dict[str, TrainResult]) -> None:
    history = [
        {"run": name, **{k: v for k, v in entry.items() if k in ("loss", "score")}, "epoch": int(entry["epoch"])}
        for name, result in runs.items()
        for entry in result.history
    ]
    for task, score in (("retrieval", "R@1"), ("recognition", "top-1")):
        own = [entry for entry in history if task in entry["run"]]
        plots.training_curve(
            own, folder / f"training-{task}.png", title=f"Training: {task}", score_name=f"validation {score} (%)"
        )
    confusion = evaluate_recognition(models["recognition"], store).metrics.confusion
    plots.confusion_matrix(
        confusion, store.data.classes, folder / "confusion.png", title="Motions, STAN on the test clips"
    )
    plots.retrieval_grid(_grid_rows(models["retrieval"], store), folder / "retrieval.png", title="Text to video, STAN")


def _grid_rows(model: VideoCLIP, store: TapStore, *, queries: int = 5, hits: int = 3) -> list[plots.RetrievalRow]:
    """One query of each pair of motions, with its first hits."""
    video = F.normalize(embed_videos(model, store).video, dim=-1)
    chosen = [next(i for i, r in enumerate(store.data) if r.label == label) for label in range(0, 2 * queries, 2)]
    text = embed_texts(model, [store.data[i].captions[0] for i in chosen])
    rows = []
    for place, similarity in zip(chosen, text @ video.T, strict=True):
        best = similarity.topk(hits)
        found = tuple(
            plots.Hit(_frames(store.data[i].path), score, i == place, caption=store.data[i].captions[0])
            for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        rows.append(plots.RetrievalRow(store.data[place].captions[0], found))
    return rows


def _search(index: VideoIndex, data, folder: Path, *, say: Callable[[str], None]) -> None:
    captions = {r.path.resolve(): r.captions[0] for r in data}
    queries = [next(r.captions[0] for r in data if r.label == label) for label in (1, 4, 9)]
    rows = []
    for query in queries:
        say(f"     {query!r}")
        hits = index.search(query, k=3)
        for hit in hits:
            say(f"       {hit.score:.3f}  {hit.path.name}  {captions[hit.path.resolve()]}")
        found = [captions[hit.path.resolve()] for hit in hits]
        strips = tuple(
            plots.Hit(_frames(hit.path), hit.score, text == query, caption=text)
            for hit, text in zip(hits, found, strict=True)
        )
        rows.append(plots.RetrievalRow(query, strips))
    plots.retrieval_grid(rows, folder / "search.png", title="Search")


def _frames(path: Path) -> Tensor:
    return read_video(path, frames=5)


def _results(
    table: dict[str, Row], runs: dict[str, TrainResult], *, plan: Plan, seconds: float, total: float
) -> dict[str, Any]:
    from clipvid.runtime.version import __version__

    return {
        "clipvid": __version__,
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} CPU cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "plan": asdict(plan),
        "table": {name: {column: asdict(score) for column, score in row.items()} for name, row in table.items()},
        "history": {name: list(run.history) for name, run in runs.items()},
        "seconds": {"to the table": round(seconds, 1), "in all": round(total, 1)},
    }


def _farewell(out: Path, seconds: dict[str, float]) -> str:
    return f"""Done in {seconds["in all"]:.0f} s. Pictures are in {out / "plots"}, models in {out}/model-*.

Now your own videos, with any open_clip model (its weights are downloaded once). For training, one sub-folder a class:
  clipvid index my-videos --model ViT-B-32 --pretrained openai --out my-index
  clipvid search my-index "a dog runs on the beach"
  clipvid train my-videos --task recognition --model ViT-B-32 --pretrained openai --out my-run
  clipvid eval my-test-videos --model my-run/best"""
