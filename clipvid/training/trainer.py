"""One training run: its weights, optimiser and place in the data, the best epoch, and how all of it is kept.

Contract: a model and a TrainConfig in; batches of a feed out of which `step` learns, epochs that `end_epoch` validates,
checkpoints from which a run goes on to the bit. Knows nothing of how batches are made, or of what decides the order.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor

from clipvid.config.settings import CHECKPOINT, SCORES, TrainConfig
from clipvid.data.records import VideoDataset
from clipvid.errors import CheckpointError, ClipvidWarning, DataError, VideoError
from clipvid.evaluation.evaluate import evaluate_recognition, evaluate_retrieval
from clipvid.features.source import TapStore
from clipvid.models import branches
from clipvid.models.backbone import trainable
from clipvid.models.backbone.backbone import hash_of
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import atomic_file
from clipvid.runtime.precision import resolve
from clipvid.runtime.profiling import stage
from clipvid.runtime.text import pluralize
from clipvid.training.batches import open_pairs
from clipvid.training.checkpoint import check_facts, read_checkpoint, write_checkpoint
from clipvid.training.curves import Curves
from clipvid.training.objectives import OBJECTIVES, held_out_loss
from clipvid.training.optim import adamw, parameter_groups, schedule
from clipvid.training.train_batch import TrainBatch


@dataclass(frozen=True)
class TrainResult:
    """What training did. `history` has one entry an epoch: epoch, loss, lr and, where validated, score.

    `unreadable` are the clips that were left out: those to train on, and of taps those to validate on too.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    best_score: float | None
    score_name: str
    seconds: float
    unreadable: tuple[VideoError, ...] = ()
    nothing_left: bool = False
    """True where the run that was resumed was over already, so that nothing was trained."""
    replanned: tuple[int, ...] = ()
    """Finished epochs at each resumption with another number of epochs, which planned the learning rates anew."""


def fabric_for(config: TrainConfig, accelerator: str) -> Fabric:
    """One device, in the precision that `config` asks of it."""
    device = Fabric(accelerator=accelerator, devices=1).device
    precision = resolve(config.data_config.precision, device)
    if precision == "32-true" or (precision, device.type) == ("16-mixed", "cpu"):  # Fabric warns of the latter itself
        return Fabric(accelerator=accelerator, devices=1, precision=cast(Any, precision))
    # Fabric logs the precision at every run where it makes the plugin itself
    return Fabric(accelerator=accelerator, devices=1, plugins=[MixedPrecision(cast(Any, precision), device.type)])


