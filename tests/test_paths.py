"""Several paths are one data set: tables, class folders, patterns and files, in order and without duplicates."""

from __future__ import annotations

import pytest

from clipvid.cli.datasets import format_of
from clipvid.cli.parsing.options import DataOptions
from clipvid.cli.train import _check_out
from clipvid.data.open import guess_format, open_dataset
from clipvid.errors import DataError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_tables_that_match_a_pattern_are_one_data_set(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    for number, text in enumerate(["a.mp4,one,walk\nb.mp4,two,run\n", "c.mp4,three,walk\na.mp4,four,walk\n"]):
        (tmp_path / f"part-{number}.csv").write_text(f"path,caption,label\n{text}")
    data = open_dataset("csv", str(tmp_path / "part-*.csv"))
    (tmp_path / "all.csv").write_text(
        "path,caption,label\na.mp4,one,walk\nb.mp4,two,run\nc.mp4,three,walk\na.mp4,four,walk\n"
    )
    complete = open_dataset(tmp_path / "all.csv")
    assert (data.records, data.classes) == (complete.records, complete.classes)
    assert (data.name, data.source) == ("part-0 and 1 more", tmp_path / "part-0.csv")
    twice = [tmp_path / "part-0.csv", str(tmp_path / "part-?.csv"), tmp_path / "." / "part-1.csv"]
    assert open_dataset("csv", twice).records == data.records
    (tmp_path / "part-1.csv").write_text("path,caption,label\na.mp4,three,run\n")
    with pytest.raises(DataError, match=r"a.mp4 occurs twice, with labels 'walk' and 'run'"):
        open_dataset("csv", str(tmp_path / "part-*.csv"))


def test_numbered_classes_of_several_tables_keep_their_numbers(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("path,label\na.mp4,10\n")
    two.write_text("path,label\nb.mp4,2\n")
    data = open_dataset([two, one])
    assert ([record.label for record in data], len(data.classes)) == ([2, 10], 11)
    two.write_text("path,label\nb.mp4,walk\n")
    with pytest.raises(DataError, match=r"one.csv numbers its classes and .*two.csv names them"):
        open_dataset([one, two])


def test_class_folders_of_several_paths_share_their_classes(tmp_path):
    touch(tmp_path, "x/run/a.mp4", "x/walk/b.mp4", "y/jump/c.mp4", "y/run/d.mp4")
    data = open_dataset("folder", [tmp_path / "x", tmp_path / "y"])
    assert data.classes == ("jump", "run", "walk")
    assert [(record.path.name, record.label) for record in data] == [
        ("a.mp4", 1), ("b.mp4", 2), ("c.mp4", 0), ("d.mp4", 1),
    ]  # fmt: skip


def test_patterns_and_files_are_read_in_order_without_duplicates(tmp_path, monkeypatch):
    touch(tmp_path, "b.mp4", "deep/er/a.mkv", "deep/c.mp4", "notes.txt", "[1].mp4")
    monkeypatch.chdir(tmp_path)
    names = [str(record.path) for record in open_dataset("videos", ["deep/c.mp4", "**/*", "[[]1].mp4", "[1].mp4"])]
    assert names == ["deep/c.mp4", "[1].mp4", "b.mp4", "deep/er/a.mkv"]
    assert [str(record.path) for record in open_dataset(["b.mp4", "deep"])] == ["b.mp4", "deep/c.mp4", "deep/er/a.mkv"]
    with pytest.raises(DataError, match=r"no file to read matches the pattern '\*\*/\*\.avi'"):
        open_dataset("videos", "**/*.avi")
    with pytest.raises(DataError, match="no videos were given; name files"):
        open_dataset("videos", [])
    with pytest.raises(DataError, match=r"gone\.mp4 does not exist; correct the path"):
        open_dataset("videos", ["b.mp4", "gone.mp4"])
    with pytest.raises(ValueError, match="one folder for a protocol and with annotations, got 2; open them one by one"):
        open_dataset("msvd", ["deep", "."])


@pytest.mark.parametrize("table", ["captions.tsv", "CAPTIONS.CSV"])
def test_a_folder_with_a_table_is_read_as_one_in_python_and_by_commands(tmp_path, table):
    touch(tmp_path, "x.mp4", "._hidden.csv", "run/a.mp4")
    assert guess_format(tmp_path) == "folder"
    with pytest.raises(ValueError, match="would lie among the videos"):
        _check_out(str(tmp_path / "out"), (str(tmp_path),), None, resume=False)
    (tmp_path / table).write_text("path,caption\nx.mp4,x\n")
    assert guess_format(tmp_path) == format_of(str(tmp_path), DataOptions()) == "csv"
    assert open_dataset(tmp_path).n_captions == 1
    _check_out(str(tmp_path / "out"), (str(tmp_path),), None, resume=False)


def test_files_beside_the_folders_of_a_pattern_are_left_out(tmp_path, monkeypatch):
    touch(tmp_path, "parts/x/run/a.mp4", "parts/y/run/b.mp4", "parts/README.txt")
    monkeypatch.chdir(tmp_path)
    for arguments in (("folder", "parts/*"), ("parts/*",)):
        data = open_dataset(*arguments)
        assert (len(data), data.classes) == (2, ("run",))


def test_the_format_is_guessed_from_the_paths(tmp_path, monkeypatch):
    touch(tmp_path, "run/a.mp4", "walk/b.mp4", "tables/x.mp4")
    (tmp_path / "tables" / "any.csv").write_text("path,caption\nx.mp4,x\n")
    monkeypatch.chdir(tmp_path)
    assert open_dataset("tables").n_captions == 1
    assert open_dataset("tables/any.csv").n_captions == 1
    assert open_dataset(["run/a.mp4", "walk/*"]).classes == ()
    assert guess_format(".", default="videos") == "videos"
    with pytest.raises(DataError, match="tables is or holds a table and run is none"):
        open_dataset(["run", "tables"])
    with pytest.raises(
        ValueError, match=r"msvd is a format and needs a root; give the folder: open_dataset\('msvd', root"
    ):
        open_dataset("msvd")
