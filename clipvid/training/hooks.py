"""Custom parts of a training run: loss, optimizer, callbacks and logger, as protocols that any object can satisfy.

Contract: objects that the caller of `train` gives; here they are checked and named, and callbacks are called and their
state is saved and restored. Knows nothing of how a run trains, or of its files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvid.errors import ClipvidWarning
from clipvid.models.video_clip import VideoCLIP

EVENTS = ("on_train_start", "on_step_end", "on_validation_end", "on_epoch_end", "on_train_end")
"""Names of the methods of a callback."""


@runtime_checkable
class Loss(Protocol):
    """Loss of a batch: logits, and for each row the index of the right column, in; a scalar with gradient out.

    The form of both tasks is that of `torch.nn.functional.cross_entropy`:

    - retrieval: logits (M, B), the similarity of M captions to the B videos of the batch, divided by the temperature;
      targets (M,), the row of the video that each caption describes. With captions_per_video 1, M is B.
    - recognition: logits (B, C), of the classifier; targets (B,), class indices. With mixup it is called twice, and the
      two values are blended.

    Logits are float32. The parameters of a loss that is an nn.Module are trained at `lr`; they and its buffers are
    saved in checkpoints, as is the state of another object with state_dict and load_state_dict.
    """

    def __call__(
        self, logits: Float[Tensor, "rows columns"], targets: Int[Tensor, " rows"], /
    ) -> Float[Tensor, ""]: ...


@runtime_checkable
class OptimizerFactory(Protocol):
    """Function of parameter groups that returns a torch optimizer, such as partial(torch.optim.SGD, momentum=0.9).

    Each group has "params", "lr" (its peak rate) and "weight_decay". In each step a group has the "lr" that it had in
    the returned optimizer, times the schedule; `ScheduledOptimizer` replaces that one. `step` must need no closure.
    """

    def __call__(self, groups: list[dict[str, Any]], /) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class ScheduledOptimizer:
    """An optimizer factory with a custom learning-rate schedule.

    `schedule` is a function of the fraction of all steps that are done, from 0 to below 1; it returns the learning rate
    as a fraction of each group's peak. As it has no state, a resumed run has the same rates.

    >>> constant = ScheduledOptimizer(torch.optim.SGD, schedule=lambda done: 1.0)
    >>> constant.schedule(0.5)
    1.0
    """

    make: OptimizerFactory
    schedule: Callable[[float], float]

    def __call__(self, groups: list[dict[str, Any]], /) -> torch.optim.Optimizer:
        return self.make(groups)


@runtime_checkable
class Logger(Protocol):
    """Receiver of metrics: "loss" and "lr" after each step, "epoch" and, where validated, "score" after each epoch.

    `step` counts the batches since the start of the run and never decreases. A method `close`, if there is one, is
    called when training ends, also with an error.
    """

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...


@dataclass(frozen=True)
class TrainState:
    """State of a run when a callback is called."""

    epoch: int
    """Number of the current epoch, from 1; in on_train_end that of the last one."""
    step: int
    """Batches since the start of the run, including those of a resumed run's earlier parts."""
    loss: float | None
    """Loss of the last batch, and from the end of an epoch on its mean over the epoch; None before the first batch."""
    lr: float
    """Learning rate of the first parameter group in the last step."""
    metrics: Mapping[str, float]
    """"loss" and "lr" in on_step_end, otherwise the history entry of the epoch: epoch, loss, lr and, where validated,
    score; empty before the first epoch."""
    model: VideoCLIP
    """The model; in on_train_end it has the weights of the best epoch."""
    request_stop: Callable[[], None] = field(repr=False)

    def stop(self) -> None:
        """End training after this callback: the epoch ends, with its validation and checkpoint, and no other begins."""
        self.request_stop()


@runtime_checkable
class OnTrainStart(Protocol):
    """A callback before the first step, and before the first step of a resumed run."""

    def on_train_start(self, state: TrainState) -> bool | None: ...


@runtime_checkable
class OnStepEnd(Protocol):
    """A callback after each batch."""

    def on_step_end(self, state: TrainState) -> bool | None: ...


@runtime_checkable
class OnValidationEnd(Protocol):
    """A callback after each validation, before the checkpoint of the epoch."""

    def on_validation_end(self, state: TrainState) -> bool | None: ...


@runtime_checkable
class OnEpochEnd(Protocol):
    """A callback after each epoch and its validation, before its checkpoint."""

    def on_epoch_end(self, state: TrainState) -> bool | None: ...


@runtime_checkable
class OnTrainEnd(Protocol):
    """A callback after training, once the best model is saved; not called if training ends with an error."""

    def on_train_end(self, state: TrainState) -> bool | None: ...


Callback = OnTrainStart | OnStepEnd | OnValidationEnd | OnEpochEnd | OnTrainEnd
"""An object with one or more of the methods `EVENTS`. A method that returns True ends training, like
`state.stop()`; it may return False or None otherwise.

With state_dict and load_state_dict, its state is part of every checkpoint and restored before on_train_start. A
callback that only reads changes no bit of the result; random numbers that it draws from torch's generator do.
"""


