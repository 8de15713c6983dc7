"""Notes of the command line on standard error: defaults and risks that the user did not choose."""

from __future__ import annotations

from pathlib import Path

import pytest
from refused import refusal

from clipvid.cli.main import main
from clipvid.data.motion_shapes import write_dataset

NO_MODEL = "note: no --model given: using clipvid-mini, a small demonstration model"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folder of videos with captions; no test changes it."""
    folder = tmp_path_factory.mktemp("work")
    write_dataset(folder / "videos", "test", 4)
    return folder / "videos" / "test"


@pytest.mark.parametrize("command", ["train", "eval", "embed", "index build"])
def test_the_default_demonstration_model_is_noted_unless_it_is_named(clips, tmp_path, monkeypatch, capsys, command):
    def refuse_model(name: str, *_: object, **__: object) -> None:
        raise ValueError(f"{name} was made")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipvid.models.factory.create_model", refuse_model)
    arguments = [*command.split(), str(clips), *(["--val", str(clips)] if command == "train" else [])]
    assert main(arguments) == 1
    assert NO_MODEL in capsys.readouterr().err
    assert refusal(capsys, *arguments, "--model", "clipvid-mini") == f"clipvid {command}: clipvid-mini was made\n"
    error = refusal(capsys, *arguments, "--pretrained", "openai")
    assert "--pretrained openai names weights of a base model; give the model too, such as --model ViT-B-32" in error


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_format_chosen_for_an_ambiguous_folder_is_noted(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for name in ("walk", "run"):
        Path("clips", name).mkdir(parents=True)
        Path("clips", name, "a.mp4").touch()
    arguments = [command, "clips", "--model", "clipvid-mini", "--task", "recognition", "--format"]
    note = "note: clips is read as csv, because it holds captions.csv; give --format folder to read its 2 sub-folders "
    Path("clips", "captions.csv").write_text("path,caption\nwalk/a.mp4,a dog\n")
    assert main(arguments[:-1]) == 1
    assert note in capsys.readouterr().err
    assert main([*arguments, "csv"]) == 1
    assert note not in capsys.readouterr().err
    Path("clips", "captions.csv").rename("clips/run/captions.csv")
    assert main(arguments[:-1]) == 1
    assert "is read as csv" not in capsys.readouterr().err


def test_very_few_validation_videos_are_noted(clips, tmp_path, monkeypatch, capsys):
    def refuse_model(*_: object, **__: object) -> None:
        raise ValueError("a model would be made")

    monkeypatch.setattr("clipvid.models.factory.create_model", refuse_model)

    def stderr_of(*options: str) -> str:
        arguments = ["train", str(clips), "--model", "clipvid-mini", "--out", str(tmp_path / "run"), *options]
        assert main(arguments) == 1
        return capsys.readouterr().err

    note = "note: 4 validation videos will choose the best epoch, and one of them is 25 points of its score; give more"
    validation = ("--val", str(clips))
    assert note in stderr_of(*validation)
    table = tmp_path / "table.csv"
    table.write_text("path,caption\n" + "".join(f"{clip},a shape\n" for clip in sorted(clips.glob("*.mp4"))))
    clips = table
    err = stderr_of("--val-fraction", "0.5")
    assert "2 validation videos will choose the best epoch, and one of them is 50 points of its score; hold out" in err
    for options in (("--epochs", "1"), ("--task", "selfsup"), ("--validate-every", "50")):
        assert "will choose" not in stderr_of(*validation, *options)


def test_the_time_of_compilation_is_noted(clips, tmp_path, monkeypatch, capsys):
    def refuse_model(*_: object, **__: object) -> None:
        raise ValueError("a model would be made")

    monkeypatch.setattr("clipvid.models.factory.create_model", refuse_model)
    arguments = ["train", str(clips), "--val", str(clips), "--model", "clipvid-mini", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--compile"]) == 1
    assert "note: the first steps compile the branch, which takes a minute or more" in capsys.readouterr().err


def test_searching_an_index_of_the_demonstration_model_is_noted(clips, tmp_path, capsys):
    folder = str(tmp_path / "index")
    assert main(["index", "build", str(clips), "--model", "clipvid-mini", "--frames", "2", "--out", folder]) == 0
    capsys.readouterr()
    assert main(["search", folder, "a red circle"]) == 0
    assert f"note: {folder} was made with clipvid-mini, which only knows drawn shapes" in capsys.readouterr().err
