"""Where should time enter CLIP? Every structure on the same clips, budget and seeds (the STAN paper's comparison).

    python benchmarks/structures.py                 # all cells that are missing, then the table
    python benchmarks/structures.py --only stan-rsa divided
    python benchmarks/structures.py --table         # the table of what is there

Each cell (structure x task x seed) is a file in --work, written whole when it is done, so an interrupted run goes on
where it was. Retrieval is trained first; recognition goes on from that branch. The frozen tower encodes every clip
once. Writes benchmarks/results/structures.json. The world is rendered (clipvid.data.shapes): only the order of frames
tells a motion from its reverse.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from clipvid import __version__
from clipvid import evaluate as ev
from clipvid._files import whole_file
from clipvid.backbone import Backbone
from clipvid.branches import choose
from clipvid.cache import TapStore
from clipvid.config import Reading, SelfSupervision, TrainConfig
from clipvid.data import shapes
from clipvid.data.record import VideoData
from clipvid.demo import TEMPLATES, load_backbone
from clipvid.model import VideoCLIP, attach, load
from clipvid.training import train

RESULTS = Path(__file__).parent / "results" / "structures.json"
READING = Reading(frames=8, sampler="linspace", batch_size=64)
TAPPED = (4, 5, 6)  # level 4 enters the last two blocks, 5 and 6 leave them
FIGURES = ("R@1", "R@5", "v2t R@1", "v2t R@5", "motion top-1")


@dataclass(frozen=True)
class Budget:
    """What every structure gets."""

    train_clips: int = 3200
    val_clips: int = 200
    test_clips: int = 400
    retrieval_epochs: int = 3
    recognition_epochs: int = 2
    batch_size: int = 32
    rates: tuple[float, ...] = (1e-3, 3e-3)
    """Learning rates that every structure may choose from: by the validation clips, in a run of its own seed."""
    copied_lr: float = 1.0
    shots: int = 16
    """Labelled clips a class, for the few-shot rows."""
    shot_epochs: int = 30
    pretrain_clips: int = 2000
    pretrain_epochs: int = 2
    videos: int = 10
    """Seed of the clips, which are the same for all."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of weights and order."""


@dataclass(frozen=True)
class Structure:
    """A row of the table: a branch and what differs of it from its preset."""

    branch: str
    options: dict[str, Any] = field(default_factory=dict)
    similarity: str = "mean"
    where: str = ""
    """Posterior, intermediate or side branch."""


def _stan(**options: Any) -> Structure:
    similarity = options.pop("similarity", "mean")
    return Structure("stan", {"depth": 2, "drop_path": 0.0, **options}, similarity, "side branch")


def _published(name: str) -> Structure:
    return Structure(name, {"depth": 2, "drop_path": 0.0}, where="side branch")


def _between(name: str) -> Structure:
    return Structure(name, {"depth": 2, "drop_path": 0.0}, where="intermediate")


STRUCTURES: dict[str, Structure] = {
    "zero-shot": Structure("mean", where="none"),
    "mean": Structure("mean", {"hidden": 512}, where="posterior"),
    "posterior": Structure("posterior", {"depth": 2}, where="posterior"),
    "seqtransf": Structure("seqtransf", {"depth": 2}, where="posterior"),
    **{name: _between(name) for name in ("space", "joint", "divided", "local_global", "axial")},
    "vivit1": _between("vivit1"),
    "vivit2": replace(_between("vivit2"), options={"depth": 2, "drop_path": 0.0, "temporal_depth": 2}),
    "vivit3": _between("vivit3"),
    "vivit4": _between("vivit4"),
    "stan-attention": _stan(mixer="attention"),
    "stan-conv": _stan(mixer="conv"),
    "stan-conv_full": _stan(mixer="conv_full"),
    "stan-rsa": _stan(mixer="rsa", mixer_options={"kernel": (5, 3, 3)}),
    "stan-release": _published("stan-release"),
    "stan-paper": _published("stan-paper"),
    "stan-attention + WTI": _stan(mixer="attention", similarity="wti"),
    "stan-attention + Mug": _stan(mixer="attention", similarity="mug"),
}


