"""Data sets on the command line: columns of tables, several paths, and videos that tables and classes name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from refused import refusal, usage_error

from clipvid.cli import commands
from clipvid.cli.main import main
from clipvid.cli.parsing.names import column_pairs
from clipvid.cli.parsing.options import DataOptions
from clipvid.data.motion_shapes import write_dataset

SHORT = ("--model", "clipvid-mini", "--data-config.frames", "2")
COLUMNS = ("--columns", "path=video_path", "caption=text", "label=kind")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folder with four clips, their table under other column names, and the table cut in two; no test changes it."""
    folder = tmp_path_factory.mktemp("work")
    write_dataset(folder / "videos", "test", 4)
    with (folder / "videos" / "test" / "captions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    named = [
        {"video_path": r["path"], "text": r["caption"], "kind": r["label"], "part": "ab"[i % 2]}
        for i, r in enumerate(rows)
    ]
    for name, part in {"all": named, "half-1": named[:2], "half-2": named[2:]}.items():
        with (folder / "videos" / "test" / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(named[0]))
            writer.writeheader()
            writer.writerows(part)
    return folder / "videos" / "test"


@pytest.fixture(autouse=True)
def _in_work(work, monkeypatch):
    monkeypatch.chdir(work)


def columns_of(*words: str) -> dict[str, str] | None:
    """Return the columns that a command line gives for evaluation."""
    data = commands.load("eval").parse(["x", *words]).bound.kwargs.get("data", DataOptions())
    assert isinstance(data, DataOptions)
    return data.column_names()


def test_columns_are_pairs_in_words_with_commas_as_json_and_in_a_file_of_options(tmp_path):
    expected = {"path": "video_path", "caption": "text, long"}
    assert columns_of("--columns", "path=video_path", '{"caption": "text, long"}') == expected
    assert columns_of("--columns", json.dumps(expected)) == expected
    assert columns_of("--columns", "path=a,caption=b") == columns_of("--columns", "path=a", "--columns", "caption=b")
    (tmp_path / "options.yaml").write_text("columns: {path: video_path, caption: 'text, long'}\n")
    assert columns_of("--config", str(tmp_path / "options.yaml")) == expected
    (tmp_path / "options.yaml").write_text("columns: [path=a, caption=b]\n")
    assert columns_of("--config", str(tmp_path / "options.yaml")) == {"path": "a", "caption": "b"}
    assert columns_of() is None
    assert column_pairs(["path=a=b"]) == {"path": "a=b"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval all.csv --columns video_path", "--columns must be pairs such as path=video_path caption=text, got 'vid"),
        ("eval --columns path=a all.csv", "SOURCE is missing; write clipvid eval SOURCE... [options]"),
        ("eval all.csv --columns paht=a", "--columns must name some of path, caption, label, start, end, split, got "),
        ("eval all.csv --columns path=a,path=b", "--columns must name path once, got 'a' and 'b'; leave one of them"),
        ("train . --format folder --columns path=a", "--columns path=a is for tables, and SOURCE is read as folder; "),
        ("embed 00000.mp4 --columns path=a", "--columns path=a is for tables, and SOURCE is read as videos; leave it"),
        ("data check videos . --columns path=a", "--columns path=a is for tables, and SOURCE is read as videos; leave"),
    ],
)  # fmt: skip
def test_wrong_columns_are_refused_before_anything_is_read(capsys, words, message):
    clip = sorted(Path().glob("*.mp4"))[0].name
    assert message in usage_error(capsys, *words.replace("00000.mp4", clip).split())


def test_the_error_about_a_missing_column_says_which_option_to_give(capsys):
    error = refusal(capsys, "eval", "all.csv", *SHORT)
    assert "no column named path, file or video; the columns are video_path, text, kind, part; " in error
    assert "give --columns path=video_path caption=text\n" in error
    assert "no column 'nosuch' for caption" in refusal(capsys, "eval", "all.csv", *SHORT, "--columns", "caption=nosuch")


