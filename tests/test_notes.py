"""Notes of the command line on standard error: what a user did not ask for and would want to know."""

from __future__ import annotations

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
