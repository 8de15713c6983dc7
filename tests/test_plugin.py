"""The example plugin: built as a wheel and installed, it adds a branch, a protocol and a store to the commands."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from clipvid import registry
from clipvid.cli.main import main
from clipvid.data.motion_shapes import write_dataset
from clipvid.models.factory import load
from clipvid.search.index import VideoIndex

SOURCE = Path(__file__).parents[1] / "examples" / "plugin"
MODULES = ("mine_branch", "mine_protocol", "mine_store")
SHORT = ["--data-config.frames", "2", "--data-config.precision", "32-true"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the plugin, which holds its modules and entry points and nothing else."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="building the plugin needs hatchling")
    (built,) = builders.WheelBuilder(str(SOURCE)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    return Path(built)


@pytest.fixture
def installed(wheel, tmp_path, monkeypatch, restored_registries):
    """The plugin on the path of this process, as an installer unpacks a pure wheel; it is forgotten afterwards."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(registry, "_loaded", set())
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for module in MODULES:
        sys.modules.pop(module, None)


def test_the_plugin_has_three_files_of_at_most_40_lines(wheel):
    lengths = [len((SOURCE / f"{module}.py").read_text().splitlines()) for module in MODULES]
    assert max(lengths) <= 40
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.endswith(".py")} == {f"{module}.py" for module in MODULES}


def test_nothing_of_the_plugin_is_known_before_it_is_installed():
    for members in registry.registries():
        assert "mine" not in members


def test_branch_protocol_and_store_work_by_name_in_the_commands(installed, capsys):
    shapes = write_dataset("shapes", "test", 4)
    lines = [f"{record.path.relative_to('shapes')} {k % 2}" for k, record in enumerate(shapes)]
    Path("shapes/mine_test.txt").write_text("\n".join(lines))
    Path("shapes/mine_train.txt").write_text("\n".join(lines))
    Path("shapes/mine_classes.txt").write_text("even\nodd\n")

    train = "train shapes --format mine --split train --task recognition --branch mine --epochs 1 --batch-size 2"
    assert main([*train.split(), "--val", "shapes", "--val-split", "test", "--out", "run", *SHORT]) == 0
    model = load("run/best")
    assert type(model.branch).__name__ == "Change"

    assert main(["eval", "shapes", "--format", "mine", "--model", "run/best", "--out", "result.json", *SHORT]) == 0
    assert json.loads(Path("result.json").read_text())["data"]["name"] == "mine:test"

    assert main(["index", "build", "shapes/test", "--model", "run/best", "--store", "mine", "--out", "index"]) == 0
    index = VideoIndex.load("index", model)
    assert (index.store, type(index._vectors).__name__, len(index)) == ("mine", "PlainStore", 4)
    faiss = VideoIndex.build(model, "shapes/test", progress=False)
    for text in ("a circle", "a star"):
        ours, theirs = index.search(text, k=4), faiss.search(text, k=4)
        assert [hit.path for hit in ours] == [hit.path for hit in theirs]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
    capsys.readouterr()
    assert main(["search", "index", "a star", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 4


def test_a_misspelt_name_is_refused_with_that_of_the_plugin(installed, capsys):
    assert main(["train", "shapes", "--branch", "mien"]) == 2
    assert "did you mean mine" in capsys.readouterr().err
