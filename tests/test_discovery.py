"""One discovery for all commands: the same files in odd folders, and a reason for everything that is left out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refused import refusal

from clipvid.cli import datasets
from clipvid.cli.main import main
from clipvid.cli.parsing.options import DataOptions
from clipvid.data.files import describe_left_out, discover
from clipvid.data.open import open_dataset, read_dataset
from clipvid.errors import DataError
from clipvid.search.videos import video_records

MP4 = b"\0\0\0\x18ftypisom"


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe.mp4")
    (folder / "a.mp4").touch()


def _touch(*names: str) -> Callable[[Path], None]:
    """Return a function that creates empty files, and folders for names that end in a slash."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                (folder / name).mkdir(exist_ok=True)
            else:
                (folder / name).touch()

    return make


def _linked(**links: str) -> Callable[[Path], None]:
    """Return a function that creates a.mp4, and links with the suffix .mp4 to other names."""

    def make(folder: Path) -> None:
        _touch("a.mp4", "deep/b.mp4")(folder)
        for name, target in links.items():
            (folder / name.replace("_", ".")).symlink_to(target)

    return make


def _without_suffix(folder: Path) -> None:
    (folder / "bare").write_bytes(MP4)
    (folder / "v1.2 final").write_bytes(MP4)
    (folder / "README").write_text("no video")
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")


