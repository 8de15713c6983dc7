"""Named pipes, devices and folders in the place of files: refused at once, since a pipe would block its reader."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from faults import Child, needs_fork
from refused import refusal
from test_kills import DATA_CONFIG

from clipvid.data.probing.content import HashLog, content_hash
from clipvid.data.probing.probe_log import ProbeLog
from clipvid.errors import CacheError, CheckpointError
from clipvid.features.cache_key import read_cache_key
from clipvid.features.shards import check_shard
from clipvid.models.convert_stan import read_state
from clipvid.models.factory import attach, load
from clipvid.runtime.storage.archive import is_intact
from clipvid.search.index import VideoIndex
from clipvid.training.checkpoint import read_checkpoint

pytestmark = needs_fork


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Return a folder with a saved model and a saved index."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(1)
    model = attach(tiny.backbone(), branch_kwargs={"depth": 1})
    model.save(folder / "model")
    index = VideoIndex(model, DATA_CONFIG)
    index._put([folder / "1.mp4"], np.eye(1, 16, dtype=np.float32))
    index.save(folder / "index")
    return folder


def _load_index(folder: Path) -> object:
    return VideoIndex.load(folder, attach(tiny.backbone(), branch_kwargs={"depth": 1}))


READERS: dict[str, tuple[str, Callable[[Path], object], type[Exception]]] = {
    "model config": ("model/config.json", lambda path: load(path.parent, base=tiny.backbone()), CheckpointError),
    "weights": ("model/branch.safetensors", lambda path: load(path.parent, base=tiny.backbone()), CheckpointError),
    "manifest": ("model/manifest.json", lambda path: load(path.parent, base=tiny.backbone()), CheckpointError),
    "index": ("index/index.json", lambda path: _load_index(path.parent), CheckpointError),
    "vectors": ("index/store/rows.json", lambda path: _load_index(path.parents[1]), CheckpointError),
    "checkpoint": ("checkpoint.pt", lambda path: read_checkpoint(path, {}), CheckpointError),
    "released weights": ("released.pt", read_state, CheckpointError),
    "archive": ("archive.pt", is_intact, OSError),
    "shard": ("shard.safetensors", lambda path: check_shard(path, full=True), CacheError),
    "cache key": ("cache_key.json", lambda path: read_cache_key(path.parent), CacheError),
    "probe log": ("log.jsonl", ProbeLog, OSError),
    "clip": ("clip.mp4", content_hash, OSError),
}


def _refused(path: Path, read: Callable[[Path], object], error: type[Exception]) -> int:
    try:
        read(path)
    except error as refused:
        print(refused)
        return 0
    return 1


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_refused_unopened(saved, tmp_path, name, kind):
    file_name, read, error = READERS[name]
    shutil.copytree(saved, tmp_path / "copy")
    path = tmp_path / "copy" / file_name
    assert path.exists() or "/" not in file_name, "the name of the file has changed"
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    child = Child(tmp_path / "log", _refused, path, read, error)
    assert child.wait() == 0, child.output
    assert "not a regular file" in child.output


def test_a_log_of_hashes_that_is_a_pipe_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "hashes.jsonl")
    child = Child(tmp_path / "log", lambda: HashLog(tmp_path / "hashes.jsonl") and 0)
    assert child.wait() == 0, child.output


@pytest.mark.parametrize("option", ["--config", "source"])
def test_commands_refuse_a_pipe(tmp_path, capsys, option):
    os.mkfifo(tmp_path / "pipe.csv")
    words = (
        ["train", str(tmp_path / "pipe.csv")]
        if option == "source"
        else ["info", "--config", str(tmp_path / "pipe.csv")]
    )
    assert "pipe" in refusal(capsys, *words)