@dataclass(frozen=True)
class Hooks:
    """The custom parts of a run; raises TypeError for objects that do not satisfy their protocol."""

    loss: Any = None
    optimizer: Any = None
    callbacks: Any = ()
    logger: Any = None

    def __post_init__(self) -> None:
        _check_callable("loss", self.loss, "a function of (logits, targets) or an instance of such a class")
        if isinstance(self.loss, type):
            raise TypeError(f"loss must be an object that is called with a batch, got {self.loss!r}; give an instance")
        example = "functools.partial(torch.optim.SGD, momentum=0.9)"
        _check_callable("optimizer", self.optimizer, f"a function of parameter groups, such as {example}")
        if isinstance(self.logger, type) or not (self.logger is None or callable(getattr(self.logger, "log", None))):
            raise TypeError(f"logger must be an object with log(metrics, step), got {self.logger!r}; add that method")
        if not isinstance(self.callbacks, Sequence):
            raise TypeError(f"callbacks must be a list of objects, got {self.callbacks!r}; put it in a list")
        for callback in self.callbacks:
            _check_callback(callback)

    @property
    def names(self) -> dict[str, str]:
        """Names of the loss and the optimizer, where they are custom."""
        parts = {"loss": self.loss, "optimizer": self.optimizer}
        return {kind: name_of(part) for kind, part in parts.items() if part is not None}

    def call(self, event: str, state: TrainState) -> None:
        """Call the method `event` of each callback that has it, in order.

        An error of a callback is raised unchanged, with a note that names the callback. Raises TypeError for an answer
        that is not True, False or None.
        """
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            try:
                answer = None if method is None else method(state)
                if answer is not None and not isinstance(answer, bool | np.bool_):
                    advice = "convert it with bool()"
                    raise TypeError(f"{event} must return True, False or None, got {answer!r}; {advice}")
            except Exception as error:
                error.add_note(
                    f"raised in {event} of callback {name_of(callback)}; checkpoints written before are complete"
                )
                raise
            if answer:
                state.stop()

    def state(self) -> dict[str, Any]:
        """Return the state of the loss, and the states of the callbacks that have one, each with its name."""
        stateful = [callback for callback in self.callbacks if hasattr(callback, "state_dict")]
        return {
            "loss": self.loss.state_dict() if _has_state(self.loss) else None,
            "callbacks": [{"name": name_of(callback), "state": callback.state_dict()} for callback in stateful],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned: callbacks by name, those of one name in order.

        Warns about states of callbacks that are absent from this run.
        """
        if state.get("loss") is not None and _has_state(self.loss):
            self.loss.load_state_dict(state["loss"])
        remaining = list(state.get("callbacks", ()))
        for callback in self.callbacks:
            entry = next((entry for entry in remaining if entry["name"] == name_of(callback)), None)
            if entry is not None and hasattr(callback, "load_state_dict"):
                remaining.remove(entry)
                callback.load_state_dict(entry["state"])
        for entry in remaining:
            warnings.warn(
                f"the checkpoint has a state of callback {entry['name']}, and this run has no such callback; its state "
                "is dropped from the next checkpoint on",
                ClipvidWarning,
                stacklevel=5,
            )


def name_of(part: object) -> str:
    """Return the name that identifies a custom part between runs.

    It is an attribute `name`, if that is a string, else the module and name of a function or of the object's class.
    The fields of a dataclass and the arguments of a functools.partial are added.

    >>> name_of(partial(torch.optim.SGD, momentum=0.9))
    'torch.optim.sgd.SGD(momentum=0.9)'
    """
    if isinstance(getattr(part, "name", None), str):
        return part.name  # type: ignore[attr-defined]
    if isinstance(part, partial):
        arguments = [
            *map(_described, part.args),
            *(f"{key}={_described(value)}" for key, value in part.keywords.items()),
        ]
        return f"{name_of(part.func)}({', '.join(arguments)})"
    subject: Any = part if hasattr(part, "__qualname__") else type(part)
    name = f"{subject.__module__}.{subject.__qualname__}"
    if is_dataclass(part) and not isinstance(part, type):
        values = [f"{entry.name}={_described(getattr(part, entry.name))}" for entry in fields(part) if entry.init]
        return f"{name}({', '.join(values)})"
    return name


def _described(value: object) -> str:
    """Return the text of an argument; by name if its text would differ between processes."""
    text = repr(value)
    return name_of(value) if callable(value) or " at 0x" in text else text


def _has_state(part: object) -> bool:
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")


def _check_callable(name: str, part: object, allowed: str) -> None:
    if part is not None and not callable(part):
        raise TypeError(f"{name} must be {allowed}, got {part!r}; give such a function")


def _check_callback(callback: object) -> None:
    """Raise TypeError for an object that is no callback, or that has a method whose name resembles an event's."""
    name = name_of(callback)
    if isinstance(callback, type):
        raise TypeError(f"callbacks must be objects, got the class {name}; give an instance")
    unknown = [entry for entry in dir(callback) if entry.startswith("on_") and entry not in EVENTS]
    methods = [entry for entry in EVENTS if callable(getattr(callback, entry, None))]
    if unknown or not methods:
        got = f"{', '.join(unknown)} of {name}" if unknown else f"{name}, which has none"
        raise TypeError(f"methods of a callback must be among {', '.join(EVENTS)}, got {got}; rename or add one")
    if hasattr(callback, "state_dict") != hasattr(callback, "load_state_dict"):
        raise TypeError(
            f"a callback with state must have state_dict and load_state_dict, got one of them in {name}; add the other"
        )
