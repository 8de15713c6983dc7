"""One training run: weights, optimizer, position in the data, best epoch, checkpoints.

Contract: a model and a TrainConfig in; `step` learns from one TrainBatch, `end_epoch` validates, and a run resumed from
a checkpoint ends in the same bits as one that was never stopped. Knows nothing of how batches are made or ordered.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipvid.config.settings import CHECKPOINT, SCORES, TrainConfig
from clipvid.data.records import VideoDataset
from clipvid.errors import ClipvidWarning, DataError, VideoError
from clipvid.evaluation.recognition import evaluate_recognition
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone import trainable
from clipvid.models.backbone.fingerprint import hash_of
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.display.progress import ProgressBar, progress_bar
from clipvid.runtime.files import atomic_file
from clipvid.runtime.profiling import stage
from clipvid.runtime.text import pluralize
from clipvid.training.batches import open_batches
from clipvid.training.checkpoint import (
    DEFAULT,
    check_epochs,
    check_metadata,
    check_plain,
    check_tensors,
    read_checkpoint,
    write_checkpoint,
)
from clipvid.training.history import TrainResult
from clipvid.training.hooks import Hooks, Logger, TrainState
from clipvid.training.loggers import open_logger
from clipvid.training.objectives import check_finite, held_out_loss, load_weights, make_objective, move
from clipvid.training.optim import make_optimizer, parameter_groups, schedule_of
from clipvid.training.tasks import score_name
from clipvid.training.train_batch import TrainBatch


class Run:
    """One training run: weights, optimizer, position in the data, and how to save and restore all of it."""

    def __init__(
        self,
        model: VideoCLIP,
        config: TrainConfig,
        fabric: Any,
        *,
        out: Path | None,
        clips: str,
        origin: str,
        hooks: Hooks,
    ) -> None:
        self.model = model
        self.config = config
        self.fabric = fabric
        self.out = out
        self.hooks = hooks
        self.path: Path | None = None if out is None else out / CHECKPOINT
        self.objective: Any = make_objective(model, config, hooks.loss)
        move(self.objective, fabric.device)
        groups = parameter_groups(self.objective, config)  # raises if nothing trains, before clips are read
        scaled = fabric.strategy.precision.precision == "16-mixed"
        optimizer = make_optimizer(groups, config, hooks.optimizer, device=fabric.device.type, scaled=scaled)
        self.schedule: Callable[[float], float] = schedule_of(hooks.optimizer, config)
        wrapped = fabric.setup(self.objective, optimizer, move_to_device=False)
        self.wrapped_objective: Any = wrapped[0]
        self.optimizer: Any = wrapped[1]
        # Hash and source of the training and validation data.
        self.clips_hash = clips
        self.origin = origin
        self.epoch: int = 0  # next epoch
        self.batch: int = 0  # next position in the batch order of this epoch
        self.accumulated: int = 0  # batches since the last optimizer step
        self.saved_at: int = 0  # `steps` at the last checkpoint
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"score": None, "epoch": 0, "state": None}
        self.resumed_at: int | None = None  # epoch of the checkpoint that the run was resumed from
        self.rescheduled: list[int] = []
        self.stopped_at: int | None = None  # `steps` when a callback ended the run

    def prepare(self, *, steps_per_epoch: int, readable: str) -> None:
        """Set the length of the run and the hash of the clips that could be read; check that the run can be saved."""
        if self.path is not None:
            check_plain(self.hooks.state(), "the state of loss and callbacks")
        self.steps_per_epoch = steps_per_epoch
        self.readable_hash = readable
        self.total_steps: int = max(1, steps_per_epoch * self.config.epochs)

    @property
    def steps(self) -> int:
        """Number of batches trained so far."""
        return self.epoch * self.steps_per_epoch + self.batch if self.stopped_at is None else self.stopped_at

    def step(self, batch: TrainBatch) -> float:
        """Train on one batch and return its loss; the optimizer steps once per `accumulate_grad_batches` batches.

        Raises FloatingPointError for a loss that is not finite; `end_epoch` does for weights.
        """
        fraction_of_peak = float(self.schedule(self.steps / self.total_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * fraction_of_peak
        with stage("loss"):
            loss = self.wrapped_objective(batch)
            value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"loss is {value} at step {self.steps + 1} (epoch {self.epoch + 1}); lower lr or raise warmup"
            )
        with stage("backward"):
            self.fabric.backward(loss / self.config.accumulate_grad_batches)
        self.batch, self.accumulated = batch.index + 1, self.accumulated + 1
        if self.accumulated == self.config.accumulate_grad_batches:
            with stage("optimizer"):
                self._optimizer_step()
        self.losses.append(value)
        self.call("on_step_end", {"loss": value, "lr": self.lr})
        return value

    def _optimizer_step(self) -> None:
        if self.config.clip_norm:
            self.fabric.clip_gradients(self.wrapped_objective, self.optimizer, max_norm=self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.accumulated = 0

    def end_epoch(self, val_data: VideoDataset | TapStore | None) -> dict[str, float]:
        """Validate, keep the best weights, write the checkpoint of the finished epoch; return its history entry."""
        if not self.losses:
            raise DataError(f"no training video could be read in epoch {self.epoch + 1}; check the data set's root")
        entry = {"epoch": float(self.epoch + 1), "loss": sum(self.losses) / len(self.losses)}
        entry["lr"] = self.lr
        is_last = self.epoch + 1 == self.config.epochs or self.is_stopped
        self._validate(val_data, entry, is_last=is_last)
        self.call("on_epoch_end", entry)
        if self.is_stopped and not is_last and "score" not in entry:  # stopped by a callback of on_epoch_end
            self._validate(val_data, entry, is_last=True)
        self.history.append(entry)
        self.epoch, self.batch, self.losses = self.epoch + 1, 0, []
        self.save()
        return entry

    def _validate(self, val_data: VideoDataset | TapStore | None, entry: dict[str, float], *, is_last: bool) -> None:
        """Validate where due, and keep the best weights; in the last epoch first use the gradients that are left."""
        if is_last and self.accumulated:  # fewer batches than `accumulate_grad_batches` were left
            self._optimizer_step()
        check_finite(self._trained(), epoch=self.epoch + 1)
        if val_data is not None and ((self.epoch + 1) % self.config.validate_every == 0 or is_last):
            with stage("validation", complete=True):  # includes the stages inside
                entry["score"] = self._score(val_data)
            self.call("on_validation_end", entry)
        score = entry.get("score")
        if val_data is None or (score is not None and (self.best["score"] is None or score > self.best["score"])):
            state = {k: v.detach().cpu().clone() for k, v in self._trained().items()}
            self.best = {"score": score, "epoch": self.epoch + 1, "state": state}

    def is_over(self) -> bool:
        """Return True after the last epoch, or when patience has run out or a callback has ended the run."""
        validated = [e["epoch"] for e in self.history if "score" in e and e["epoch"] > self.best["epoch"]]
        patience = self.config.patience
        is_spent = patience is not None and len(validated) >= patience
        return self.is_stopped or is_spent or self.epoch >= self.config.epochs

    @property
    def is_stopped(self) -> bool:
        """True once a callback has ended the run."""
        return self.stopped_at is not None

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def call(self, event: str, metrics: Mapping[str, float] | None = None) -> None:
        """Call the callbacks of this event, with these metrics or those of the last finished epoch."""
        if self.hooks.callbacks:
            epoch = self.epoch + (event != "on_train_end")
            metrics = dict(self.history[-1] if metrics is None and self.history else metrics or {})
            state = TrainState(epoch, self.steps, metrics.get("loss"), self.lr, metrics, self.model, self._stop)
            self.hooks.call(event, state)

    def _stop(self) -> None:
        self.stopped_at = self.steps

    def finish(self, *, seconds: float, unreadable: tuple[VideoError, ...]) -> TrainResult:
        """Load the best weights into the model, record how it was trained, and save it."""
        if self.best["state"] is not None:
            load_weights(self.objective, self.best["state"])
        name = score_name(self.config.task)
        self.model.training_record = {
            **self.config.plain(),
            "best_epoch": self.best["epoch"],
            "best_score": self.best["score"],
            "score": name,
            **({"rescheduled": self.rescheduled} if self.rescheduled else {}),
            **self.hooks.names,
        }
        self.model.eval()
        trainable.freeze(self.model.backbone)
        if self.out is not None:
            self.model.save(self.out / "best")
            with atomic_file(self.out / "history.json") as draft:
                draft.write_text(json.dumps(self.history, indent=2) + "\n", encoding="utf-8")
        over = self.resumed_at is not None and self.resumed_at == self.epoch
        best = self.best["epoch"], self.best["score"], name
        early = self.is_stopped and self.epoch < self.config.epochs
        return TrainResult(tuple(self.history), *best, seconds, unreadable, over, tuple(self.rescheduled), early)

    def checkpoint_if_due(self) -> None:
        """Save every `checkpoint_every` batches."""
        if self.steps - self.saved_at >= self.config.checkpoint_every:
            self.save()

    def save(self) -> None:
        """Write the checkpoint if the run has a folder."""
        self.saved_at = self.steps
        if self.path is None or not self.fabric.is_global_zero:
            return
        gradients = {n: p.grad for n, p in self.objective.named_parameters() if p.grad is not None}
        state = {
            **self.metadata,
            "readable": self.readable_hash,
            "weights": self._trained(),
            "gradients": gradients,  # accumulated since the last optimizer step
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),  # empty unless 16-mixed
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.fabric.device.type == "cuda" else [],
            "position": {"epoch": self.epoch, "batch": self.batch, "added": self.accumulated, "losses": self.losses},
            "history": self.history,
            "best": self.best,
            "rescheduled": self.rescheduled,
            "stopped_at": self.stopped_at,
            **self.hooks.state(),
        }
        write_checkpoint(self.path, state)

    def read_last_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None if there is none yet.

        Sets the run's position, history and best epoch from it; `restore` sets the weights.
        """
        if self.path is None:
            raise ValueError("resume must come with out, got out=None; give the folder of the run")
        state = read_checkpoint(self.path, self.metadata)
        if state is not None:
            check_tensors(self.path, state, self._trained(), self.optimizer)
            position = state["position"]
            self.epoch, self.batch, self.accumulated = (position[k] for k in ("epoch", "batch", "added"))
            self.losses = position["losses"]
            self.history, self.best = state["history"], state["best"]
            self.resumed_at, self.rescheduled = self.epoch, list(state.get("rescheduled", ()))
            self.stopped_at = state.get("stopped_at")
            self._check_planned_epochs(json.loads(state["config"])["epochs"])
        return state

    def _check_planned_epochs(self, planned: int) -> None:
        """Record and warn that learning rates are rescheduled if the run was `planned` for another number of epochs.

        Raises CheckpointError for fewer epochs than the run has begun, and if it has finished all requested epochs but
        validated none of them.
        """
        assert self.path is not None
        requested, begun = self.config.epochs, self.epoch + bool(self.batch)
        least = max(begun, self.epoch + (self.best["state"] is None))
        check_epochs(self.path, requested, least=least, planned=planned, begun=begun)
        if requested > planned:
            self.stopped_at = None
        if requested == planned or self.is_over():
            return
        self.rescheduled.append(self.epoch)
        warnings.warn(
            f"the run was planned for {pluralize(planned, 'epoch')} and now has {requested}: its learning rates are "
            f"rescheduled from epoch {self.epoch + 1} on, so it will not equal a run of {requested} from the start",
            ClipvidWarning,
            stacklevel=5,
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint: weights, gradients, optimizer and random generators."""
        assert self.path is not None
        check_metadata(self.path, state, {"readable": self.readable_hash})
        load_weights(self.objective, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        for name, parameter in self.objective.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter.device)
        self.hooks.load_state(state)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.saved_at = self.steps

    def bar(self, progress: bool) -> ProgressBar:
        """Return the progress bar of the whole run."""
        return progress_bar(self.total_steps, f"train {self.config.task}", shown=progress, initial=self.steps)

    def logger(self) -> AbstractContextManager[Logger]:
        """Return the context of the logger: the custom one, or TensorBoard's in `out`."""
        return open_logger(self.hooks.logger, None if self.out is None else self.out / "tensorboard")

    @property
    def metadata(self) -> dict[str, str]:
        """Data, settings and model of the run; on resumption they must match those in the checkpoint."""
        config = json.dumps(self.config.plain(), sort_keys=True)
        model = {"base": self._base, "branch": self._architecture()}
        names = {f"{kind}_name": self.hooks.names.get(kind, DEFAULT) for kind in ("loss", "optimizer")}
        return {"clips": self.clips_hash, "origin": self.origin, "config": config, **model, **names}

    def _architecture(self) -> str:
        """Return the branch's options and the similarity as JSON."""
        options = {"branch": self.model.branch.options.to_config(), "similarity": self.model.similarity_name}
        return json.dumps(options, sort_keys=True)

    @cached_property
    def _base(self) -> str:
        """Fingerprint of the base model, and a hash of the frozen weights that earlier training may have changed."""
        backbone = self.model.backbone
        parameters = backbone.clip.named_parameters()
        frozen = {n: p for n, p in parameters if n in backbone.trained and not p.requires_grad}
        return " ".join([backbone.fingerprint, *([hash_of(frozen)] if frozen else [])])

    def _trained(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.objective.named_parameters() if p.requires_grad}

    def _score(self, val_data: VideoDataset | TapStore) -> float:
        """Return the validation metric; torch's generator is restored afterwards."""
        if self.config.task not in SCORES or self.config.task == "selfsup":
            batches = open_batches(self.model, val_data, self.config, progress=False)
            return -held_out_loss(self.wrapped_objective, batches, seed=self.config.seed)
        with torch.random.fork_rng(devices=[]):
            evaluate = evaluate_retrieval if self.config.task == "retrieval" else evaluate_recognition
            return float(evaluate(self.model, val_data, self.config.data_config)[SCORES[self.config.task]])
