"""`--json` prints pure JSON, and `compare` any number of results in several formats."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from refused import refusal

from clipvid.cli.main import main
from clipvid.data.motion_shapes import write_dataset

SHORT = ("--model", "clipvid-mini", "--data-config.frames", "2")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folder with four captioned clips and three results on them, two of the same model; no test changes it."""
    folder = tmp_path_factory.mktemp("work")
    write_dataset(folder / "videos", "test", 4)
    clips = str(folder / "videos" / "test")
    assert main(["eval", clips, *SHORT, "--out", str(folder / "a.json"), "--cache", str(folder / "taps")]) == 0
    assert main(["eval", clips, *SHORT, "--out", str(folder / "b.json")]) == 0
    assert main(["eval", clips, *SHORT[:-1], "1", "--out", str(folder / "c.json")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_work(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    capsys.readouterr()


def json_of(capsys, *words: str):
    """Return the JSON that a command prints, which is all of its standard output."""
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    entries = content if isinstance(content, list) else [content]
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", key) for entry in entries for key in entry)
    return content


def test_info_prints_json(capsys):
    content = json_of(capsys, "info", "clipvid-mini", "--depth", "1")
    assert content["frames"] == 12
    assert content["trainable"] > 0


def test_eval_prints_the_json_that_it_saves(capsys):
    content = json_of(capsys, "eval", "videos/test", *SHORT)
    assert content == json.loads(Path("a.json").read_text())


def test_search_prints_hits_as_json_of_an_index_of_several_sources(tmp_path, capsys):
    index = str(tmp_path / "index")
    clips = sorted(Path("videos/test").glob("*.mp4"))
    sources = ["videos/test/*[12].mp4", str(clips[0])]
    assert main(["index", "build", *sources, "--model", "clipvid-mini", "--frames", "2", "--out", index]) == 0
    before = json.loads(Path(index, "index.json").read_text())["paths"]
    assert [Path(path).name for path in before] == list(
        dict.fromkeys([c.name for c in clips if c.stem[-1] in "12"] + [clips[0].name])
    )
    assert main(["index", "add", "videos/test", "--out", index]) == 0
    capsys.readouterr()
    answer = json_of(capsys, "search", index, "a red circle", "-k", "3")
    assert answer["query"] == "a red circle"
    hits = answer["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert all(Path(hit["path"]).is_file() for hit in hits)


def test_cache_ls_prints_json(capsys):
    parts = json_of(capsys, "cache", "ls", "taps")
    assert sum(part["rows"] for part in parts if not Path(part["folder"]).name.startswith("text-")) == 4
    assert all(part["bytes"] > 0 and part["damaged"] == [] for part in parts)


def test_compare_prints_json_with_differences_to_the_first(capsys):
    content = json_of(capsys, "compare", "a.json", "b.json", "c.json", "--draws", "50")
    assert list(content["results"]) == ["a.json", "b.json", "c.json"]
    rows = {name: [row for row in content["metrics"] if row["result"] == name] for name in content["results"]}
    assert len(rows["a.json"]) == len(rows["b.json"]) == len(rows["c.json"]) > 4
    assert all(row["difference"] is None for row in rows["a.json"])
    assert all(row["difference"] == 0 for row in rows["b.json"])
    assert any(row["p"] is not None for row in rows["c.json"])


def test_compare_writes_every_result_in_each_format(capsys):
    metrics = json.loads(Path("c.json").read_text())["metrics"]["t2v"]
    for format in ("text", "markdown", "latex", "csv"):
        assert main(["compare", "a.json", "b.json", "c.json", "--format", format]) == 0
        table = capsys.readouterr().out
        assert all(f"{name}.json" in table for name in "abc"), format
        assert f"{metrics['R@1']:.2f}".rstrip("0").rstrip(".") in table
    rows = list(csv.DictReader(io.StringIO(table)))
    (row,) = (row for row in rows if (row["metric"], row["result"]) == ("t2v R@1", "c.json"))
    assert float(row["value"]) == pytest.approx(metrics["R@1"])


def test_two_results_are_compared_with_p_values(capsys):
    assert main(["compare", "a.json", "a.json", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["result"] for row in rows} == {"a.json (1)", "a.json (2)"}  # one file twice
    assert main(["compare", "a.json", "c.json", "--draws", "50"]) == 0
    assert "95 %" in capsys.readouterr().out
    assert "there is no result d.json" in refusal(capsys, "compare", "a.json", "d.json", codes=(1,))
