"""Notes of the command line on standard error: what a user did not ask for and would want to know."""

from __future__ import annotations

from pathlib import Path

import pytest
from refused import refusal

from clipvid.cli import main
from clipvid.data.shapes import write_dataset

NO_MODEL = "note: no --model given: taking clipvid-mini, a small demonstration model"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of videos with their captions; nothing in it changes."""
    folder = tmp_path_factory.mktemp("work")
    write_dataset(folder / "videos", "test", 4)
    return folder / "videos" / "test"


@pytest.mark.parametrize("command", ["train", "eval", "embed", "index"])
def test_the_demonstration_model_is_taken_with_a_word_unless_it_is_named(clips, tmp_path, monkeypatch, capsys, command):
    def made(name: str, *_: object, **__: object) -> None:
        raise ValueError(f"{name} was made")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipvid.model.create_model", made)
    words = [command, str(clips), *(["--val", str(clips)] if command == "train" else [])]
    assert main(words) == 1
    assert capsys.readouterr().err.startswith(NO_MODEL)
    assert refusal(capsys, *words, "--model", "clipvid-mini") == f"clipvid {command}: clipvid-mini was made\n"
    error = refusal(capsys, *words, "--pretrained", "openai")
    assert "pretrained openai names weights of a base model; give that too, as --model ViT-B-32" in error


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_folder_that_may_be_read_as_two_formats_is_told_to_be_read_as_one(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for name in ("walk", "run"):
        Path("clips", name).mkdir(parents=True)
        Path("clips", name, "a.mp4").touch()
    words = [command, "clips", "--model", "clipvid-mini", "--task", "recognition", "--format"]
    note = "note: clips is read as csv, for captions.csv in it; give --format folder to read its 2 sub-folders as "
    Path("clips", "captions.csv").write_text("path,caption\nwalk/a.mp4,a dog\n")
    assert main(words[:-1]) == 1
    assert note in capsys.readouterr().err
    assert main([*words, "csv"]) == 1
    assert note not in capsys.readouterr().err
    Path("clips", "captions.csv").rename("clips/run/captions.csv")
    assert main(words[:-1]) == 1
    assert "is read as csv" not in capsys.readouterr().err
