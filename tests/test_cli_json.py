"""`--json` prints pure JSON, and `compare` any number of results in several formats."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import get_args

import pytest
from refused import refusal

from clipvid import registry
from clipvid.cli import commands
from clipvid.cli.info import KINDS, KindName
from clipvid.cli.main import main
from clipvid.cli.outputs import json_printed
from clipvid.cli.parsing import messages
from clipvid.data.motion_shapes import write_dataset
from clipvid.registry import registries

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
    """Return the JSON that a command prints, which is all of its standard output and has no NaN."""
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
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
    before = json.loads(Path(index, "index.json").read_text())["videos"]
    assert [Path(video["path"]).name for video in before] == list(
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
    content = json_of(capsys, "compare", "a.json", "b.json", "c.json", "--resamples", "50")
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


def test_more_results_than_letters_are_compared(capsys):
    content = json_of(capsys, "compare", *["a.json", "b.json", "c.json"] * 9, "--resamples", "2")
    assert len(content["results"]) == 27


def test_two_results_are_compared_with_p_values(capsys):
    assert main(["compare", "a.json", "a.json", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["result"] for row in rows} == {"a.json (1)", "a.json (2)"}  # one file twice
    assert main(["compare", "a.json", "c.json", "--resamples", "50"]) == 0
    assert "95 %" in capsys.readouterr().out
    assert "there is no result d.json" in refusal(capsys, "compare", "a.json", "d.json", codes=(2,))


def test_json_has_null_for_numbers_that_json_cannot_write(capsys):
    with json_printed(True) as print_json:
        print("a note")
        print_json({"a": float("nan"), "b": [float("inf"), 1.0], "c": (None, "x")})
    shown = capsys.readouterr()
    assert json.loads(shown.out, parse_constant=pytest.fail) == {"a": None, "b": [None, 1.0], "c": [None, "x"]}
    assert shown.err == "a note\n"


def test_list_shows_every_kind_of_name_with_the_option_that_takes_it(capsys):
    kinds = json_of(capsys, "list")
    assert [kind["name"] for kind in kinds] == [*KINDS] == [*get_args(KindName)]
    assert {kind["option"] for kind in kinds} <= set(messages.names_of(commands.load("train").options).values()) | {
        "--store"
    }
    for kind in kinds[1:]:
        rows = json_of(capsys, "list", kind["name"])
        assert [row["name"] for row in rows] == kind["names"]
        assert all(row["summary"] for row in rows), kind
    assert {id(kind.members) for kind in KINDS.values()} - {id(None)} == {id(each) for each in registries()}
    assert main(["list", "branches", "VIVIT*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[2] != " "] == [*registry.BRANCHES.names("vivit*")]
    assert "PATTERN must match one of the stores, got 'x*'" in refusal(capsys, "list", "stores", "x*", codes=(2,))


def test_list_shows_the_names_of_plugins_and_models_with_their_tags(capsys, monkeypatch, restored_registries):
    monkeypatch.setattr(registry, "load_plugins", lambda: registry.register_mixer("mine", print, summary="a mixer"))
    assert json_of(capsys, "list", "mixers", "m*") == [{"name": "mine", "summary": "a mixer"}]
    (row,) = json_of(capsys, "list", "models", "vit-b-32-quick*")
    assert row["name"] == "ViT-B-32-quickgelu"
    assert "openai" in row["pretrained"]


def test_a_plugin_that_cannot_be_imported_is_named(capsys, monkeypatch):
    class Entry:
        name, value, dist = "mine", "no_such_module_of_mine", None

        def load(self) -> None:
            raise ModuleNotFoundError("no module named no_such_module_of_mine")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()])
    error = refusal(capsys, "list", "branches", codes=(1,))
    assert error.startswith("clipvid list: plugin 'mine' of an unnamed package cannot be imported (ModuleNotFoundError")
    assert "please report it" not in error
