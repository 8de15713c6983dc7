"""Training of a branch: one visible loop on Lightning Fabric, resumable to the bit.

Contract: a model, data and a TrainConfig in; the model trained in place and a TrainResult out. Everything random is a
function of (seed, epoch, clip) or of torch's generator, whose state is saved, so a run that was killed and resumed ends
in the weights of one that was not. Knows nothing of decoding or of metrics' formulas.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from clipvid import adapt, branches
from clipvid._files import whole_file
from clipvid.backbone import hash_of
from clipvid.cache import TapStore, records_of
from clipvid.cards import data_hash
from clipvid.config import SCORES, TrainConfig
from clipvid.data.record import VideoData
from clipvid.errors import CheckpointError, DataError, VideoError
from clipvid.evaluate import evaluate_recognition, evaluate_retrieval
from clipvid.feed import Work, open_feed, open_pairs
from clipvid.heads import LinearClassifier, TextClassifier
from clipvid.model import VideoCLIP
from clipvid.objectives import OBJECTIVES, held_out_loss
from clipvid.optim import adamw, parameter_groups, schedule
from clipvid.precision import resolve
from clipvid.profile import stage

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainResult:
    """What training did. `history` has one entry an epoch: epoch, loss, lr and, where validated, score."""

    history: tuple[dict[str, float], ...]
    best_epoch: int
    best_score: float | None
    score_name: str
    seconds: float
    unreadable: tuple[VideoError, ...] = ()


def train(
    model: VideoCLIP,
    train_data: VideoData | TapStore,
    val_data: VideoData | TapStore | None = None,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    accelerator: str = "auto",
) -> TrainResult:
    """Train the model's branch (and heads) in place; CLIP itself stays as it is, unless `config.freeze` lets it train.

    With `val_data` the weights of the best validation are kept, without it the last. `out` receives checkpoints, the
    best model (`out/best`), TensorBoard curves and history.json; `resume` goes on from its last checkpoint. Raises
    DataError for data that the task cannot use, CheckpointError for a checkpoint of another run, FileExistsError for a
    run that would be overwritten.
    """
    config = config or TrainConfig()
    if out is not None and not resume and (Path(out) / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a training run; go on with it (resume), or choose another out")
    start = time.perf_counter()
    fabric = Fabric(
        accelerator=accelerator,
        devices=1,
        precision=cast(Any, resolve(config.reading.precision, Fabric(accelerator=accelerator, devices=1).device)),
    )
    torch.manual_seed(config.seed)
    fabric.to_device(model)
    _prepare_head(model, train_data, config)
    _unfreeze(model, config, (train_data, val_data))
    model.branch.recompute_layers(config.recompute)
    clips = " ".join(data_hash(records_of(part)) for part in (train_data, val_data) if part is not None)
    run = _Run(model, config, fabric, out=None if out is None else Path(out), clips=clips)
    source = open_feed(model, train_data, config, progress=progress)
    if config.cache_taps and isinstance(val_data, VideoData):
        val_data = TapStore.encode(model, val_data, config.reading, progress=progress)
    if isinstance(val_data, TapStore):  # validation picks an epoch, and reports no figure of a protocol
        val_data = replace(val_data, data=val_data.data.allowing_fewer())
    elif val_data is not None:
        val_data = val_data.allowing_fewer()
    if config.task == "selfsup" and val_data is not None:
        open_pairs(model, val_data, config, use="validation")  # what it refuses is refused before the first epoch
    run.prepare(steps_an_epoch=len(source.plan(0)))
    if resume:
        run.restore()
    with run.bar(progress) as bar, run.curves() as curves:
        while run.epoch < config.epochs and not run.patience_is_over():
            model.train()
            with closing(source.batches(run.epoch, start=run.batch)) as batches:
                for step in batches:
                    loss = run.step(step)
                    bar.update(run.steps - bar.n)
                    bar.set_postfix(loss=f"{loss:.3f}", epoch=run.epoch + 1)
                    curves("loss", loss, run.steps)
                    run.checkpoint_if_due()
            entry = run.end_epoch(val_data)
            for name in ("score", "lr"):
                if name in entry:
                    curves(name, entry[name], run.epoch)
    return run.finish(seconds=time.perf_counter() - start, unreadable=source.unreadable)


class _Run:
    """One training run: weights, optimiser, place in the data, and how to save and restore all of it."""

    def __init__(self, model: VideoCLIP, config: TrainConfig, fabric: Fabric, *, out: Path | None, clips: str) -> None:
        self.model, self.config, self.fabric, self.out = model, config, fabric, out
        self.objective: Any = OBJECTIVES[config.task](model, config).to(model.device)
        self.clips = clips  # a hash of what it trains and validates on
        self.epoch = self.batch = 0  # of the plan: what comes next
        self.added = 0  # batches whose gradients wait for the weights' move
        self.saved = 0  # `steps` at the last checkpoint
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"score": None, "epoch": 0, "state": None}

    def prepare(self, *, steps_an_epoch: int) -> None:
        self.an_epoch = steps_an_epoch
        self.total = max(1, steps_an_epoch * self.config.epochs)
        self.groups = parameter_groups(self.objective, self.config)
        scaled = self.fabric.strategy.precision.precision == "16-mixed"
        optimizer = adamw(self.groups, lr=self.config.lr, device=self.fabric.device.type, scaled=scaled)
        self.wrapped, self.optimizer = self.fabric.setup(self.objective, optimizer)

    @property
    def steps(self) -> int:
        """Batches of the plan that lie behind."""
        return self.epoch * self.an_epoch + self.batch

    def step(self, work: Work) -> float:
        """One batch: forward, backward, and the weights' move when `accumulate` batches have been added up."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(self.steps / self.total, warmup=self.config.warmup)
        with stage("loss"):
            loss = self.wrapped(work)
            value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"loss is {value} at step {self.steps} (epoch {self.epoch}); lower lr or raise warmup"
            )
        with stage("backward"):
            self.fabric.backward(loss / self.config.accumulate)
        self.batch, self.added = work.place + 1, self.added + 1
        if self.added == self.config.accumulate:
            with stage("optimiser"):
                self._move()
        self.losses.append(value)
        return value

    def _move(self) -> None:
        if self.config.clip_norm:
            self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.added = 0

    def end_epoch(self, val_data: VideoData | TapStore | None) -> dict[str, float]:
        """Validate, keep the best weights, write the checkpoint of a finished epoch."""
        if not self.losses:
            raise DataError(f"no training video could be read in epoch {self.epoch + 1}; check the data set's root")
        entry = {"epoch": float(self.epoch + 1), "loss": sum(self.losses) / len(self.losses)}
        entry["lr"] = self.optimizer.param_groups[0]["lr"]
        last = self.epoch + 1 == self.config.epochs
        if last and self.added:  # fewer batches than `accumulate` were left
            self._move()
        if val_data is not None and ((self.epoch + 1) % self.config.validate_every == 0 or last):
            with stage("validation", whole=True):
                entry["score"] = self._score(val_data)
        score = entry.get("score")
        if val_data is None or (score is not None and (self.best["score"] is None or score > self.best["score"])):
            state = {k: v.detach().cpu().clone() for k, v in self._trained().items()}
            self.best = {"score": score, "epoch": self.epoch + 1, "state": state}
        self.history.append(entry)
        self.epoch, self.batch, self.losses = self.epoch + 1, 0, []
        self.save()
        return entry

    def patience_is_over(self) -> bool:
        validated = [e["epoch"] for e in self.history if "score" in e and e["epoch"] > self.best["epoch"]]
        return self.config.patience is not None and len(validated) >= self.config.patience

    def finish(self, *, seconds: float, unreadable: tuple[VideoError, ...]) -> TrainResult:
        """Put the best weights into the model and record how it was made."""
        if self.best["state"] is not None:
            self.objective.load_state_dict(self.best["state"], strict=False)
        name = SCORES[self.config.task]
        self.model.training_record = {
            **self.config.plain(),
            "best_epoch": self.best["epoch"],
            "best_score": self.best["score"],
            "score": name,
        }
        self.model.eval()
        adapt.freeze(self.model.backbone)
        if self.out is not None:
            self.model.save(self.out / "best")
            with whole_file(self.out / "history.json") as beside:
                beside.write_text(json.dumps(self.history, indent=2) + "\n", encoding="utf-8")
        return TrainResult(tuple(self.history), self.best["epoch"], self.best["score"], name, seconds, unreadable)

    def checkpoint_if_due(self) -> None:
        if self.steps - self.saved >= self.config.checkpoint_every:
            self.save()

    def save(self) -> None:
        self.saved = self.steps
        if self.out is None or not self.fabric.is_global_zero:
            return
        gradients = {n: p.grad for n, p in self.objective.named_parameters() if p.grad is not None}
        state = {
            "config": json.dumps(self.config.plain(), sort_keys=True),
            "clips": self.clips,
            "base": self._base,
            "branch": self._made_of(),
            "weights": self._trained(),
            "gradients": gradients,  # of batches accumulated so far
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),  # of 16-mixed; empty for others
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "place": {"epoch": self.epoch, "batch": self.batch, "added": self.added, "losses": self.losses},
            "history": self.history,
            "best": self.best,
        }
        with whole_file(self.out / CHECKPOINT) as beside:
            torch.save(state, beside)

    def restore(self) -> None:
        """Go on from `out`'s checkpoint; start from the beginning where there is none yet."""
        if self.out is None:
            raise ValueError("resume needs out=, the folder of the run to go on with")
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is damaged or cut off ({error}); remove it, and start again") from error
        if state.get("clips") != self.clips:
            raise CheckpointError(f"{path} was trained on other clips; give those that it started with")
        if state["config"] != json.dumps(self.config.plain(), sort_keys=True):
            changed = _differences(json.loads(state["config"]), self.config.plain())
            raise CheckpointError(
                f"{path} belongs to a run with another config ({changed}); choose another out, or that config; to "
                "train on, start a new run from the model it made"
            )
        if state["base"] != self._base:
            raise CheckpointError(
                f"{path} was trained on another base model, or on one whose frozen weights were trained otherwise "
                "before; load the model it started from"
            )
        if state["branch"] != self._made_of():
            raise CheckpointError(
                f"{path} was trained with another branch or similarity; give the options that it started with"
            )
        self.objective.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        for name, parameter in self.objective.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter.device)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        place = state["place"]
        self.epoch, self.batch, self.added, self.losses = (place[k] for k in ("epoch", "batch", "added", "losses"))
        self.saved = self.steps
        self.history, self.best = state["history"], state["best"]

    def bar(self, progress: bool):
        from tqdm import tqdm

        return tqdm(total=self.total, initial=self.steps, desc=f"train {self.config.task}", disable=not progress)

    def curves(self) -> _Curves:
        return _Curves(None if self.out is None else self.out / "tensorboard")

    def _made_of(self) -> str:
        """Branch and similarity, which a run cannot change on its way."""
        made = {"branch": branches.to_config(self.model.branch.options), "similarity": self.model.similarity}
        return json.dumps(made, sort_keys=True)

    @cached_property
    def _base(self) -> str:
        """What stays as it is of the base model: its fingerprint, and frozen weights that were trained earlier."""
        backbone = self.model.backbone
        own = {n: p for n, p in backbone.clip.named_parameters() if n in backbone.trained and not p.requires_grad}
        return " ".join([backbone.fingerprint, *([hash_of(own)] if own else [])])

    def _trained(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.objective.named_parameters() if p.requires_grad}

    def _score(self, val_data: VideoData | TapStore) -> float:
        """The validation figure; torch's generator is left as it was."""
        if self.config.task == "selfsup":
            pairs = open_pairs(self.model, val_data, self.config)
            return -held_out_loss(self.wrapped, pairs, seed=self.config.seed)
        with torch.random.fork_rng(devices=[]):
            evaluate = evaluate_retrieval if self.config.task == "retrieval" else evaluate_recognition
            return float(evaluate(self.model, val_data, self.config.reading)[SCORES[self.config.task]])


