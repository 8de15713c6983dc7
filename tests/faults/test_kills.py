"""Processes that are killed at random moments: nothing saved is lost, nothing half is served, and a rerun goes on."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from faults import Child, leftovers, needs_fork, run, seeded

from clipvid.config.data_config import DataConfig
from clipvid.config.selfsup import SelfSupervision
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.features.maintenance import parts_of
from clipvid.features.tap_cache import TapCache
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.factory import attach, load
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.storage.archive import is_intact
from clipvid.search.index import VideoIndex
from clipvid.training.loop import train

pytestmark = needs_fork
DATA_CONFIG = DataConfig(frames=2, batch_size=2, precision="32-true")
CONFIG = TrainConfig(epochs=2, batch_size=2, lr=1e-3, checkpoint_every=1, data_config=DATA_CONFIG)
MODES = {
    "retrieval": CONFIG,
    "taps in memory": replace(CONFIG, cache_taps=True),
    "cache": CONFIG,
    "recognition": replace(CONFIG, task="recognition", accumulate_grad_batches=2),
    "selfsup": replace(CONFIG, task="selfsup", batch_size=4, selfsup=SelfSupervision(hidden=16, out=8, regions=2)),
    "gradient caching": replace(CONFIG, batch_size=4, micro_batch_size=2),
}


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


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


# ------------------------------------------------------------------------------------------------- training


def trained(tower: Backbone, clips: VideoDataset, mode: str, out: Path) -> None:
    torch.manual_seed(1)
    model = attach(tower, branch_kwargs={"depth": 1})
    cache = TapCache(out.with_name(f"{out.name}-cache")) if mode == "cache" else None
    train(model, clips, clips, MODES[mode], out=out, resume=True, cache=cache, progress=False)


def steps_saved(out: Path) -> tuple[int, int]:
    """Return the position of the last checkpoint, and check that all that is in the folder can be read."""
    best = out / "best"
    if best.exists():
        load(best, base=tiny.backbone())
    path = out / "checkpoint.pt"
    if not path.exists():
        return -1, -1
    assert is_intact(path)
    position = torch.load(path, weights_only=True)["position"]
    return position["epoch"], position["batch"]


@pytest.mark.parametrize(
    ("modes", "n_kills"), [(1, 2), slow(len(MODES), 10)], ids=["one mode, two kills", "all modes, 60 kills"]
)
def test_a_run_that_is_killed_ends_in_the_bits_of_one_that_is_not(tower, clips, tmp_path, modes, n_kills):
    rng = seeded("training")
    for mode in rng.sample(sorted(MODES), modes):
        print(mode)
        expected, out = tmp_path / f"{mode}-expected", tmp_path / mode
        undisturbed = run(tmp_path / "log", trained, tower, clips, mode, expected)
        saved = (-1, -1)
        for _ in range(n_kills):
            child = Child(tmp_path / "log", trained, tower, clips, mode, out)
            time.sleep(rng.uniform(0, 1.2 * undisturbed.seconds / max(1, n_kills - 1)))
            before = steps_saved(out)
            child.send(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
            assert child.wait() in (0, -signal.SIGKILL, -signal.SIGTERM), child.output
            after = steps_saved(out)
            assert saved <= before <= after, "a checkpoint was lost"
            saved = after
        run(tmp_path / "log", trained, tower, clips, mode, out)
        for name in ("best/branch.safetensors", "history.json"):
            assert (out / name).read_bytes() == (expected / name).read_bytes()
        assert leftovers(out) == []
        if mode == "cache":
            assert all(not part.damaged for part in parts_of(tmp_path / "cache-cache", full=True))


# ------------------------------------------------------------------------------------------ saves in a loop


def model_saves(model: VideoCLIP, folder: Path) -> None:
    weight = next(model.branch.parameters())
    for number in range(10_000):
        weight.data.fill_(number)
        model.save(folder / "model")
        _report(folder, number)


def _report(folder: Path, number: int) -> None:
    with open(folder / "reported", "a") as file:
        file.write(f"{number}\n")


def read_model(model: VideoCLIP, folder: Path) -> int:
    loaded = load(folder / "model", base=tiny.backbone())
    weight = next(loaded.branch.parameters())
    assert bool((weight == weight.flatten()[0]).all())
    return int(weight.flatten()[0])


def index_saves(model: VideoCLIP, folder: Path) -> None:
    index = VideoIndex(model, replace(DATA_CONFIG, unreadable="skip"))
    for number in range(10_000):
        index._put([folder / f"{number}.mp4"], np.eye(1, 16, k=number % 16, dtype=np.float32))
        index.save(folder / "index")
        _report(folder, number)


def read_index(model: VideoCLIP, folder: Path) -> int:
    return len(VideoIndex.load(folder / "index", model)) - 1


SAVES = {"model": (model_saves, read_model), "index": (index_saves, read_index)}


@pytest.mark.parametrize(("kind", "n_kills"), [("model", 2), ("index", 2), slow("model", 20), slow("index", 20)])
def test_a_save_that_was_reported_survives_a_kill_of_the_next_one(tower, tmp_path, kind, n_kills):
    rng, (write, read) = seeded(f"saves {kind}"), SAVES[kind]
    model = attach(tower, branch_kwargs={"depth": 1})
    for _ in range(n_kills):
        (tmp_path / "reported").unlink(missing_ok=True)
        child = Child(tmp_path.parent / f"{tmp_path.name}.log", write, model, tmp_path)
        deadline = time.monotonic() + 60
        while not (tmp_path / "reported").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        child.send(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]))
        assert child.wait() < 0, child.output
        last = int((tmp_path / "reported").read_text().split()[-1])
        assert read(model, tmp_path) in (last, last + 1)
        assert len(leftovers(tmp_path)) <= 2, "those of earlier kills were removed"
    run(tmp_path.parent / f"{tmp_path.name}.log", _save_once, model, tmp_path, kind)
    assert leftovers(tmp_path) == []


def _save_once(model: VideoCLIP, folder: Path, kind: str) -> None:
    if kind == "model":
        model.save(folder / "model")
    else:
        VideoIndex.load(folder / "index", model).save(folder / "index")
