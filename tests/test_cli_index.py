"""The commands of an index: refresh, remove and verify, and a clean stop that loses nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from refused import refusal

from clipvid.cli.main import main


@pytest.fixture
def write_shade(write_video):
    """Return a function that writes a video of three frames of one grey level."""
    return lambda path, shade: write_video(Path(path), np.full((3, 32, 32, 3), shade, np.uint8))


@pytest.fixture
def videos(tmp_path, monkeypatch, write_shade):
    """Return a folder with an index of three clips beside it."""
    monkeypatch.chdir(tmp_path)
    Path("videos").mkdir()
    for name, shade in (("dark", 20), ("grey", 120), ("light", 220)):
        write_shade(f"videos/{name}.mp4", shade)
    assert main(["index", "build", "videos", "--frames", "2", "--out", "index"]) == 0
    return Path("videos")


def test_verify_compares_the_index_and_its_videos(videos, capsys):
    capsys.readouterr()
    assert main(["index", "verify", "index"]) == 0
    assert capsys.readouterr().out == "3 videos, 3 files as written\n"
    (videos / "dark.mp4").unlink()
    os.replace(videos / "grey.mp4", videos / "light.mp4")
    assert main(["index", "verify", "index"]) == 1
    captured = capsys.readouterr()
    gone = [os.path.abspath(videos / name) for name in ("dark.mp4", "grey.mp4")]
    assert captured.out.splitlines() == [
        *(f"gone {path}" for path in gone),
        f"changed {os.path.abspath(videos / 'light.mp4')}",
        "3 videos, 3 files as written",
    ]
    assert "3 videos of index changed or gone; clipvid index refresh index embeds them again" in captured.err
    path = Path("index/store/vectors.faiss")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert "vectors.faiss is damaged: its bytes have changed" in refusal(capsys, "index", "verify", "index", codes=(1,))


def test_refresh_lists_what_went_and_embeds_what_changed(videos, capsys, write_shade):
    (videos / "dark.mp4").unlink()
    write_shade(videos / "grey.mp4", 200)
    capsys.readouterr()
    assert main(["index", "refresh", "index"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"removed {os.path.abspath(videos / 'dark.mp4')}, whose file has gone",
        "1 video embedded again, 1 removed",
    ]
    assert main(["index", "verify", "index"]) == 0


def test_search_marks_hits_whose_file_has_gone(videos, capsys):
    (videos / "dark.mp4").unlink()
    capsys.readouterr()
    assert main(["search", "index", "something", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {Path(hit["path"]).stem: hit["outdated"] for hit in hits} == {"dark": "gone", "grey": None, "light": None}
    assert main(["search", "index", "something"]) == 0
    assert "dark.mp4 (gone; clipvid index refresh)" in capsys.readouterr().out


def test_remove_takes_videos_out_and_leaves_their_files(videos, capsys):
    assert main(["index", "remove", "index", "videos/dark.mp4", "videos/new.mp4"]) == 2
    assert "videos/new.mp4 is not in index, so nothing was removed" in capsys.readouterr().err
    assert main(["index", "remove", "index", "videos/dark.mp4"]) == 0
    assert capsys.readouterr().out == "1 video removed, 2 left\n"
    assert (videos / "dark.mp4").exists()


def test_a_moved_root_is_given_by_option(videos, capsys):
    videos.rename("elsewhere")
    assert main(["index", "refresh", "index", "--root", "elsewhere"]) == 0
    assert "0 videos embedded again, 0 removed" in capsys.readouterr().out
    assert main(["index", "verify", "index"]) == 0


@pytest.mark.parametrize("command", ["refresh", "remove", "verify"])
def test_a_folder_without_an_index_is_refused(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    words = ["videos/a.mp4"] if command == "remove" else []
    assert "holds no index" in refusal(
        capsys, "index", command, "nothing", *words, codes=(1 if command == "verify" else 2,)
    )


def test_removing_the_only_video_is_saved(videos, capsys, monkeypatch):
    monkeypatch.setattr("clipvid.cli.arguments.named_model", None)  # no model is loaded
    names = [f"videos/{name}.mp4" for name in ("dark", "grey", "light")]
    assert main(["index", "remove", "index", *names]) == 0
    assert capsys.readouterr().out.endswith("3 videos removed, 0 left\n")
    assert main(["index", "verify", "index"]) == 0
    assert capsys.readouterr().out == "0 videos, 3 files as written\n"


def test_remove_takes_names_as_they_are_printed_where_they_are_of_one_video(videos, capsys, write_shade, tmp_path):
    printed = str(videos.absolute() / r"a\x0ab.mp4")
    write_shade("videos/a\nb.mp4", 60)
    assert main(["index", "add", "videos", "--out", "index"]) == 0
    capsys.readouterr()
    assert main(["search", "index", "something"]) == 0
    assert printed in capsys.readouterr().out
    write_shade(printed, 60)
    assert main(["index", "add", "videos", "--out", "index"]) == 0
    assert main(["index", "remove", "index", printed]) == 0  # a path as it is comes first
    assert main(["index", "remove", "index", r"videos/a\x0ab.mp4"]) == 0
    assert "1 video removed, 3 left" in capsys.readouterr().out
    for name in ("a\x1bb", "a\x1b\\x1bb", "a\\x1b\x1bb"):  # the last two are printed alike
        write_shade(f"videos/{name}.mp4", 60)
    assert main(["index", "add", "videos", "--out", "index"]) == 0
    capsys.readouterr()
    assert r"a\x1b\x1bb.mp4 is how 2 videos of index are printed" in refusal(
        capsys, "index", "remove", "index", r"videos/a\x1b\x1bb.mp4", codes=(2,)
    )


def test_refresh_removes_all_videos_only_if_told_so(videos, capsys):
    for path in videos.iterdir():
        path.unlink()
    capsys.readouterr()
    assert main(["index", "refresh", "index"]) == 1
    message = capsys.readouterr().err
    assert "all 3 videos of the index are gone" in message
    assert "or --remove-all to remove them" in message
    assert main(["index", "refresh", "index", "--remove-all"]) == 0
    assert "0 videos embedded again, 3 removed" in capsys.readouterr().out
    assert main(["index", "verify", "index"]) == 0
    assert capsys.readouterr().out.startswith("0 videos")


def test_a_moved_root_is_given_to_search_add_and_remove(videos, capsys, write_shade):
    videos.rename("elsewhere")
    write_shade("elsewhere/new.mp4", 60)
    capsys.readouterr()
    assert main(["search", "index", "something", "--root", "elsewhere", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {os.path.dirname(hit["path"]) for hit in hits} == {os.path.abspath("elsewhere")}
    assert "--root must be a folder with videos of index" in refusal(
        capsys, "index", "remove", "index", "elsewhere/dark.mp4", "--root", "index", codes=(1, 2)
    )
    assert main(["index", "remove", "index", "elsewhere/dark.mp4", "--root", "elsewhere"]) == 0
    Path("elsewhere").rename("again")
    assert main(["index", "add", "again/new.mp4", "--out", "index", "--root", "again"]) == 0
    assert "3 videos in index (1 added)" in capsys.readouterr().out
    assert main(["index", "verify", "index"]) == 0


def test_unreadable_videos_are_listed_and_stay(videos, capsys, monkeypatch):
    refused, stat = os.path.abspath("videos/dark.mp4"), os.stat

    def refusing(path, *args, **options):
        if not isinstance(path, int) and os.fspath(path) == refused:
            raise PermissionError(13, "refused", refused)
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refusing)
    capsys.readouterr()
    assert main(["index", "verify", "index"]) == 1
    captured = capsys.readouterr()
    assert f"unreadable {refused}\n" in captured.out
    assert "1 video of index cannot be looked up; check the volume" in captured.err
    assert main(["index", "refresh", "index"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"left {refused}, whose file cannot be looked up",
        "0 videos embedded again, 0 removed",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["search", "index", "something"],
        ["index", "add", "videos", "--out", "index"],
        ["index", "refresh", "index"],
        ["index", "remove", "index", "videos/dark.mp4"],
        ["index", "verify", "index"],
    ],
    ids=" ".join,
)
def test_an_index_whose_replacement_was_killed_is_brought_back_by_every_command(videos, capsys, words):
    move_aside(Path("index"))
    assert main(words) == 0
    assert Path("index/index.json").is_file()


def test_a_build_replaces_no_index_whose_replacement_was_killed(videos, capsys):
    content = Path("index/index.json").read_bytes()
    move_aside(Path("index"))
    assert "index holds an index" in refusal(capsys, "index", "build", "videos", "--out", "index", codes=(1, 2))
    assert Path("index/index.json").read_bytes() == content


def move_aside(folder):
    """Leave a folder as a writer that was killed between its two renames does."""
    staging = folder.with_name(f".{folder.name}.abcdefgh.part")
    (staging / "old").mkdir(parents=True)
    (staging / "lock").touch()
    folder.rename(staging / "old" / folder.name)


def test_verify_says_that_an_older_format_has_no_hashes(videos, capsys):
    metadata = json.loads(Path("index/index.json").read_text())
    paths = [os.path.join(metadata["root"], video["path"]) for video in metadata.pop("videos")]
    older = {name: value for name, value in metadata.items() if name not in ("format_version", "id", "root")}
    Path("index/index.json").write_text(json.dumps({**older, "format": 2, "paths": paths}))
    rows = json.loads(Path("index/store/rows.json").read_text())
    columns = [{**row, "path": path} for row, path in zip(rows["metadata"], paths, strict=True)]
    Path("index/store/rows.json").write_text(json.dumps({**rows, "ids": paths, "metadata": columns}))
    Path("index/manifest.json").unlink()
    capsys.readouterr()
    assert main(["index", "verify", "index"]) == 0
    assert capsys.readouterr().out.startswith("3 videos, files not compared: the index has an older format without")
    assert main(["index", "add", "videos", "--out", "index"]) == 0
    capsys.readouterr()
    assert main(["index", "verify", "index"]) == 0
    assert capsys.readouterr().out == "3 videos, 3 files as written\n"
