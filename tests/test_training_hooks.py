"""Custom loss, optimizer, callbacks and logger of `train`: their contracts, resuming with them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from test_objectives import make_batch
from torch import Tensor, nn

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError, ClipvidWarning
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.factory import attach, load
from clipvid.models.heads import LinearClassifier
from clipvid.models.video_clip import VideoCLIP
from clipvid.training import losses
from clipvid.training.checkpoint import check_plain, write_checkpoint
from clipvid.training.hooks import EVENTS, Hooks, ScheduledOptimizer, TrainState, name_of
from clipvid.training.loop import train
from clipvid.training.objectives import Recognition, Retrieval, make_objective
from clipvid.training.optim import make_optimizer

DATA_CONFIG = DataConfig(frames=2, batch_size=8, precision="32-true")
ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.98), fused=True)
SGD = partial(torch.optim.SGD, momentum=0.9)


@pytest.fixture(scope="module")
def tower() -> Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video) -> VideoDataset:
    """Eight short videos of noise with a caption each, in two classes."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    frames = rng.integers(0, 255, (8, 4, 48, 48, 3)).astype(np.uint8)
    records = [Record(write_video(folder / f"{i}.mp4", frames[i]), (f"clip {i}",), i % 2) for i in range(8)]
    return VideoDataset(tuple(records), ("even", "odd"), "noise")


@pytest.fixture(scope="module")
def store(tower, clips) -> TapStore:
    """Taps of all clips: an epoch from them takes a few hundredths of a second."""
    return encode_dataset(fresh(tower), clips, DATA_CONFIG)


def fresh(tower) -> VideoCLIP:
    torch.manual_seed(1)
    return attach(tower, branch_kwargs={"depth": 1})


def config(**changes) -> TrainConfig:
    settings = TrainConfig(epochs=2, batch_size=2, lr=1e-3, data_config=DATA_CONFIG)
    return replace(settings, **changes)


def weights(model) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


class Recorder:
    """Callback and logger that listens; its list of events is its state."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []
        self.states: list[TrainState] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def _record(self, event: str, state: TrainState) -> None:
        self.events.append((event, state.epoch, state.step))
        self.states.append(state)

    def on_train_start(self, state: TrainState) -> None:
        self._record("on_train_start", state)

    def on_step_end(self, state: TrainState) -> None:
        self._record("on_step_end", state)

    def on_validation_end(self, state: TrainState) -> None:
        self._record("on_validation_end", state)

    def on_epoch_end(self, state: TrainState) -> None:
        self._record("on_epoch_end", state)

    def on_train_end(self, state: TrainState) -> None:
        self._record("on_train_end", state)

    def log(self, metrics, step: int) -> None:
        self.logged.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed += 1

    def state_dict(self) -> dict[str, list]:
        return {"events": self.events}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self.events = list(state["events"])


class StepCallback:
    """Callback that calls a function after each step."""

    def __init__(self, function: Callable[[TrainState], bool | None]) -> None:
        self.function = function

    def on_step_end(self, state: TrainState) -> bool | None:
        return self.function(state)


class StoppedError(Exception):
    """Raised by a callback of the tests."""


def interrupt_at(step: int) -> StepCallback:
    def interrupt(state: TrainState) -> None:
        if state.step == step:
            raise StoppedError

    return StepCallback(interrupt)


class ScaledLoss(nn.Module):
    """Cross entropy with a learned scale, and a buffer that counts batches."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.batches += 1
        return F.cross_entropy(self.scale * logits, targets) + 0.01 * self.batches * self.scale


@dataclass
class Margin:
    """Loss with an option: the best wrong similarity must be below the right one."""

    margin: float

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        right = logits.gather(1, targets[:, None])
        wrong = logits.scatter(1, targets[:, None], -torch.inf)
        return (self.margin + wrong.amax(dim=1, keepdim=True) - right).clamp(min=0).mean()


def matching(logits: Tensor, targets: Tensor) -> Tensor:
    return losses.matching(logits, targets, scale=1.0)


def test_a_callback_and_a_logger_that_listen_change_no_bit(tower, store):
    expected, listened, recorder = fresh(tower), fresh(tower), Recorder()
    plain = train(expected, store, store, config(), progress=False)
    result = train(listened, store, store, config(), progress=False, callbacks=[recorder], logger=recorder)
    assert replace(result, seconds=plain.seconds) == plain
    assert_equal(weights(listened), weights(expected))