@dataclass(frozen=True)
class Bench:
    """One run: where cells are kept, what they cost, and the data they share."""

    work: Path
    budget: Budget
    backbone: Backbone
    device: str

    def data(self, split: str) -> VideoData:
        sizes = {"train": self.budget.train_clips, "val": self.budget.val_clips, "test": self.budget.test_clips}
        return shapes.write_dataset(
            self.work / "videos",
            split,
            sizes[split],
            seed=self.budget.videos,
            workers=os.cpu_count() or 1,
            progress=True,
        )

    def stores(self) -> dict[str, TapStore]:
        """Taps of all levels that any structure reads, made once a run."""
        encoder = attach(self.backbone, choose("stan", {"depth": 3}))
        assert encoder.branch.levels == TAPPED
        return {split: TapStore.encode(encoder, self.data(split), READING, progress=True) for split in SPLITS}

    def fresh(self, structure: Structure, seed: int) -> VideoCLIP:
        torch.manual_seed(seed)
        options = choose(structure.branch, structure.options)
        return attach(self.backbone, options, similarity=structure.similarity)

    def cell(self, name: str, task: str, seed: int) -> Path:
        """The file of a cell; another budget or structure is another file."""
        budget = {k: v for k, v in asdict(self.budget).items() if k != "seeds"}
        known = json.dumps([budget, asdict(STRUCTURES.get(name, Structure("stan")))], sort_keys=True)
        key = hashlib.sha256(known.encode()).hexdigest()[:8]
        return self.work / "cells" / f"{name.replace(' ', '')}-{task}-{seed}-{key}.json"


SPLITS = ("train", "val", "test")
FEW = "few-shot"
TUNED = 50
"""Seed of the runs that choose a rate; no row of the table has it."""


def cells(bench: Bench, names: list[str]) -> Iterator[tuple[str, str, int]]:
    """What the table needs: the rates first, then seed by seed, so that every row has a figure before any has three."""
    trained = [name for name in names if name not in ("zero-shot", FEW)]
    for name in trained:
        yield from ((name, f"tune-{rate:g}", TUNED) for rate in bench.budget.rates)
    if "zero-shot" in names:
        yield "zero-shot", "retrieval", bench.budget.seeds[0]
    for seed in bench.budget.seeds:
        for name in trained:
            yield name, "retrieval", seed
            if STRUCTURES[name].similarity == "mean":
                yield name, "recognition", seed
        if FEW in names:
            yield FEW, "scratch", seed
            yield FEW, "constcl", seed


def run_cell(bench: Bench, stores: dict[str, TapStore], name: str, task: str, seed: int) -> dict[str, Any]:
    """Train and score one cell."""
    start = time.perf_counter()
    if name == FEW:
        found = few_shot(bench, stores, pretrain=task == "constcl", seed=seed)
        return {"figures": found, "seconds": time.perf_counter() - start}
    structure, kept = STRUCTURES[name], bench.work / "models" / f"{name.replace(' ', '')}-{seed}"
    model = bench.fresh(structure, seed)
    if name == "zero-shot":
        figures = retrieval_figures(model, stores["test"])
        figures["motion top-1"] = ev.zero_shot(model, stores["test"], templates=TEMPLATES)["top-1"]
        return {"figures": figures, "seconds": time.perf_counter() - start}
    if task == "recognition":
        model.branch.load_state_dict(load(kept, base=bench.backbone).branch.state_dict())
    if task.startswith("tune-"):
        config = _config(bench.budget, "retrieval", seed, lr=float(task.removeprefix("tune-")))
        result = train(model, stores["train"], stores["val"], config, accelerator=bench.device)
        return {"score": result.best_score, "figures": {}, "seconds": time.perf_counter() - start}
    config = _config(bench.budget, task, seed, lr=best_rate(bench, name))
    result = train(model, stores["train"], stores["val"], config, accelerator=bench.device)
    if task == "retrieval":
        model.save(kept)
        figures = retrieval_figures(model, stores["test"])
    else:
        figures = {"motion top-1": ev.evaluate_recognition(model, stores["test"])["top-1"]}
    history = [{k: round(v, 4) for k, v in entry.items()} for entry in result.history]
    return {"figures": figures, "lr": config.lr, "history": history, "seconds": time.perf_counter() - start}


