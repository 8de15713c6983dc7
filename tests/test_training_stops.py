"""Ends of a run that callbacks ask for: the last epoch is validated, and answers that mean nothing are refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from test_training_hooks import DATA_CONFIG, config, fresh, weights
from torch import Tensor

from clipvid.data.records import Record, VideoDataset
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone.backbone import Backbone
from clipvid.training.hooks import TrainState
from clipvid.training.loop import train


@pytest.fixture(scope="module")
def tower() -> Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def store(tower, tmp_path_factory, write_video) -> TapStore:
    """Taps of eight short videos of noise with a caption each."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    frames = rng.integers(0, 255, (8, 4, 48, 48, 3)).astype(np.uint8)
    records = [Record(write_video(folder / f"{i}.mp4", frames[i]), (f"clip {i}",)) for i in range(8)]
    return encode_dataset(fresh(tower), VideoDataset(tuple(records), (), "noise"), DATA_CONFIG)


@pytest.mark.parametrize("answer", [torch.tensor(True), 1, "stop", np.float64(1)])
def test_an_answer_that_is_no_truth_value_is_refused(tower, store, answer):
    callback = SimpleNamespace(on_step_end=lambda state: answer)
    with pytest.raises(TypeError, match=r"^on_step_end must return True, False or None, got .*; convert it with bool"):
        train(fresh(tower), store, None, config(), progress=False, callbacks=[callback])


class StopAtOnce:
    """Callback that ends the run at the end of its first epoch, and records weights and scores as it is called."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.scores: list[float] = []

    def on_validation_end(self, state: TrainState) -> None:
        self.scores.append(state.metrics["score"])

    def on_epoch_end(self, state: TrainState) -> bool:
        self.weights = weights(state.model)
        return True


def test_an_epoch_whose_end_ends_the_run_is_validated(tower, store):
    callback, settings = StopAtOnce(), config(epochs=4, validate_every=2)
    result = train(fresh(tower), store, store, settings, progress=False, callbacks=[callback])
    assert (result.best_epoch, len(result.history), result.ended_by_callback) == (1, 1, True)
    assert [result.best_score] == callback.scores == [result.history[0]["score"]]


@pytest.mark.parametrize("validated", [False, True])
def test_gradients_of_the_epoch_whose_end_ends_the_run_are_used(tower, store, validated):
    settings = config(epochs=4, validate_every=2, accumulate_grad_batches=3)  # 4 batches: one is left
    stopped, callback = fresh(tower), StopAtOnce()
    val_data = store if validated else None
    train(stopped, store, val_data, settings, progress=False, callbacks=[callback])
    assert any(not torch.equal(value, callback.weights[name]) for name, value in weights(stopped).items())


def test_a_run_that_diverges_at_once_says_that_the_model_is_lost(tower, store):
    model = fresh(tower)
    message = r"(loss is nan at step 2 \(epoch 1\)|is not finite after epoch 1); .*so create or load it again$"
    with pytest.raises(FloatingPointError, match=message):
        train(model, store, None, config(lr=1e30, warmup=0.0, clip_norm=0.0), progress=False)
    with torch.no_grad(), pytest.raises(ValueError, match=r"the model's embedding is not finite; "):
        model.similarity(model.encode_video(torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)), torch.ones(1, 16))


class Break:
    """Callback that makes a weight infinite in the second epoch, and keeps the weights of the first."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_step_end(self, state: TrainState) -> None:
        if state.epoch == 2:
            next(iter(state.model.branch.parameters())).data.fill_(float("inf"))

    def on_epoch_end(self, state: TrainState) -> None:
        self.weights = weights(state.model)


def test_a_run_that_diverges_later_restores_its_best_epoch(tower, store):
    model, callback = fresh(tower), Break()
    with pytest.raises(FloatingPointError, match=r"; the model has its weights of epoch 1 again$"):
        train(model, store, None, config(epochs=3), progress=False, callbacks=[callback])
    assert all(torch.equal(value, callback.weights[name]) for name, value in weights(model).items())