def test_callbacks_are_called_at_every_event_with_the_state_of_the_run(tower, store):
    model, recorder = fresh(tower), Recorder()
    result = train(model, store, store, config(), progress=False, callbacks=[recorder], logger=recorder)
    steps = [("on_step_end", 1 + step // 4, step + 1) for step in range(8)]
    ends = [[("on_validation_end", n, 4 * n), ("on_epoch_end", n, 4 * n)] for n in (1, 2)]
    expected = [("on_train_start", 1, 0), *steps[:4], *ends[0], *steps[4:], *ends[1], ("on_train_end", 2, 8)]
    assert recorder.events == expected
    by_event = {
        event: [s for s, (name, *_) in zip(recorder.states, recorder.events, strict=True) if name == event]
        for event in EVENTS
    }
    assert all(state.model is model for state in recorder.states)
    assert [dict(state.metrics) for state in by_event["on_epoch_end"]] == list(result.history)
    assert by_event["on_train_start"][0].loss is None
    first_losses = [state.loss for state in by_event["on_step_end"][:4]]
    assert sum(first_losses) / 4 == pytest.approx(result.history[0]["loss"])
    assert by_event["on_step_end"][-1].lr == result.history[-1]["lr"]
    assert by_event["on_train_end"][0].metrics["score"] == result.history[-1]["score"]
    assert [step for step, _ in recorder.logged] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert recorder.logged[0][1] == {"loss": first_losses[0], "lr": by_event["on_step_end"][0].lr}
    assert recorder.logged[4][1] == {"epoch": 1, "score": result.history[0]["score"]}
    assert recorder.closed == 1


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2, "batch_size": 4}, {"learn_temperature": True}])
def test_a_custom_loss_that_computes_the_default_one_gives_its_bits(tower, store, changes):
    default, custom = fresh(tower), fresh(tower)
    settings = config(epochs=1, multi_positive=False, **changes)  # the custom loss is not told which captions are equal
    expected = train(default, store, None, settings, progress=False)
    assert train(custom, store, None, settings, progress=False, loss=matching).history == expected.history
    assert_equal(weights(custom), weights(default))


def test_torchs_cross_entropy_is_the_loss_of_recognition(tower, store):
    default, custom = fresh(tower), fresh(tower)
    settings = config(epochs=1, task="recognition")
    for model in (default, custom):
        torch.manual_seed(2)
        model.head = LinearClassifier(model.embed_dim, store.data.classes)
    train(default, store, None, settings, progress=False)
    train(custom, store, None, settings, progress=False, loss=nn.CrossEntropyLoss())
    assert_equal(weights(custom), weights(default))


def test_mixup_blends_a_custom_loss(tower, monkeypatch):
    model = attach(tower, branch_kwargs={"depth": 1})
    model.head = LinearClassifier(model.embed_dim, ("a", "b", "c"))
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, *_: torch.tensor(0.3))
    batch, settings = make_batch(), TrainConfig(task="recognition", mixup=0.2)
    expected = Recognition(model.eval(), settings)(batch)
    assert torch.equal(Recognition(model, settings, loss=F.cross_entropy)(batch), expected)


def test_micro_batches_give_the_gradient_of_a_custom_loss_over_the_full_batch(tower):
    model = fresh(tower).eval()
    nn.init.normal_(model.branch.fusion.gate.weight, std=0.05)
    texts = torch.randn(4, model.embed_dim)
    batch = make_batch(text=texts, video_index=torch.arange(4))
    grads = []
    for micro_batch_size in (0, 3):
        objective = Retrieval(model, TrainConfig(micro_batch_size=micro_batch_size), loss=Margin(5.0))
        objective(batch).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert grads[0].keys() == grads[1].keys()
    scale = max(float(g.abs().max()) for g in grads[0].values())
    assert scale > 0
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, atol=1e-4 * scale, rtol=0)