class _Curves:
    """TensorBoard writer that does nothing without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder))

    def __enter__(self) -> Callable[[str, float, int], None]:
        return self._write

    def _write(self, name: str, value: float, at: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, at)

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()


def _prepare_head(model: VideoCLIP, data: VideoData | TapStore, config: TrainConfig) -> None:
    """Give a model that is to recognise a classifier for the data's classes, unless it has that one already."""
    if config.task != "recognition":
        return
    facts = records_of(data)
    if len(facts.classes) < 2:
        raise DataError(f"{facts.name} has {len(facts.classes)} classes; recognition needs two or more")
    kind = TextClassifier if config.classifier == "text" else LinearClassifier
    if isinstance(model.head, kind) and model.head.classes == tuple(facts.classes):
        return
    if config.classifier == "text":
        model.head = model.text_classifier(facts.classes, templates=config.templates)
    else:
        model.head = LinearClassifier(model.embed_dim, facts.classes).to(model.device)


def _unfreeze(model: VideoCLIP, config: TrainConfig, data: Sequence[VideoData | TapStore | None]) -> None:
    """Set what of the base model trains; ValueError for taps that it would outrun."""
    if config.task != "retrieval" and (config.text_lora or config.freeze == "visual"):
        raise ValueError(
            f"{config.task} trains no text, got freeze={config.freeze!r} and text_lora={config.text_lora}; choose "
            "freeze all, last:N or none"
        )
    model.unfreeze(config.freeze, text=config.task == "retrieval", text_lora=config.text_lora)
    if model.backbone.visual_trains and any(isinstance(part, TapStore) for part in data):
        adapt.freeze(model.backbone)
        raise ValueError(
            f"freeze {config.freeze!r} trains the visual tower, so taps made before are not its own; give the videos"
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(f"{k}: {old.get(k)} there, {new.get(k)} here" for k in new if old.get(k) != new.get(k))
