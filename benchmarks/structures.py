"""Comparison of structures that add time to CLIP, on the same clips, budget and seeds (as in the STAN paper).

    python benchmarks/structures.py                 # all cells that are missing, then the table
    python benchmarks/structures.py --only stan-rsa divided
    python benchmarks/structures.py --table         # the table of the finished cells

Each cell (structure x task x seed) is a file in --work, written atomically once it is measured, so an interrupted run
can be resumed, and several processes share the work. Validation clips choose a learning rate for each structure;
retrieval is trained first, and recognition continues from that branch. The frozen tower encodes every clip once. The
clips are rendered (motion_shapes.py): only the order of frames tells a motion from its reverse. The table is written to
--work, and to benchmarks/results/structures.json once no cell is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import Cell, fill, helpers, peak_memory, read_json, write_json
from structures_plan import (
    AS_RELEASED,
    DATA_CONFIG,
    METRICS,
    PRETRAINED,
    ROWS,
    SPLITS,
    STRUCTURES,
    TAPPED,
    Budget,
    Structure,
)

from clipvid.config.settings import TrainConfig
from clipvid.data import motion_shapes
from clipvid.data.records import VideoDataset
from clipvid.demo.tour import TEMPLATES, load_backbone
from clipvid.evaluation.recognition import evaluate_recognition, evaluate_zero_shot
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Taps
from clipvid.models.branches.options import choose
from clipvid.models.factory import attach, load
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import atomic_file
from clipvid.runtime.precision import autocast, resolve
from clipvid.training.loop import train

RESULTS = Path(__file__).parent / "results" / "structures.json"


@dataclass(frozen=True)
class Bench:
    """One run: the folder of its cells, its budget, and the data that the cells share."""

    work: Path
    budget: Budget
    backbone: Backbone
    device: str

    def data(self, split: str) -> VideoDataset:
        b = self.budget
        size = {"train": b.train_clips, "val": b.val_clips, "test": b.test_clips}[split]
        workers = os.cpu_count() or 1
        return motion_shapes.write_dataset(
            self.work / "videos", split, size, seed=b.videos, workers=workers, progress=True
        )

    def store(self, split: str) -> TapStore:
        """Return taps of all levels that any structure reads, encoded once and then memory-mapped from their file."""
        data = self.data(split)
        tower, precision = self.backbone.tower_fingerprint, resolve(DATA_CONFIG.precision, self.backbone.device)
        key = _key(len(data), self.budget.videos, _pixel_settings(), TAPPED, tower, precision)
        path = self.work / "taps" / f"{split}-{key}.pt"
        if not path.exists():
            encoded = encode_dataset(
                attach(self.backbone, choose("stan", {"depth": 3})), data, DATA_CONFIG, progress=True
            )
            assert encoded.taps.levels == TAPPED
            assert encoded.taps.mask is None
            assert not encoded.unreadable
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as beside:
                torch.save((encoded.taps.patches, encoded.taps.cls, encoded.taps.frames), beside)
        return TapStore(Taps(TAPPED, *torch.load(path, mmap=True, weights_only=True)), data, DATA_CONFIG, tower)

    def stores(self) -> dict[str, TapStore]:
        return {split: self.store(split) for split in SPLITS}

    def fresh(self, structure: Structure, seed: int) -> VideoCLIP:
        torch.manual_seed(seed)
        options = choose(structure.branch, structure.options)
        return attach(self.backbone, options, similarity=structure.similarity)

    def path(self, name: str, task: str, seed: int) -> Path:
        """Return the file of a cell, named with a hash of base model, budget and options, which decide its metrics."""
        tuned = ("rates", "tuning_seed") if task.startswith("tune") else ()
        budget = {k: v for k, v in asdict(self.budget).items() if k not in ("seeds", "few", *tuned)}
        row = asdict(STRUCTURES[self.budget.few.structure if name in PRETRAINED else name])
        few: list[Any] = []
        if name in PRETRAINED:
            cache_key = PRETRAINED[name]
            durations = {k: v for k, v in asdict(self.budget.few).items() if not (tuned and k == "pretrain_rates")}
            few = [durations, None if cache_key is None else asdict(cache_key)]
        computed_with = [self.backbone.fingerprint, resolve(DATA_CONFIG.precision, self.backbone.device)]
        computed_with += [self.device] if task == "cost" else []
        key = _key(budget, _pixel_settings(), TAPPED, row, *few, *computed_with)
        return self.work / "cells" / f"{_plain(name)}-{task}-{seed}-{key}.json"

    def model(self, name: str, seed: int) -> Path:
        """Return the folder of the model trained for retrieval, from which recognition continues."""
        return self.work / "models" / self.path(name, "retrieval", seed).stem


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _pixel_settings() -> dict[str, Any]:
    """Return the data settings that decide the pixels; others may change or be added while cells stay valid."""
    return {name: value for name, value in asdict(DATA_CONFIG).items() if value is not None and name != "time_limit"}


def _plain(name: str) -> str:
    return name.replace(" ", "").replace(",", "-")


def trainings(bench: Bench, names: list[str]) -> Iterator[Cell]:
    """Yield the cells of the table: learning rates first, then seed by seed, so that all rows fill up evenly."""
    b = bench.budget
    tuning = {name: [bench.path(name, f"tune-{rate:g}", b.tuning_seed) for rate in b.rates] for name in STRUCTURES}
    for name in _trained(names):
        for rate, path in zip(b.rates, tuning[name], strict=True):
            yield Cell(path, f"{name}, rate {rate:g}", partial(tune, bench, name, rate))
    if "zero-shot" in names:
        path = bench.path("zero-shot", "retrieval", b.seeds[0])
        yield Cell(path, "zero-shot", partial(without_training, bench))
    few_tuning = [bench.path(AS_RELEASED, f"tune-{rate:g}", b.tuning_seed) for rate in b.few.pretrain_rates]
    if any(PRETRAINED.get(name) for name in names):
        for rate, path in zip(b.few.pretrain_rates, few_tuning, strict=True):
            yield Cell(path, f"{AS_RELEASED}, rate {rate:g}", partial(few_tune, bench, AS_RELEASED, rate))
    for seed in b.seeds:
        for name in _trained(names):
            first = bench.path(name, "retrieval", seed)
            yield Cell(
                first, f"{name}, retrieval, seed {seed}", partial(retrieval, bench, name, seed), (*tuning[name],)
            )
            if STRUCTURES[name].similarity == "mean":
                path = bench.path(name, "recognition", seed)
                measure = partial(recognition, bench, name, seed)
                yield Cell(path, f"{name}, recognition, seed {seed}", measure, (first, *tuning[name]))
        for name in PRETRAINED:
            if name in names:
                path = bench.path(name, "recognition", seed)
                measure = partial(few_shot, bench, name, seed)
                yield Cell(path, f"{name}, seed {seed}", measure, (*(few_tuning if PRETRAINED[name] else ()),))


def _trained(names: list[str]) -> list[str]:
    return [name for name in STRUCTURES if name in names and name != "zero-shot"]


def tune(bench: Bench, name: str, rate: float) -> dict[str, Any]:
    """Return the validation score of a learning rate."""
    seed, stores = bench.budget.tuning_seed, bench.stores()
    config = _config(bench.budget, "retrieval", seed, lr=rate)
    model = bench.fresh(STRUCTURES[name], seed)
    return {"score": train(model, stores["train"], stores["val"], config, accelerator=bench.device).best_score}


def best_rate(bench: Bench, name: str) -> float:
    """Return the learning rate with which this row scored best on the validation clips."""
    b = bench.budget
    name, rates = (AS_RELEASED, b.few.pretrain_rates) if name in PRETRAINED else (name, b.rates)
    scores = {rate: read_json(bench.path(name, f"tune-{rate:g}", b.tuning_seed))["score"] for rate in rates}
    return max(scores, key=lambda rate: scores[rate])


def without_training(bench: Bench) -> dict[str, Any]:
    """Return the metrics of CLIP's mean over frames."""
    model, test = bench.fresh(STRUCTURES["zero-shot"], 0), bench.store("test")
    motion = evaluate_zero_shot(model, test, templates=TEMPLATES)["top-1"]
    return {"metrics": {**_retrieval_metrics(model, test), "motion top-1": motion}}