def test_a_loss_gets_scaled_similarities_of_captions_and_videos_in_float32(tower):
    model = fresh(tower)
    batch = make_batch(text=torch.randn(6, model.embed_dim), video_index=torch.tensor([0, 0, 1, 2, 3, 3]))
    calls = []
    objective = Retrieval(model, TrainConfig(temperature=0.5), loss=lambda *args: calls.append(args) or args[0].mean())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(batch)
    (logits, targets), *_ = calls
    assert (logits.shape, logits.dtype) == ((6, 4), torch.float32)
    assert torch.equal(targets, batch.video_index)
    frames, mask = model.encode_clip(batch.video)
    torch.testing.assert_close(logits, 2 * model.match(batch.text, frames, mask=mask), atol=0.3, rtol=0)


@pytest.mark.parametrize("options", [{}, {"optimizer": SGD}], ids=["adamw", "sgd"])
def test_a_run_with_a_custom_loss_and_callbacks_is_resumed_to_the_bit(tower, store, tmp_path, options):
    runs, settings = {}, config(checkpoint_every=2)
    for name, stop in (("uninterrupted", 0), ("interrupted", 7)):
        model, loss, recorder = fresh(tower), ScaledLoss(), Recorder()
        run = {"out": tmp_path / name, "progress": False, "logger": Recorder(), **options}
        if stop:
            with pytest.raises(StoppedError) as caught:
                train(model, store, store, settings, loss=loss, callbacks=[recorder, interrupt_at(stop)], **run)
            assert "raised in on_step_end of callback test_training_hooks.StepCallback" in caught.value.__notes__[0]
            assert run["logger"].closed == 1
            assert not model.training
            model, loss, recorder = fresh(tower), ScaledLoss(), Recorder()
        result = train(model, store, store, settings, loss=loss, callbacks=[recorder], resume=stop > 0, **run)
        runs[name] = {**weights(model), **loss.state_dict()}, result.history, recorder.events
    assert_equal(runs["uninterrupted"][0], runs["interrupted"][0])
    assert runs["uninterrupted"][0]["batches"] == 8
    assert runs["uninterrupted"][0]["scale"] != 1
    assert runs["uninterrupted"][1] == runs["interrupted"][1]
    events = runs["interrupted"][2]
    assert [event for event in events if event[0] != "on_train_start"] == runs["uninterrupted"][2][1:]
    assert [event for event in events if event[0] == "on_train_start"] == [
        ("on_train_start", 1, 0),
        ("on_train_start", 2, 6),
    ]


def test_the_last_checkpoint_is_intact_after_an_error_of_a_callback(tower, store, tmp_path):
    run = {"out": tmp_path, "progress": False, "callbacks": [interrupt_at(3)]}
    with pytest.raises(StoppedError):
        train(fresh(tower), store, None, config(checkpoint_every=1), **run)
    position = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["position"]
    assert (position["epoch"], position["batch"]) == (0, 2)


@pytest.mark.parametrize(
    "stop", [lambda state: state.step == 3, lambda state: state.stop() if state.step == 3 else None]
)
def test_a_callback_ends_the_run_after_a_step(tower, store, tmp_path, stop):
    model, settings = fresh(tower), config(accumulate_grad_batches=2)
    run = {"out": tmp_path, "progress": False}
    recorder = Recorder()
    result = train(model, store, store, settings, callbacks=[StepCallback(stop), recorder], **run)
    assert len(result.history) == 1
    assert "score" in result.history[0], "a run that ends is validated"
    assert recorder.events[-3:] == [("on_validation_end", 1, 3), ("on_epoch_end", 1, 3), ("on_train_end", 1, 3)]
    again = fresh(tower)
    resumed = train(again, store, store, settings, resume=True, **run)
    assert resumed.already_finished
    assert resumed.history == result.history
    assert_equal(weights(again), weights(model))
    with pytest.warns(ClipvidWarning, match="rescheduled from epoch 2"), pytest.warns(ClipvidWarning, match="Recorder"):
        longer = train(fresh(tower), store, store, replace(settings, epochs=3), resume=True, **run)
    assert len(longer.history) == 3


class EarlyStop:
    """Callback that ends the run at its second epoch."""

    def on_epoch_end(self, state: TrainState) -> bool:
        return np.bool_(state.epoch == 2)  # as a comparison of NumPy numbers gives


def test_a_callback_ends_the_run_after_an_epoch(tower, store):
    result = train(fresh(tower), store, None, config(epochs=5), progress=False, callbacks=[EarlyStop()])
    assert result.best_epoch == len(result.history) == 2