ODD: dict[str, tuple[Callable[[Path], None], tuple[str, ...], dict[str, str]]] = {
    "flat": (_touch("b.mp4", "a.webm", "C.MKV"), ("C.MKV", "a.webm", "b.mp4"), {}),
    "deep": (_touch("x/y/z/a.mp4", "b.mp4"), ("b.mp4", "x/y/z/a.mp4"), {}),
    "subtitles": (
        _touch("a.mp4", "a.srt", "a.JSON"),
        ("a.mp4",),
        {"a.JSON": ".json is not the suffix", "a.srt": ".srt is not the suffix"},
    ),
    "cover": (_touch("a.mp4", "cover.jpg"), ("a.mp4",), {"cover.jpg": "a picture beside videos"}),
    "frames beside a video": (
        _touch("a.mp4", "frames/1.jpg", "frames/2.jpg"),
        ("a.mp4",),
        {"frames": "a folder of pictures beside videos"},
    ),
    "cover of a folder": (_touch("x/a.mp4", "x/a.png"), ("x/a.mp4",), {"x/a.png": "a picture beside videos"}),
    "frames": (_touch("x/1.jpg", "x/2.jpg", "y/1.png"), ("x", "y"), {}),
    "frames and notes": (_touch("x/1.jpg", "x/notes.txt"), ("x",), {"x/notes.txt": ".txt is not the suffix"}),
    "nested frames": (_touch("x/1.jpg", "x/y/2.jpg"), ("x/1.jpg", "x/y"), {}),
    "pictures": (_touch("1.jpg", "2.PNG"), ("1.jpg", "2.PNG"), {}),
    "hidden": (
        _touch("a.mp4", ".b.mp4", "._a.mp4", ".git/c.mp4"),
        ("a.mp4",),
        {"._a.mp4": "hidden", ".b.mp4": "hidden", ".git": "hidden"},
    ),
    "empty folders": (_touch("a.mp4", "none/", "deep/none/"), ("a.mp4",), {}),
    "no suffix": (
        _without_suffix,
        ("bare",),
        {
            "README": "no suffix, and it does not begin like a video",
            "empty": "no suffix, and it does not begin like a video",
            "pipe": "not a regular file",
            "v1.2 final": ".2 final is not the suffix",
        },
    ),
    "special": (_fifo, ("a.mp4",), {"pipe.mp4": "not a regular file"}),
    "folder like a video": (_touch("a.mp4/1.mp4", "b.mp4"), ("a.mp4/1.mp4", "b.mp4"), {}),
    "link to a file": (_linked(c_mp4="a.mp4"), ("a.mp4", "c.mp4", "deep/b.mp4"), {}),
    "dangling": (_linked(c_mp4="gone.mp4"), ("a.mp4", "deep/b.mp4"), {}),
    "dangling note": (_linked(c_txt="gone"), ("a.mp4", "deep/b.mp4"), {"c.txt": ".txt is not the suffix"}),
    "link to itself": (_linked(c_mp4="c.mp4"), ("a.mp4", "deep/b.mp4"), {}),
    "linked folder": (_linked(other="deep"), ("a.mp4", "deep/b.mp4"), {"other": "a link to a folder that is read"}),
    "link before its folder": (_linked(alink="deep"), ("a.mp4", "deep/b.mp4"), {"alink": "a link to a folder that"}),
    "cycle": (_linked(up="."), ("a.mp4", "deep/b.mp4"), {"up": "a link to a folder that is read already"}),
    "odd names": (
        _touch("a b.mp4", "-i.mp4", "ü.mp4", "new\nline.mp4", "*.mp4"),
        ("*.mp4", "-i.mp4", "a b.mp4", "new\nline.mp4", "ü.mp4"),
        {},
    ),
    "bytes": (_touch(os.fsdecode(b"\xff.mp4"), "a.mp4"), ("a.mp4", os.fsdecode(b"\xff.mp4")), {}),
    "table": (_touch("a.mp4", "b.mp4", "data.parquet"), ("a.mp4", "b.mp4"), {"data.parquet": ".parquet is not the"}),
}
"""Odd folders: what creates one, the clips to find, and the reasons for which the others are left out."""
DANGLING = {"dangling": ("c.mp4",), "link to itself": ("c.mp4",)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
@pytest.mark.parametrize("name", ODD)
def test_all_commands_see_the_same_files(name, tmp_path, monkeypatch, capsys):
    make, clips, reasons = ODD[name]
    folder = tmp_path / "root" / "class"
    folder.mkdir(parents=True)
    make(folder)
    expected, dangling = [folder / clip for clip in clips], [folder / link for link in DANGLING.get(name, ())]

    # index and embed, on the command line and in Python
    opened = datasets.videos_of([str(folder)], DataOptions())
    assert {record.path for record in opened} == {*expected, *dangling}
    assert {record.path for record in video_records(folder)} == {*expected, *dangling}
    note = capsys.readouterr().err
    assert (describe_left_out(opened.left_out) in note) if reasons else note == ""
    # self-supervised training and data check; eval, training and their caches
    for data in (read_dataset("videos", folder), read_dataset("folder", folder.parent)):
        assert sorted(record.path for record in data) == sorted(expected)
        assert list(data.missing) == dangling
        left_out = {entry.path.relative_to(folder).as_posix(): entry.reason for entry in data.left_out}
        assert left_out.keys() == reasons.keys()
        assert all(left_out[path].startswith(reason) for path, reason in reasons.items())
    if dangling:
        with pytest.raises(DataError, match=r"1 of 3 videos are missing: .*c\.mp4; fetch them, or allow it"):
            open_dataset("folder", folder.parent)


def test_a_pattern_and_its_folder_name_the_same_files(tmp_path, monkeypatch, capsys):
    _without_suffix(tmp_path)
    (tmp_path / "a.mp4").touch()
    monkeypatch.chdir(tmp_path)
    expected = {"a.mp4", "bare"}
    assert {record.path.name for record in datasets.videos_of(["*"], DataOptions())} == expected
    note = capsys.readouterr().err
    assert "note: *: left out: README and 1 more (no suffix, and it does not begin like a video)" in note
    assert {record.path.name for record in video_records("*")} == expected
    data = open_dataset("videos", "*")
    assert {record.path.name for record in data} == expected
    assert [entry.path.name for entry in data.left_out] == ["README", "empty", "pipe", "v1.2 final"]


def test_a_folder_without_a_video_says_what_it_holds_instead(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt", "d.zip"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"holds no video; .*; left out: .*a\.txt and 2 more \(\.txt is not the suffix"):
        open_dataset("videos", tmp_path)


def test_pictures_beside_class_folders_are_left_out_with_a_reason(tmp_path):
    for name in ("run/a.mp4", "walk/b.mp4", "cover.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    data = open_dataset("folder", tmp_path)
    assert [(path.name, reason) for path, reason in data.left_out] == [("cover.png", "a picture beside class folders")]
    assert "1 left out" in repr(data)


def test_every_file_is_a_clip_or_left_out(tmp_path):
    """A tree of random names: nothing is lost, and nothing is found twice."""
    rng = np.random.default_rng()
    names = ["a.mp4", "b.jpg", "c.txt", "d", ".e.mp4", "F.MKV", "g.csv", "h.png"]
    for _ in range(60):
        folder = tmp_path.joinpath(*rng.choice(["x", "y", ".z", "w"], size=rng.integers(0, 4)))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{rng.choice(names)}").touch()
    contents = discover(tmp_path)
    covered = [*contents.clips, *(entry.path for entry in contents.left_out)]
    assert len(set(covered)) == len(covered)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        above = [each for each in covered if each.is_dir() and path.is_relative_to(each)]
        assert path in covered or above, path
        if path in contents.clips:
            assert not above, "a clip is not below another, nor below a folder that is left out"


def test_two_files_for_one_name_are_an_error_that_names_both_unless_the_root_chooses(tmp_path):
    for name in ("240p/video1.mp4", "full/video1.mp4", "full/video2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "own.csv").write_text("video_id,sentence\nvideo1,a dog\nvideo2,a cat\n")
    with pytest.raises(DataError, match=r"video1 has 2 different files, .*240p/video1\.mp4, .*full/video1\.mp4; give"):
        open_dataset("msrvtt-1ka", tmp_path, annotations=tmp_path / "own.csv")
    data = open_dataset("msrvtt-1ka", tmp_path / "full", annotations=tmp_path / "own.csv")
    assert [record.path.parent.name for record in data] == ["full", "full"]
    shutil.copy(tmp_path / "full" / "video1.mp4", tmp_path / "240p" / "video1.mp4")
    assert len(open_dataset("msrvtt-1ka", tmp_path, annotations=tmp_path / "own.csv")) == 2, "equal copies are one"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, write_video) -> Path:
    """Two classes of readable videos, one of them without a suffix, among other files."""
    root = tmp_path_factory.mktemp("mixed") / "videos"
    for name in ("run/a.mp4", "run/deep/b.mp4", "walk/c.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, np.zeros((4, 32, 32, 3), dtype=np.uint8))
    shutil.copy(root / "run" / "a.mp4", root / "walk" / "bare")
    (root / "walk" / "notes.txt").write_text("none")
    (root / "run" / "frames").mkdir()
    (root / "run" / "frames" / "1.png").touch()
    return root


def test_the_commands_list_the_same_files_and_the_same_that_are_left_out(mixed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mixed, "videos")
    mini = ("--model", "clipvid-mini")
    frames = ("--data-config.frames", "1")
    expected = {"videos/run/a.mp4", "videos/run/deep/b.mp4", "videos/walk/c.mp4", "videos/walk/bare"}
    note = (
        "note: videos: left out: videos/run/frames (a folder of pictures beside videos), videos/walk/notes.txt (.txt "
        "is not the suffix of a video)"
    )

    def err() -> str:
        return capsys.readouterr().err

    assert main(["index", "build", "videos", *mini, "--frames", "1", "--out", "index"]) == 0
    assert note in err()
    stored = json.loads(Path("index/index.json").read_text())["videos"]
    assert {f"videos/{video['path']}" for video in stored} == expected
    assert main(["embed", "videos", *mini, *frames]) == 0
    assert note in err()
    assert set(json.loads(Path("embeddings.json").read_text())["paths"]) == expected
    words = ["--zero-shot", "--per-query", "q.csv", "--cache", "taps"]
    assert main(["eval", "videos", *mini, *frames, *words]) == 0
    assert note in err()
    assert set(pd.read_csv("q.csv")["path"]) == expected
    assert main(["cache", "ls", "taps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["rows"] == 4
    assert main(["data", "check", "videos", "videos", "--workers", "1"]) == 0
    report = json.loads(Path("clipvid-check/videos/report.json").read_text())
    assert report["readable"] == 4
    assert set(report["left_out"]) == {"videos/run/frames", "videos/walk/notes.txt"}
    assert "left out: 2" in capsys.readouterr().out
    Path("videos/gone.mp4").symlink_to("nowhere")
    shutil.rmtree("videos/run")
    assert main(["index", "build", "videos", *mini, "--frames", "1", "--out", "other"]) == 0
    assert "videos/gone.mp4" in err()
    assert "1 of 3 videos are missing: videos/gone.mp4" in refusal(
        capsys, "train", "videos", "--format", "videos", "--task", "selfsup", *mini
    )
