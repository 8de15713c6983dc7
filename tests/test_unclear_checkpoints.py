"""Random files that are no checkpoint: each is refused in one line with file and cause, and never run."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import clipvid
from clipvid.cli.main import main
from clipvid.errors import CheckpointError, ClipvidError

MODEL = "ViT-S-32-alt"


class Executed:
    """Object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def torch_bytes(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def zip_bytes(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return file.getvalue()


def forms(seed: int, marker: Path) -> dict[str, bytes]:
    """Return the contents of files that are no checkpoint of MODEL, by file name."""
    rng = random.Random(seed)
    size = rng.randint(1, 9)
    other = torch_bytes({"state_dict": {"visual.proj": torch.zeros(size, 3), "logit_scale": torch.tensor(1.0)}})
    tensors = save({"visual.proj": torch.zeros(size, 2)})
    array = io.BytesIO()
    np.save(array, np.zeros(size))
    return {
        "empty.pt": b"",
        "text.pt": "".join(rng.choice("abc def\n") for _ in range(200)).encode(),
        "page.pt": b"<!DOCTYPE html><html><body>404</body></html>",
        "random.pt": rng.randbytes(rng.randint(1, 2000)),
        "pickle.pt": pickle.dumps({"weights": Executed(marker)}),
        "object.pt": torch_bytes({"weights": Executed(marker)}),
        "other.pt": other,
        "cut.pt": other[: rng.randrange(1, len(other))],
        "list.pt": torch_bytes([1, 2]),
        "numbers.pt": torch_bytes({size: 1}),
        "nothing.pt": torch_bytes({}),
        "zip.pt": zip_bytes(),
        "names.pt": zip_bytes("data.pkl", "version"),
        "shapes.safetensors": tensors,
        "cut.safetensors": tensors[: rng.randrange(1, len(tensors))],
        "random.safetensors": rng.randbytes(100),
        "text.bin": b"abc",
        "text.npz": b"abc",
        "cut.npz": zip_bytes("a.npy")[: rng.randrange(1, 60)],
        "array.npy": array.getvalue(),
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy leaves a bad zip file open
@pytest.mark.parametrize("seed", [random.randrange(10**6)], ids=["random"])
@pytest.mark.parametrize("n", [4, pytest.param(len(forms(0, Path())), marks=pytest.mark.slow)], ids=["sample", "all"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, seed, n):
    clip = clipvid.create_model("clipvid-mini").backbone.clip
    for name, content in random.Random(seed).sample([*forms(seed, tmp_path / "executed").items()], n):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            clipvid.create_model(MODEL, str(path))
        assert "\n" not in str(caught.value), (name, seed)
        assert str(path) in str(caught.value), (name, seed)
        assert caught.value.__cause__ is not None, (name, seed)
        with pytest.raises(CheckpointError) as caught:
            clipvid.load_stan_checkpoint(clip, path)
        assert "\n" not in str(caught.value), (name, seed)
        assert str(path) in str(caught.value), (name, seed)
    assert not (tmp_path / "executed").exists()


def test_the_command_line_reports_it_in_one_line(tmp_path, capsys):
    path = tmp_path / "page.pt"
    path.write_bytes(b"<html></html>")
    assert main(["info", "model", MODEL, "--pretrained", str(path)]) in (1, 2)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_folders_and_pipes_are_no_checkpoints(tmp_path, kind):
    path = tmp_path / "weights.pt"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match="neither a file nor weights"):
        clipvid.create_model(MODEL, str(path))


def test_a_missing_folder_that_looks_like_a_repository_is_named_as_a_folder(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClipvidError, match="r7/best is neither an existing folder") as caught:
        clipvid.load("r7/best")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionError)