def test_the_state_of_an_absent_callback_is_dropped_with_a_warning(tower, store, tmp_path):
    run, settings = {"out": tmp_path, "progress": False}, config(epochs=1, checkpoint_every=1)
    with pytest.raises(StoppedError):
        train(fresh(tower), store, None, settings, callbacks=[Recorder(), interrupt_at(2)], **run)
    with pytest.warns(ClipvidWarning, match="has a state of callback test_training_hooks.Recorder, and this run"):
        train(fresh(tower), store, None, settings, resume=True, **run)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"loss": matching}, "trained with loss the default, this run has test_training_hooks.matching; give the"),
        (
            {"loss": Margin(0.1)},
            {"loss": Margin(0.2)},
            r"Margin\(margin=0.1\), this run has test_training_hooks.Margin\(",
        ),
        ({"optimizer": SGD}, {}, r"optimizer torch.optim.sgd.SGD\(momentum=0.9\), this run has the default; give the"),
    ],
)
def test_a_run_is_resumed_only_with_its_loss_and_optimizer(tower, store, tmp_path, first, second, message):
    run = {"out": tmp_path, "progress": False}
    train(fresh(tower), store, None, config(epochs=1), **run, **first)
    with pytest.raises(CheckpointError, match=message):
        train(fresh(tower), store, None, config(epochs=1), resume=True, **run, **second)


def test_a_checkpoint_without_names_is_of_the_default_loss_and_optimizer(tower, store, tmp_path):
    run = {"out": tmp_path, "progress": False}
    first = train(fresh(tower), store, None, config(epochs=1), **run)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    added = ("loss_name", "optimizer_name", "loss", "callbacks", "stopped_at")
    write_checkpoint(tmp_path / "checkpoint.pt", {name: value for name, value in state.items() if name not in added})
    assert train(fresh(tower), store, None, config(epochs=1), resume=True, **run).history == first.history
    with pytest.raises(CheckpointError, match="with loss the default"):
        train(fresh(tower), store, None, config(epochs=1), resume=True, loss=matching, **run)


def test_the_record_of_a_model_names_its_loss_and_optimizer(tower, store, tmp_path):
    train(fresh(tower), store, None, config(epochs=1), out=tmp_path, progress=False, loss=Margin(0.1), optimizer=SGD)
    record = load(tmp_path / "best", base=tower).training_record
    assert record["loss"] == "test_training_hooks.Margin(margin=0.1)"
    assert record["optimizer"] == "torch.optim.sgd.SGD(momentum=0.9)"


def test_a_custom_optimizer_that_equals_the_default_one_gives_its_bits(tower, store):
    default, custom = fresh(tower), fresh(tower)
    train(default, store, None, config(epochs=1), progress=False)
    train(custom, store, None, config(epochs=1), progress=False, optimizer=ADAMW)
    assert_equal(weights(custom), weights(default))


def test_the_groups_of_a_custom_optimizer_keep_their_rates_and_decays(tower, store):
    seen, rates = [], []

    def make(groups):
        seen.extend({**group, "params": len(group["params"])} for group in groups)
        return torch.optim.SGD(groups)

    recorder = Recorder()
    constant = ScheduledOptimizer(make, schedule=lambda done: rates.append(done) or 0.5)
    train(fresh(tower), store, None, config(epochs=1), progress=False, optimizer=constant, callbacks=[recorder])
    assert {group["weight_decay"] for group in seen} == {0.0, 0.05}
    assert {group["lr"] for group in seen} == {1e-3, 1e-3 * 0.1}
    assert rates == [0, 0.25, 0.5, 0.75]
    assert {state.lr for state in recorder.states[1:]} == {0.5 * seen[0]["lr"]}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda groups: groups, TypeError, "must return a torch.optim.Optimizer, got list"),
        (
            lambda groups: torch.optim.SGD(groups[:1]),
            ValueError,
            r"must have all parameters of its groups, got \d+ fewer",
        ),
    ],
)
def test_an_optimizer_that_is_none_or_leaves_out_parameters_is_refused(make, error, message):
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "peak": 0.1, "weight_decay": 0.0} for _ in range(2)]
    with pytest.raises(error, match=message):
        make_optimizer(groups, TrainConfig(), make, device="cpu", scaled=False)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logits, targets: logits, r"tensor of shape \(\), got a tensor of shape \(4, 4\); take the mean"),
        (lambda logits, targets: 1.0, "got float"),
        (lambda logits, targets: logits.detach().mean(), "got one without gradient; compute it by torch operations"),
    ],
)
def test_a_loss_that_is_no_scalar_or_has_no_gradient_is_refused(tower, loss, message):
    model = fresh(tower)
    batch = make_batch(text=torch.randn(4, model.embed_dim), video_index=torch.arange(4))
    with pytest.raises(ValueError, match=message):
        Retrieval(model, TrainConfig(), loss=loss)(batch)