def test_tables_with_other_columns_are_evaluated_checked_and_trained_on(tmp_path, capsys):
    result = tmp_path / "a.json"
    assert main(["eval", "half-1.csv", "half-2.csv", *COLUMNS, *SHORT, "--out", str(result)]) == 0
    assert json.loads(result.read_text())["data"]["videos"] == 4
    assert main(["data", "check", "csv", "half-*.csv", *COLUMNS, "--workers", "1", "--out", str(tmp_path / "c")]) == 0
    report = json.loads((tmp_path / "c" / "report.json").read_text())
    assert (report["readable"], report["n_captions"], report["name"]) == (4, 4, "half-1 and 1 more")
    words = ["train", "all.csv", *COLUMNS, "split=part", *SHORT, "--out", str(tmp_path / "run")]
    capsys.readouterr()
    assert "all.csv has splits a, b; give --split, the one to train on" in usage_error(capsys, *words)
    assert main([*words, "--split", "a", "--val-split", "b", "--epochs", "1", "--cache-taps"]) == 0
    assert "on 2 validation videos" in capsys.readouterr().out


def test_a_check_of_other_places_with_the_same_name_is_refused(tmp_path, capsys):
    clips = sorted(map(str, Path().glob("*.mp4")))
    words = ["data", "check", "videos", "--workers", "1", "--out", str(tmp_path / "check")]
    assert main([*words[:3], *clips[:2], *words[3:]]) == 0
    assert main([*words[:3], *clips[:2], *words[3:]]) == 0
    assert "nothing new" in capsys.readouterr().out
    error = refusal(capsys, *words[:3], clips[0], clips[2], *words[3:])
    assert "and would be overwritten; give another folder as --out=DIR" in error
    assert "no file to read matches the pattern 'x*.mp4'" in usage_error(capsys, *words[:3], "x*.mp4")


def test_videos_that_a_table_names_are_embedded(tmp_path):
    out = tmp_path / "e.safetensors"
    assert main(["embed", "half-1.csv", *COLUMNS, *SHORT, "--out", str(out)]) == 0
    assert len(json.loads(out.with_suffix(".json").read_text())["paths"]) == 2


def test_an_index_of_classes_is_searched_by_label(tmp_path, capsys):
    index = str(tmp_path / "index")
    words = ["--model", "clipvid-mini", "--frames", "2", "--store", "faiss", "--kind", "flat", "--out", index]
    assert main(["index", "build", "half-1.csv", *COLUMNS, *words]) == 0
    assert main(["index", "add", "half-2.csv", *COLUMNS, "--out", index]) == 0
    with open("all.csv", encoding="utf-8") as file:
        labels = {Path(row["video_path"]).name: row["kind"] for row in csv.DictReader(file)}
    label = next(iter(labels.values()))
    capsys.readouterr()
    for query in (["a red circle"], [next(iter(labels)), "--video"]):
        assert main(["search", index, *query, "--where", f'label = "{label}"', "--json"]) == 0
        hits = json.loads(capsys.readouterr().out)["hits"]
        assert {Path(hit["path"]).name for hit in hits} == {name for name in labels if labels[name] == label}
    assert main(["search", index, "a red circle", "--where", 'label = "nosuch"']) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err.splitlines()[-1]) == (
        "",
        'note: no video of the index passes the filter label = "nosuch"',
    )


def test_every_query_of_a_file_gets_its_hits(tmp_path, capsys):
    index, queries = str(tmp_path / "index"), tmp_path / "queries.txt"
    clips = sorted(map(str, Path().glob("*.mp4")))
    assert main(["index", "build", *clips, "--model", "clipvid-mini", "--frames", "2", "--out", index]) == 0
    queries.write_text("a red circle\n\na blue star\n")
    capsys.readouterr()
    assert main(["search", index, "--queries", str(queries), "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[3], lines[4], len(lines)) == ("a red circle", "", "a blue star", 7)
    assert main(["search", index, "--queries", str(queries), "-k", "2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [entry["query"] for entry in content] == ["a red circle", "a blue star"]
    assert [hit["path"] for hit in content[1]["hits"]] == [line.split("  ")[-1] for line in lines[5:]]
    queries.write_text("\n".join(clips[:2]))
    assert main(["search", index, "--queries", str(queries), "--video", "-k", "1", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [Path(entry["hits"][0]["path"]).name for entry in content] == [Path(clip).name for clip in clips[:2]]