def best_rate(bench: Bench, name: str) -> float:
    """The learning rate with which this structure found most validation clips."""
    scores = {}
    for rate in bench.budget.rates:
        path = bench.cell(name, f"tune-{rate:g}", TUNED)
        if not path.exists():
            raise SystemExit(f"{path} is missing; run without --table, so that the rates are tried first")
        scores[rate] = json.loads(path.read_text())["score"]
    return max(scores, key=lambda rate: scores[rate])


def retrieval_figures(model: VideoCLIP, store: TapStore) -> dict[str, float]:
    """R@1 and R@5 in both directions."""
    found = ev.evaluate_retrieval(model, store)
    return {figure: found[figure] for figure in FIGURES[:4]}


def few_shot(bench: Bench, stores: dict[str, TapStore], *, pretrain: bool, seed: int) -> dict[str, float]:
    """Motion top-1 from a few labelled clips a class, with or without ConST-CL on the unlabelled clips before."""
    b, structure = bench.budget, STRUCTURES["stan-conv_full"]
    model = bench.fresh(structure, seed)
    if pretrain:
        config = TrainConfig(
            task="selfsup",
            epochs=b.pretrain_epochs,
            batch_size=b.batch_size,
            lr=b.rates[0],
            copied_lr=b.copied_lr,
            seed=seed,
            reading=replace(READING, sampler="dense"),
            selfsup=SelfSupervision(),
        )
        train(model, bench.data("train").subset(range(b.pretrain_clips)), None, config, accelerator=bench.device)
    labels = [record.label for record in stores["train"].data]
    rows = [i for c in sorted(set(labels)) for i in [i for i, label in enumerate(labels) if label == c][: b.shots]]
    few = TapStore(stores["train"].batch(rows), stores["train"].data.subset(rows), stores["train"].reading)
    config = replace(_config(b, "recognition", seed, lr=b.rates[0]), epochs=b.shot_epochs, keep_together=1)
    train(model, few, stores["val"], config, accelerator=bench.device)
    return {"motion top-1": ev.evaluate_recognition(model, stores["test"])["top-1"]}


def _config(budget: Budget, task: str, seed: int, *, lr: float) -> TrainConfig:
    return TrainConfig(
        task=task,  # type: ignore[arg-type]
        epochs=budget.retrieval_epochs if task == "retrieval" else budget.recognition_epochs,
        batch_size=budget.batch_size,
        lr=lr,
        copied_lr=budget.copied_lr,
        head_lr=3e-3,
        keep_together=2,  # a clip and itself played backwards: each is the other's hard negative
        seed=seed,
        reading=READING,
    )