def test_settings_that_a_custom_part_would_ignore_are_refused(tower, store):
    model = fresh(tower)
    with pytest.raises(ValueError, match="loss must be None for task 'selfsup'"):
        make_objective(model, TrainConfig(task="selfsup"), matching)
    with pytest.raises(ValueError, match=r"label_smoothing is a setting of the default loss, got 0.1"):
        make_objective(model, TrainConfig(task="recognition", label_smoothing=0.1), F.cross_entropy)
    scheduled = ScheduledOptimizer(SGD, schedule=lambda done: 1.0)
    with pytest.raises(ValueError, match=r"warmup is a setting of the default schedule, got 0.2"):
        train(model, store, None, config(warmup=0.2), progress=False, optimizer=scheduled)


class Misspelt:
    """Callback with a name that no event has."""

    def on_epoch_ends(self, state: TrainState) -> None: ...

    def on_step_end(self, state: TrainState) -> None: ...


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"loss": 3}, r"loss must be a function of \(logits, targets\)"),
        ({"loss": nn.CrossEntropyLoss}, "give an instance"),
        (
            {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])},
            "optimizer must be a function of parameter groups",
        ),
        ({"logger": object()}, r"logger must be an object with log\(metrics, step\)"),
        ({"callbacks": Recorder()}, "callbacks must be a list of objects"),
        ({"callbacks": [Recorder]}, "got the class test_training_hooks.Recorder; give an instance"),
        ({"callbacks": [object()]}, "got builtins.object, which has none"),
        (
            {"callbacks": [Misspelt()]},
            "must be among on_train_start, .*, got on_epoch_ends of test_training_hooks.Misspelt",
        ),
    ],
)
def test_objects_of_a_wrong_kind_are_refused(hooks, message):
    with pytest.raises(TypeError, match=message):
        Hooks(**hooks)


def test_state_that_could_not_be_read_again_is_refused_before_training(tower, store, tmp_path):
    recorder = Recorder()
    recorder.state_dict = lambda: {"best": np.float64(1.0)}
    with pytest.raises(TypeError, match=r"state of loss and callbacks\['callbacks'\].*, got float64; convert it"):
        train(fresh(tower), store, None, config(), out=tmp_path, progress=False, callbacks=[recorder])
    assert not (tmp_path / "checkpoint.pt").exists()
    check_plain({"a": [torch.zeros(1), 1, (None, "b", 2.0, True)]}, "state")


def test_names_identify_functions_classes_and_their_options():
    assert name_of(F.cross_entropy) == "torch.nn.functional.cross_entropy"
    assert name_of(nn.CrossEntropyLoss()) == "torch.nn.modules.loss.CrossEntropyLoss"
    assert name_of(partial(matching, 1, key=F.relu)) == "test_training_hooks.matching(1, key=torch.nn.functional.relu)"
    scheduled = ScheduledOptimizer(SGD, schedule=F.relu)
    assert name_of(scheduled).endswith("(make=torch.optim.sgd.SGD(momentum=0.9), schedule=torch.nn.functional.relu)")
    module = nn.Identity()
    module.name = "my loss, margin 0.2"
    assert name_of(module) == "my loss, margin 0.2"


def test_history_is_written_without_the_default_logger(tower, store, tmp_path):
    result = train(fresh(tower), store, None, config(epochs=1), out=tmp_path, progress=False, logger=Recorder())
    assert json.loads((tmp_path / "history.json").read_text()) == list(result.history)
    assert not (tmp_path / "tensorboard").exists()
