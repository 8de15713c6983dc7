"""Files that commands write about failures: the report page and the table of queries, and the closing notes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from refused import refusal, usage_error

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.open import open_dataset
from clipvid.evaluation.recognition import evaluate_zero_shot
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.models.factory import create_model
from clipvid.training.loop import train

SHORT = ("--model", "clipvid-mini", "--data-config.frames", "2", "--data-config.precision", "32-true")
DATA_CONFIG = DataConfig(frames=2, precision="32-true")
READERS = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".json": pd.read_json}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folder of eight clips with captions and labels; no test changes it."""
    folder = tmp_path_factory.mktemp("work")
    write_dataset(folder, "test", 8)
    return folder / "test"


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def expected(clips):
    """The tables of queries that the library makes, by task."""
    data, model = open_dataset("csv", clips), create_model("clipvid-mini", branch="mean")
    results = evaluate_retrieval(model, data, DATA_CONFIG), evaluate_zero_shot(model, data, DATA_CONFIG)
    return dict(zip(("retrieval", "recognition"), (result.per_query() for result in results), strict=True))


@pytest.mark.parametrize("task", ["retrieval", "recognition"])
def test_per_query_writes_the_table_of_the_library(clips, expected, task, capsys):
    words = ["eval", str(clips), *SHORT, *(["--zero-shot"] if task == "recognition" else [])]
    for suffix, read in READERS.items():
        assert main([*words, "--per-query", f"queries{suffix}"]) == 0
        assert f"queries: queries{suffix}\n" in capsys.readouterr().out
        table = read(f"queries{suffix}")
        pd.testing.assert_frame_equal(table, expected[task], check_dtype=False, rtol=1e-9)
    assert sorted(os.listdir()) == ["queries.csv", "queries.json", "queries.parquet"]


def test_a_table_that_cannot_be_written_whole_leaves_no_file(clips, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    assert main(["eval", str(clips), *SHORT, "--per-query", "queries.csv"]) == 1
    assert "queries.csv cannot be read or changed: the disk is full" in capsys.readouterr().err
    assert os.listdir() == []


def test_a_wrong_table_file_is_refused_before_a_model_is_loaded(clips, monkeypatch, capsys):
    monkeypatch.setattr("clipvid.models.factory.create_model", None)
    words = ["eval", str(clips), *SHORT]
    message = "--per-query must end in .parquet, .csv, .json, got queries.xlsx; rename it"
    assert message in usage_error(capsys, *words, "--per-query", "queries.xlsx")
    Path("file").touch()
    assert "cannot be written: " in refusal(capsys, *words, "--per-query", "file/queries.csv")
    Path("a.csv").touch()
    assert "a.csv already exists; give --overwrite" in refusal(capsys, *words, "--per-query", "a.csv")
    assert "a.html would be written twice" not in refusal(capsys, *words, "--report", "a.html", "--out", "b.html")
    assert "is for --report, which is not given" in usage_error(capsys, *words, "--report-queries", "3")
    assert "--report-queries must be an integer >= 1" in usage_error(
        capsys, *words, "--report-queries", "0", "--report", "a"
    )


def test_the_report_of_recognition_shows_the_clips_with_a_wrong_class(clips, expected, capsys):
    words = ["eval", str(clips), *SHORT, "--zero-shot", "--report", "wrong.html", "--report-queries", "3"]
    assert main(words) == 0
    assert "report: wrong.html\n" in capsys.readouterr().out
    page, table = Path("wrong.html").read_text(), expected["recognition"]
    wrong = table[~table["correct"]].sort_values(by=["rank", "probability"], ascending=False)
    assert f"{len(wrong)} of {len(table)} clips were not recognised" in page
    assert re.findall(r"<h2>(.*?) <small>predicted: (.*?);", page) == list(
        zip(wrong["label"][:3], wrong["prediction"][:3], strict=True)
    )
    assert page.count("data:image/jpeg;base64,") == 3


@pytest.mark.filterwarnings("default::clipvid.errors.ClipvidWarning")
def test_a_training_run_that_a_callback_ended_says_so(clips, capsys):
    class Stop:
        def on_epoch_end(self, state):
            return state.epoch == 1

    torch.manual_seed(0)
    data = open_dataset("csv", clips)
    config = TrainConfig(task="retrieval", epochs=3, cache_taps=True, data_config=DataConfig(frames=2))
    result = train(
        create_model("clipvid-mini", branch_kwargs={"depth": 1}), data, data, config, out="run", callbacks=[Stop()]
    )
    assert (len(result.history), result.ended_by_callback) == (1, True)
    words = ["train", str(clips), "--val", str(clips), "--model", "clipvid-mini", "--depth", "1", "--cache-taps"]
    words += ["--data-config.frames", "2", "--out", "run", "--resume", "--epochs"]
    assert main([*words, "3"]) == 0
    message = "nothing was left to train: a callback ended it after epoch 1 of 3; more --epochs continue it\n"
    assert message in capsys.readouterr().out
    assert main([*words, "4"]) == 0
    assert "best epoch" in capsys.readouterr().out
    assert len(json.loads(Path("run", "history.json").read_text())) == 4


def test_a_training_run_that_patience_ended_says_so(clips, capsys):
    words = ["train", str(clips), "--val", str(clips), "--model", "clipvid-mini", "--depth", "1", "--cache-taps"]
    words += ["--data-config.frames", "2", "--epochs", "9", "--patience", "1", "--lr", "1e-12", "--out", "run"]
    assert main(words) == 0
    message = "training ended early: patience 1 ended it after epoch 2; give more with --patience\n"
    assert message in capsys.readouterr().out
    assert len(json.loads(Path("run", "history.json").read_text())) == 2
