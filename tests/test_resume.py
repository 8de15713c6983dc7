"""Resuming a run: with settings that change no result, with more epochs, and what is refused by name."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from test_training import DATA_CONFIG, config, fresh, weights

from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError, ClipvidWarning
from clipvid.models.backbone.backbone import Backbone
from clipvid.training.checkpoint import free_settings
from clipvid.training.loop import train
from clipvid.training.optim import schedule
from clipvid.training.trainer import Run


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video) -> VideoDataset:
    """Eight short videos of noise with a caption each."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    frames = rng.integers(0, 255, (8, 6, 48, 48, 3)).astype(np.uint8)
    records = [Record(write_video(folder / f"{i}.mp4", frames[i]), (f"clip {i}",)) for i in range(8)]
    return VideoDataset(tuple(records), (), "noise")


@pytest.fixture(scope="module")
def tower() -> Backbone:
    return tiny.backbone()


class StoppedError(Exception):
    """Raised by the tests to interrupt a run."""


def interrupted(monkeypatch, *, after: int) -> None:
    """Interrupt the next run after its checkpoint number `after`."""
    save, saved_steps = Run.save, []

    def save_and_stop(run: Run) -> None:
        save(run)
        saved_steps.append(run.steps)
        if len(saved_steps) == after:
            monkeypatch.setattr(Run, "save", save)
            raise StoppedError

    monkeypatch.setattr(Run, "save", save_and_stop)


def test_settings_that_do_not_affect_results_are_marked():
    data_config = {"data_config.workers", "data_config.time_limit", "data_config.unreadable"}
    assert free_settings(TrainConfig()) == data_config | {"activation_checkpointing", "patience", "checkpoint_every"}


def test_resuming_with_other_settings_that_do_not_affect_results_gives_the_same_bits(
    tower, clips, tmp_path, monkeypatch
):
    run = {"progress": False}
    expected = fresh(tower)
    first = train(expected, clips, clips, config(batch_size=2), out=tmp_path / "uninterrupted", **run)
    interrupted(monkeypatch, after=1)
    with pytest.raises(StoppedError):
        train(fresh(tower), clips, clips, config(batch_size=2, checkpoint_every=3), out=tmp_path / "interrupted", **run)
    other = replace(DATA_CONFIG, workers=1, time_limit=60.0, unreadable="skip")
    changed = config(batch_size=2, checkpoint_every=1, patience=9, activation_checkpointing=True, data_config=other)
    resumed = fresh(tower)
    result = train(resumed, clips, clips, changed, out=tmp_path / "interrupted", resume=True, **run)
    assert result.history == first.history
    assert not result.already_finished
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(expected).items())


def test_every_setting_that_differs_is_named_with_both_values(tower, clips, tmp_path):
    run = {"out": tmp_path, "progress": False}
    train(fresh(tower), clips, None, config(epochs=1), **run)
    other = config(epochs=1, seed=3, data_config=replace(DATA_CONFIG, frames=2, sampler="dense", workers=2))
    with pytest.raises(CheckpointError) as caught:
        train(fresh(tower), clips, None, other, resume=True, **run)
    differences = (
        "data_config.frames: 3 saved, 2 now, data_config.sampler: uniform saved, dense now, seed: 0 saved, 3 now"
    )
    assert f"another config ({differences}); choose another out, or that config" in str(caught.value)


def test_a_finished_run_continues_with_more_epochs_and_warns_about_its_new_schedule(
    tower, clips, tmp_path, monkeypatch
):
    shorter, longer = config(epochs=1), config(epochs=3)
    finished = train(fresh(tower), clips, None, shorter, out=tmp_path / "a", progress=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    message = "planned for 1 epoch and now has 3: its learning rates are rescheduled from epoch 2 on, so it will"
    expected = fresh(tower)
    with pytest.warns(ClipvidWarning, match=message):
        result = train(expected, clips, None, longer, out=tmp_path / "a", resume=True, progress=False)
    assert result.history[0] == finished.history[0]
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert result.history[1]["lr"] > 0, "the first schedule ended at 0"
    assert result.history[2]["lr"] == pytest.approx(longer.lr * schedule(5 / 6, warmup=longer.warmup))
    assert result.rescheduled == (1,)
    assert expected.training_record["rescheduled"] == [1]
    interrupted(monkeypatch, after=1)
    with pytest.warns(ClipvidWarning), pytest.raises(StoppedError):
        train(fresh(tower), clips, None, longer, out=tmp_path / "b", resume=True, progress=False)
    resumed = fresh(tower)
    again = train(
        resumed, clips, None, longer, out=tmp_path / "b", resume=True, progress=False
    )  # without another warning
    assert replace(again, seconds=result.seconds) == result
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(expected).items())


def test_fewer_epochs_than_were_trained_are_refused(tower, clips, tmp_path):
    train(fresh(tower), clips, None, config(), out=tmp_path, progress=False)
    with pytest.raises(
        CheckpointError, match=r"epochs must be >= 2 to resume .*, got 1; of the 2 epochs planned, 2 have"
    ):
        train(fresh(tower), clips, None, config(epochs=1), out=tmp_path, resume=True, progress=False)


def test_fewer_epochs_that_end_a_run_before_its_first_validation_are_refused(tower, clips, tmp_path, monkeypatch):
    interrupted(monkeypatch, after=1)
    with pytest.raises(StoppedError):
        train(fresh(tower), clips, clips, config(epochs=9, validate_every=5), out=tmp_path, progress=False)
    with pytest.raises(
        CheckpointError, match=r"epochs must be >= 2 to resume .*, got 1; of the 9 epochs planned, 1 has"
    ):
        train(fresh(tower), clips, clips, config(epochs=1, validate_every=5), out=tmp_path, resume=True, progress=False)