def retrieval(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    stores, model = bench.stores(), bench.fresh(STRUCTURES[name], seed)
    config = _config(bench.budget, "retrieval", seed, lr=best_rate(bench, name))
    result = train(model, stores["train"], stores["val"], config, accelerator=bench.device)
    model.save(bench.model(name, seed))
    return {"metrics": _retrieval_metrics(model, stores["test"]), "lr": config.lr, "history": result.history}


def recognition(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    stores, model = bench.stores(), bench.fresh(STRUCTURES[name], seed)
    model.branch.load_state_dict(load(bench.model(name, seed), base=bench.backbone).branch.state_dict())
    config = _config(bench.budget, "recognition", seed, lr=best_rate(bench, name))
    result = train(model, stores["train"], stores["val"], config, accelerator=bench.device)
    metrics = {"motion top-1": evaluate_recognition(model, stores["test"])["top-1"]}
    return {"metrics": metrics, "lr": config.lr, "history": result.history}


def few_tune(bench: Bench, name: str, rate: float) -> dict[str, Any]:
    """Return the validation score of a learning rate for pre-training on clips without labels."""
    model, _ = _from_few(bench, name, bench.budget.tuning_seed, rate=rate)
    return {"score": evaluate_recognition(model, bench.store("val"))["top-1"]}


def few_shot(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """Return motion top-1 from a few labelled clips per class, after the pre-training that PRETRAINED names."""
    rate = None if PRETRAINED[name] is None else best_rate(bench, name)
    model, losses = _from_few(bench, name, seed, rate=rate)
    metrics = {"motion top-1": evaluate_recognition(model, bench.store("test"))["top-1"]}
    return {"metrics": metrics, "pretraining_lr": rate, "pretraining_losses": losses}


def _from_few(bench: Bench, name: str, seed: int, *, rate: float | None) -> tuple[VideoCLIP, list[float]]:
    """Return a model trained on a few labels (its last epoch), and the losses of its pre-training."""
    few, stores, cache_key = bench.budget.few, bench.stores(), PRETRAINED[name]
    model = bench.fresh(STRUCTURES[few.structure], seed)
    losses: list[float] = []
    if cache_key is not None and rate is not None:
        config = replace(
            _config(bench.budget, "selfsup", seed, lr=rate),
            epochs=few.pretrain_epochs,
            data_config=replace(DATA_CONFIG, sampler="dense"),
            selfsup=cache_key,
        )
        clips = bench.data("train").subset(range(few.clips))
        losses = [epoch["loss"] for epoch in train(model, clips, None, config, accelerator=bench.device).history]
    labels = stores["train"].labels
    rows = torch.cat([(labels == c).nonzero()[: few.shots, 0] for c in labels.unique()])
    config = replace(_config(bench.budget, "recognition", seed, lr=few.lr), epochs=few.epochs, keep_together=1)
    train(model, stores["train"].subset(rows.tolist()), None, config, accelerator=bench.device)
    return model, losses


def _retrieval_metrics(model: VideoCLIP, store: TapStore) -> dict[str, float]:
    """Return R@1 and R@5 in both directions."""
    result = evaluate_retrieval(model, store)
    return {metric: result[metric] for metric in METRICS}


def _config(budget: Budget, task: str, seed: int, *, lr: float) -> TrainConfig:
    return TrainConfig(
        task=task,  # type: ignore[arg-type]
        epochs=budget.retrieval_epochs if task == "retrieval" else budget.recognition_epochs,
        batch_size=budget.batch_size,
        lr=lr,
        pretrained_lr_scale=budget.pretrained_lr_scale,
        head_lr=budget.head_lr,
        keep_together=budget.keep_together,
        multi_positive=False,  # the loss of the papers, which takes equal captions for negatives
        seed=seed,
        data_config=DATA_CONFIG,
    )


def cost(bench: Bench, name: str, *, steps: int = 12) -> dict[str, Any]:
    """Return seconds and peak memory of a training step from taps, parameters, and MACs per clip."""
    model = bench.fresh(STRUCTURES[name], 0)
    summary = model.trainable_summary(DATA_CONFIG.frames)
    counts = {
        "parameters": summary.trainable,
        "macs": summary.tower_macs.linear + summary.branch_macs.linear,
        "branch_macs": summary.branch_macs.linear,
    }
    if not summary.trainable:
        return {**counts, "seconds_per_step": None, "peak_mib": None}
    size = bench.budget.batch_size
    side = bench.backbone.image_size
    as_trained = partial(autocast, DATA_CONFIG.precision, model.device)
    with as_trained():
        taps = model.taps(torch.randint(0, 255, (size, DATA_CONFIG.frames, 3, *side), dtype=torch.uint8))
    text = model.text_features(["a shape that moves up"] * size)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    times = []
    with peak_memory(bench.device) as peak:
        for _ in range(steps):
            start = time.perf_counter()
            with as_trained():
                encoded, mask = model.encode_clip(taps)
                similarity = model.match(text, encoded, mask=mask)
            torch.nn.functional.cross_entropy(20 * similarity, torch.arange(size, device=model.device)).backward()
            torch.nn.utils.clip_grad_norm_(trained, max_norm=5.0)
            optimizer.step()
            optimizer.zero_grad()
            if bench.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return {
        **counts,
        "seconds_per_step": min(times),
        "peak_mib": peak[0],
    }  # other processes can only make a step slower


def costs(bench: Bench, names: list[str]) -> Iterator[Cell]:
    """Yield a cell for each structure, measured in a separate process so that no peak hides another."""
    for name in names:
        if name in STRUCTURES:
            yield Cell(bench.path(name, "cost", 0), f"cost of {name}", partial(_cost_apart, bench, name))


def _cost_apart(bench: Bench, name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(bench.work), "--device", bench.device, "--cost", name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


MEASURED = ("commit", "machine", "clipvid", "torch")
"""Keys of a cell that identify the code and the machine that measured it."""


def summary(bench: Bench) -> dict[str, Any]:
    """Return the table as JSON: mean and standard deviation over the seeds of every metric that was measured."""
    b = bench.budget
    cells = [*trainings(bench, list(ROWS)), *costs(bench, list(ROWS))]
    results = {cell.path: read_json(cell.path) for cell in cells if cell.done}
    rows: dict[str, Any] = {}
    for name in ROWS:
        values: dict[str, list[float]] = {}
        for task in ("retrieval", "recognition"):
            for seed in b.seeds:
                for metric, value in results.get(bench.path(name, task, seed), {}).get("metrics", {}).items():
                    values.setdefault(metric, []).append(value)
        rows[name] = {"metrics": {metric: _spread(v) for metric, v in values.items()}}
        if name in STRUCTURES:
            rows[name] |= {"where": STRUCTURES[name].where, "cost": results.get(bench.path(name, "cost", 0), {})}
            rows[name]["lr"] = results.get(bench.path(name, "retrieval", b.seeds[0]), {}).get("lr")
    return {
        "command": "python benchmarks/structures.py",
        **{fact: " and ".join(sorted({cell[fact] for cell in results.values()})) for fact in MEASURED},
        "missing": len(cells) - len(results),
        "budget": asdict(b),
        "core_seconds": round(sum(cell["core_seconds"] for cell in results.values())),
        "rows": {name: row for name, row in rows.items() if row["metrics"]},
    }


def _spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def main() -> int:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("structures-work"), help="cells, models, taps and videos")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=ROWS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, help="processes that share the work; by default one per two cores")
    parser.add_argument("--table", action="store_true", help="write the table of the finished cells")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cost", choices=list(STRUCTURES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    bench = Bench(args.work, Budget(), load_backbone().to(args.device), args.device)
    if args.cost:
        print(json.dumps(cost(bench, args.cost)))
        return 0
    jobs = args.jobs or (1 if args.device == "cuda" else max(1, cores // 2))
    cells = list(trainings(bench, args.only))
    if not args.table and not all(cell.done for cell in cells):
        bench.stores()
        torch.set_num_threads(max(1, cores // jobs))
        command = [__file__, "--worker", "--jobs", str(jobs), *sys.argv[1:]]
        with nullcontext() if args.worker else helpers(jobs - 1, command):
            fill(cells)
    if args.worker:
        return 0
    if not args.table:
        fill(list(costs(bench, args.only)))
    table = summary(bench)
    write_json(args.work / "structures.json", table)
    if table["missing"]:
        print(f"{table['missing']} cells are missing; the table of the others: {args.work / 'structures.json'}")
    else:
        write_json(RESULTS, table)
        print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