def cost(bench: Bench, name: str, *, steps: int = 12) -> dict[str, Any]:
    """Seconds and peak memory of a training step from taps, parameters, MACs a clip. In a process of its own."""
    structure = STRUCTURES[name]
    model = bench.fresh(structure, 0)
    summary = model.trainable_summary(READING.frames)
    facts = {
        "parameters": summary.trainable,
        "MACs": summary.tower_macs.linear + summary.branch_macs.linear,
        "branch MACs": summary.branch_macs.linear,
    }
    if not summary.trainable:
        return {**facts, "seconds a step": None, "peak MiB": None}
    size = bench.budget.batch_size
    frames = torch.randint(0, 255, (size, READING.frames, 3, 48, 48), dtype=torch.uint8)
    taps = model.taps(frames.to(model.device))
    text = model.text_features(["a shape that moves up"] * size)
    optimizer = torch.optim.AdamW([p for _, p in model.trainable_parameters()], lr=1e-4)
    before, times = _forget_peak(bench.device), []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            encoded, mask = model.encode_clip(taps)
            similarity = model.match(text, encoded, mask=mask)
        torch.nn.functional.cross_entropy(20 * similarity, torch.arange(size, device=model.device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if bench.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {
        **facts,
        "seconds a step": statistics.median(times[2:]),
        "peak MiB": (_peak(bench.device) - before) / 2**20,
    }


def _forget_peak(device: str) -> int:
    """Start to watch for a new peak; returns the bytes held now."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from what is resident
    return _status("VmRSS")


def _peak(device: str) -> int:
    """The most bytes held since then."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def measure_costs(args: argparse.Namespace, bench: Bench, names: list[str]) -> None:
    """One process for each structure, so that no peak hides another."""
    for name in names:
        path = bench.cell(name, "cost", 0)
        if not path.exists():
            command = [sys.executable, __file__, "--work", str(bench.work), "--device", bench.device, "--cost", name]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            _write(path, json.loads(found.splitlines()[-1]))
            print(f"cost of {name}: {path.read_text()[:120]}")


def summary(bench: Bench) -> dict[str, Any]:
    """The table as JSON: mean and standard deviation over the seeds of every figure that is there."""
    rows: dict[str, Any] = {}
    seconds = 0.0
    for name in [*STRUCTURES, FEW]:
        tasks = ("scratch", "constcl") if name == FEW else ("retrieval", "recognition")
        for task in tasks:
            row = rows.setdefault(name if name != FEW else f"{FEW} {task}", {"figures": {}})
            for seed in bench.budget.seeds:
                path = bench.cell(name, task, seed)
                if path.exists():
                    found = json.loads(path.read_text())
                    seconds += found["seconds"]
                    for figure, value in found["figures"].items():
                        row["figures"].setdefault(figure, []).append(value)
        path = bench.cell(name, "cost", 0)
        for rate in bench.budget.rates:
            tried = bench.cell(name, f"tune-{rate:g}", TUNED)
            seconds += json.loads(tried.read_text())["seconds"] if tried.exists() else 0.0
        if name in STRUCTURES:
            measured = json.loads(path.read_text()) if path.exists() else {}
            rows[name] |= {"where": STRUCTURES[name].where, "cost": measured}
            if name != "zero-shot" and rows[name]["figures"]:
                rows[name]["lr"] = best_rate(bench, name)
    for row in rows.values():
        row["figures"] = {
            figure: {"mean": statistics.fmean(v), "std": statistics.stdev(v) if len(v) > 1 else None, "values": v}
            for figure, v in row["figures"].items()
        }
    return {
        "command": "python benchmarks/structures.py",
        "commit": _commit(),
        "clipvid": __version__,
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} CPU cores" if bench.device == "cpu" else torch.cuda.get_device_name(),
        "budget": asdict(bench.budget),
        "seconds": round(seconds),
        "rows": {name: row for name, row in rows.items() if row["figures"]},
    }


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("structures-work"), help="cells, models and videos")
    parser.add_argument("--only", nargs="*", default=[*STRUCTURES, FEW], choices=[*STRUCTURES, FEW])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(Budget.seeds), help="of weights and order")
    parser.add_argument("--table", action="store_true", help="write the table of the cells that are there")
    parser.add_argument("--cost", choices=list(STRUCTURES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    bench = Bench(args.work, Budget(seeds=tuple(args.seeds)), load_backbone().to(args.device), args.device)
    if args.cost:
        print(json.dumps(cost(bench, args.cost)))
        return 0
    if not args.table:
        wanted = [c for c in cells(bench, args.only) if not bench.cell(*c).exists()]
        stores = bench.stores() if wanted else {}
        for place, (name, task, seed) in enumerate(wanted, start=1):
            print(f"[{place}/{len(wanted)}] {name}, {task}, seed {seed}", flush=True)
            found = run_cell(bench, stores, name, task, seed)
            _write(bench.cell(name, task, seed), found)
            print(f"  {found['figures']}  {found['seconds']:.0f} s", flush=True)
        measure_costs(args, bench, [name for name in args.only if name in STRUCTURES])
    _write(RESULTS, summary(bench))
    print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