class Run:
    """One training run: weights, optimiser, place in the data, and how to save and restore all of it."""

    def __init__(
        self, model: VideoCLIP, config: TrainConfig, fabric: Fabric, *, out: Path | None, clips: str, origin: str
    ) -> None:
        self.model, self.config, self.fabric, self.out = model, config, fabric, out
        self.path = None if out is None else out / CHECKPOINT
        self.objective: Any = OBJECTIVES[config.task](model, config).to(model.device)
        groups = parameter_groups(self.objective, config)  # which refuses that nothing trains, before clips are read
        scaled = fabric.strategy.precision.precision == "16-mixed"
        optimizer = adamw(groups, lr=config.lr, device=fabric.device.type, scaled=scaled)
        self.wrapped, self.optimizer = fabric.setup(self.objective, optimizer)
        self.clips, self.origin = clips, origin  # a hash of what it trains and validates on, and where that comes from
        self.epoch = self.batch = 0  # of the plan: what comes next
        self.added = 0  # batches whose gradients wait for the weights' move
        self.saved = 0  # `steps` at the last checkpoint
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"score": None, "epoch": 0, "state": None}
        self.resumed_at: int | None = None  # `epoch` of the checkpoint that it goes on from
        self.replanned: list[int] = []

    def prepare(self, *, steps_an_epoch: int, readable: str) -> None:
        self.an_epoch, self.readable = steps_an_epoch, readable
        self.total = max(1, steps_an_epoch * self.config.epochs)

    @property
    def steps(self) -> int:
        """Batches of the plan that lie behind."""
        return self.epoch * self.an_epoch + self.batch

    def step(self, batch: TrainBatch) -> float:
        """One batch: forward, backward, and the weights' move when `accumulate` batches have been added up."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(self.steps / self.total, warmup=self.config.warmup)
        with stage("loss"):
            loss = self.wrapped(batch)
            value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"loss is {value} at step {self.steps} (epoch {self.epoch}); lower lr or raise warmup"
            )
        with stage("backward"):
            self.fabric.backward(loss / self.config.accumulate_grad_batches)
        self.batch, self.added = batch.index + 1, self.added + 1
        if self.added == self.config.accumulate_grad_batches:
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

    def end_epoch(self, val_data: VideoDataset | TapStore | None) -> dict[str, float]:
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

    def is_over(self) -> bool:
        """The last epoch is behind, or patience is."""
        validated = [e["epoch"] for e in self.history if "score" in e and e["epoch"] > self.best["epoch"]]
        patience = self.config.patience
        return self.epoch >= self.config.epochs or (patience is not None and len(validated) >= patience)

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
            **({"replanned": self.replanned} if self.replanned else {}),
        }
        self.model.eval()
        trainable.freeze(self.model.backbone)
        if self.out is not None:
            self.model.save(self.out / "best")
            with atomic_file(self.out / "history.json") as beside:
                beside.write_text(json.dumps(self.history, indent=2) + "\n", encoding="utf-8")
        over = self.resumed_at is not None and self.resumed_at == self.epoch
        return TrainResult(
            tuple(self.history),
            self.best["epoch"],
            self.best["score"],
            name,
            seconds,
            unreadable,
            nothing_left=over,
            replanned=tuple(self.replanned),
        )

    def checkpoint_if_due(self) -> None:
        if self.steps - self.saved >= self.config.checkpoint_every:
            self.save()

    def save(self) -> None:
        self.saved = self.steps
        if self.path is None or not self.fabric.is_global_zero:
            return
        gradients = {n: p.grad for n, p in self.objective.named_parameters() if p.grad is not None}
        state = {
            **self.facts,
            "readable": self.readable,
            "weights": self._trained(),
            "gradients": gradients,  # of batches accumulated so far
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),  # of 16-mixed; empty for others
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.fabric.device.type == "cuda" else [],
            "place": {"epoch": self.epoch, "batch": self.batch, "added": self.added, "losses": self.losses},
            "history": self.history,
            "best": self.best,
            "replanned": self.replanned,
        }
        write_checkpoint(self.path, state)

    def last_state(self) -> dict[str, Any] | None:
        """What the last checkpoint holds, None where there is none yet; the place in the plan is taken from it."""
        if self.path is None:
            raise ValueError("resume needs out=, the folder of the run to go on with")
        state = read_checkpoint(self.path, self.facts)
        if state is not None:
            place = state["place"]
            self.epoch, self.batch, self.added, self.losses = (place[k] for k in ("epoch", "batch", "added", "losses"))
            self.history, self.best = state["history"], state["best"]
            self.resumed_at, self.replanned = self.epoch, list(state.get("replanned", ()))
            self._plan_anew(json.loads(state["config"])["epochs"])
        return state

    def _plan_anew(self, planned: int) -> None:
        """Note and warn that the learning rates are planned for another number of epochs than `planned`.

        Raises CheckpointError for fewer epochs than were trained, or than it takes to choose one.
        """
        asked, begun = self.config.epochs, self.epoch + bool(self.batch)
        if asked < begun or (asked == self.epoch and self.best["state"] is None):
            least = max(begun, self.epoch + (self.best["state"] is None))
            raise CheckpointError(
                f"epochs must be {least} or more to resume {self.path}, got {asked}; of its {planned} epochs "
                f"{begun} {'is' if begun == 1 else 'are'} begun or done"
            )
        if asked == planned or self.is_over():
            return
        self.replanned.append(self.epoch)
        warnings.warn(
            f"the run was planned for {pluralize(planned, 'epoch')} and goes on for {asked}: its learning rates are "
            f"planned anew from epoch {self.epoch + 1} on, so it will not equal a run of {asked} from the start",
            ClipvidWarning,
            stacklevel=5,
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint: weights, gradients, optimiser and chance."""
        assert self.path is not None
        check_facts(self.path, state, {"readable": self.readable})
        self.objective.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        for name, parameter in self.objective.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter.device)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.saved = self.steps

    def bar(self, progress: bool):
        from tqdm import tqdm

        return tqdm(total=self.total, initial=self.steps, desc=f"train {self.config.task}", disable=not progress)

    def curves(self) -> Curves:
        return Curves(None if self.out is None else self.out / "tensorboard")

    @property
    def facts(self) -> dict[str, str]:
        """What a run cannot change on its way."""
        config = json.dumps(self.config.plain(), sort_keys=True)
        made = {"base": self._base, "branch": self._made_of()}
        return {"clips": self.clips, "origin": self.origin, "config": config, **made}

    def _made_of(self) -> str:
        """Branch and similarity."""
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

    def _score(self, val_data: VideoDataset | TapStore) -> float:
        """The validation figure; torch's generator is left as it was."""
        if self.config.task == "selfsup":
            pairs = open_pairs(self.model, val_data, self.config)
            return -held_out_loss(self.wrapped, pairs, seed=self.config.seed)
        with torch.random.fork_rng(devices=[]):
            evaluate = evaluate_retrieval if self.config.task == "retrieval" else evaluate_recognition
            return float(evaluate(self.model, val_data, self.config.data_config)[SCORES[self.config.task]])
