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
