"""`clipvid index build` and `clipvid search` on real and hostile files: each is in the index or skipped."""

import csv

import pytest

from clipvid.cli.main import main


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


FEW = ["bear_odd_size.webm", "paper_rot90.mp4", "classroom.gif", "archery.avi", "asl_eat.mkv"]
"""Clips of few pixels, one of each format."""


@pytest.mark.parametrize("chosen", [pytest.param(None, marks=pytest.mark.slow, id="all"), pytest.param(FEW, id="few")])
def test_index_and_search_work_on_real_clips(shared_data, tmp_path, capsys, chosen):
    folder = shared_data / "videos"
    names = chosen or [row["file"] for row in table(folder / "captions.csv")]
    (tmp_path / "videos").mkdir()
    for name in names:
        (tmp_path / "videos" / name).symlink_to(folder / name)
    assert main(["index", "build", str(tmp_path / "videos"), "--out", str(tmp_path / "index"), "--frames", "2"]) == 0
    printed = capsys.readouterr()
    assert f"{len(names)} videos in" in printed.out
    assert "could not be read" not in printed.err
    assert main(["search", str(tmp_path / "index"), "a red circle", "--k", "39"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in names)


def test_index_lists_every_hostile_file_that_it_skips(shared_data, tmp_path, capsys):
    folder = shared_data / "hostile"
    rows = table(folder / "hostile.csv")
    assert main(["index", "build", str(folder), "--out", str(tmp_path / "index"), "--frames", "2"]) == 0
    printed = capsys.readouterr()
    main(["search", str(tmp_path / "index"), "a red circle", "--k", "100"])
    output = capsys.readouterr().out
    for row in rows:
        if row["kind"] == "valid":
            assert row["file"] in output, row["file"]
        elif not row["file"].endswith(".mp3"):  # the index ignores files without the suffix of a video
            assert row["file"] in printed.err, row["file"]
            assert row["file"] not in output, row["file"]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["info", "ViT-B-33"], "did you mean", 2),
        (["search", "nowhere", "a dog"], "nowhere holds no index", 2),
        (["index", "build", "nowhere", "--out", "x"], "nowhere", 2),
        (["eval", "nowhere"], "nowhere", 2),
        (["train", "nowhere"], "nowhere", 2),
        (["embed", "nowhere", "--out", "x.txt"], "--out must end in .safetensors", 2),
    ],
)
def test_a_refused_command_is_one_clear_line_and_an_exit_code(arguments, message, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_train_and_eval_from_the_command_line(tmp_path, monkeypatch, capsys):
    from clipvid.data.motion_shapes import write_dataset

    monkeypatch.chdir(tmp_path)
    write_dataset("videos", "train", 8)
    settings = {"epochs": "1", "batch-size": "4", "data-config.frames": "2", "depth": "1", "val-fraction": "0.25"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    assert main(["train", "videos/train", "--task", "retrieval", *options, "--out", "run"]) == 0
    assert "model saved to run/best" in capsys.readouterr().out
    assert main(["eval", "videos/train", "--model", "run/best", "--out", "metrics.json"]) == 0
    assert "8 videos; 2 frames" in capsys.readouterr().out
    assert (tmp_path / "metrics.json").exists()
    assert main(["embed", "videos/train", "--model", "run/best", "--out", "e.safetensors"]) == 0
    assert "8 embeddings of width 128" in capsys.readouterr().out
    assert main(["index", "build", "videos/train", "--model", "run/best", "--out", "index"]) == 0
    assert main(["search", "index", "videos/train/00001.mp4", "--video", "--k", "1"]) == 0
    assert "00001.mp4" in capsys.readouterr().out
