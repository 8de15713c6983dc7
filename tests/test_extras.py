"""Optional dependencies: what does not train or draw works without them, and a missing one is named with its extra."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_layers import package
from tiny import Tokenizer

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import MissingExtraError
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.tap_cache import TapCache
from clipvid.models.factory import attach
from clipvid.models.video_clip import VideoCLIP
from clipvid.search.index import VideoIndex
from clipvid.training.loggers import TensorBoardLogger
from clipvid.training.loop import train

ROOT = Path(__file__).parents[1]
MODULES = {"lightning_fabric": "train", "tensorboard": "train", "matplotlib": "plots", "peft": "lora"}
"""Optional modules and the extra that installs each."""
DATA_CONFIG = DataConfig(frames=2, batch_size=4, precision="32-true")


def hide(monkeypatch, *modules: str) -> None:
    """Make imports of these modules fail, also where they are loaded already."""
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video) -> VideoDataset:
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    frames = rng.integers(0, 255, (3, 4, 48, 48, 3)).astype(np.uint8)
    paths = [write_video(folder / f"{i}.mp4", frames[i]) for i in range(3)]
    return VideoDataset(tuple(Record(path, (f"clip {path.stem}",)) for path in paths), (), "noise")


@pytest.fixture
def model(tiny_clip) -> VideoCLIP:
    return attach(tiny_clip, branch_kwargs={"depth": 1}, tokenizer=Tokenizer())


def test_encoding_evaluation_search_and_caches_need_no_extra(model, clips, tmp_path, monkeypatch):
    hide(monkeypatch, *MODULES)
    assert model.encode_video(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 16)
    assert evaluate_retrieval(model, clips, DATA_CONFIG).n_videos == 3
    assert len(TapCache(tmp_path / "taps").store(model, clips, DATA_CONFIG, progress=False)) == 3
    index = VideoIndex.build(model, clips.records[0].path.parent, progress=False)
    assert len(index.search("clip 1", k=2)) == 2


def test_no_module_but_plots_and_the_demo_imports_an_extra_when_it_is_imported():
    optional = {*MODULES, "torchcodec", "clipvid.plots"}
    early = {
        entry.source
        for entry in package().imports
        if entry.kind == "module" and {entry.target, entry.target.partition(".")[0]} & optional
    }
    assert {".".join(name.split(".")[:2]) for name in early} == {"clipvid.plots", "clipvid.demo"}


def test_training_names_its_extra(model, clips, tmp_path, monkeypatch):
    hide(monkeypatch, "lightning_fabric")
    with pytest.raises(MissingExtraError, match=r"training needs lightning_fabric, .*pip install 'clipvid\[train\]'"):
        train(model, clips, None, TrainConfig(epochs=1, data_config=DATA_CONFIG), out=tmp_path / "run", progress=False)


def test_training_works_without_tensorboard_and_matplotlib(model, clips, tmp_path, monkeypatch):
    hide(monkeypatch, "tensorboard", "matplotlib")
    settings = TrainConfig(epochs=1, batch_size=3, data_config=DATA_CONFIG)
    train(model, clips, None, settings, out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "history.json").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()
    with pytest.raises(MissingExtraError, match=r"needs tensorboard, .*pip install 'clipvid\[train\]'"):
        TensorBoardLogger(tmp_path / "curves")


def test_plots_name_their_extra(monkeypatch):
    hide(monkeypatch, "matplotlib")
    for name in [name for name in sys.modules if re.match(r"clipvid\.plots\b", name)]:
        monkeypatch.delitem(sys.modules, name)  # it must be imported again; the loaded one returns after the test
    with pytest.raises(MissingExtraError, match=r"plots need matplotlib, .*pip install 'clipvid\[plots\]'"):
        importlib.import_module("clipvid.plots")


def test_each_optional_module_is_in_its_extra_and_in_dev_and_not_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=;\[ ]", requirement)[0].replace("-", "_") for requirement in requirements}

    extras = {name: names(requirements) for name, requirements in project["optional-dependencies"].items()}
    included = re.search(r"clipvid\[([\w,]+)\]", " ".join(project["optional-dependencies"]["dev"]))[1].split(",")
    for module, extra in MODULES.items():
        assert module in extras[extra]
        assert extra in included
        assert module not in names(project["dependencies"])
