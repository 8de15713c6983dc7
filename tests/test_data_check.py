"""The data set check: every kind of problem is counted and named, and files are decoded once, even after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from refused import refusal

from clipvid.cli.main import main
from clipvid.data.check import LOG, check
from clipvid.data.open import open_dataset, read_dataset
from clipvid.errors import DataError

HOSTILE = Path(__file__).parents[2] / "shared" / "data" / "hostile"


@pytest.fixture
def tree(tmp_path, write_video):
    """Return the folder of a table of six videos: two good ones, a copy, one frame, a text file, and a missing one."""
    rng = np.random.default_rng(0)
    for name, frames in (("a", 10), ("b", 12), ("one", 1)):
        write_video(tmp_path / f"{name}.mp4", rng.integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8), fps=5)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "copy.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "captions.csv").write_text(
        "path,caption,start,end\na.mp4,a dog runs,0,9\nb.mp4,a cat,,\nb.mp4,a cat,,\ncopy.mp4,one two three four,,\n"
        "one.mp4,x,,\ntext.mp4,y,,\ngone.mp4,z,,\n"
    )
    return tmp_path


def test_dangling_links_are_listed_as_missing_and_are_no_duplicates(tmp_path, write_video):
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", np.zeros((4, 32, 32, 3), dtype=np.uint8), fps=5)
    links = [tmp_path / "clips" / name for name in ("b.mp4", "c.mp4")]
    for link in links:
        link.symlink_to(tmp_path / "gone.mp4")
    for _ in range(2):  # the second time from the log
        report = check(read_dataset("videos", tmp_path / "clips"), tmp_path / "out", workers=1)
        assert (report.expected, report.readable, report.duplicates) == (3, 1, ())
        assert report.missing == tuple(map(str, links))
    with pytest.raises(DataError, match="2 of 3 videos are missing"):
        open_dataset("videos", tmp_path / "clips")
    shutil.copy(tmp_path / "clips" / "a.mp4", tmp_path / "gone.mp4")
    assert check(open_dataset("videos", tmp_path / "clips"), tmp_path / "out", workers=1).readable == 3


def test_every_kind_of_problem_is_counted_and_named(tree):
    data = open_dataset("csv", tree, allow_missing=True)
    report = check(data, tree / "out", workers=1, longest=3)
    assert (report.expected, report.readable, report.probed) == (6, 4, 5)
    assert [Path(path).name for path in report.missing] == ["gone.mp4"]
    assert {Path(path).name: reason for path, reason in report.unreadable.items()}.keys() == {"text.mp4"}
    assert [{Path(p).name for p in duplicates} for duplicates in report.duplicates] == [{"a.mp4", "copy.mp4"}]
    odd = {Path(path).name: problem for path, problem in report.suspicious.items()}
    assert odd == {"one.mp4": "a single frame", "a.mp4": "the annotations use it up to 9 s, it ends at 2.00 s"}
    assert {Path(path).name: problem for path, problem in report.captions.items()} == {
        "b.mp4": "the same caption more than once",
        "copy.mp4": "1 of 1 have more than 3 words",
    }
    assert report.kinds == {"h264": 4, "unreadable": 1}
    assert not report.healthy
    text = str(report)
    for words in (
        "4 of 6 videos can be read",
        "missing: 1",
        "gone.mp4",
        "unreadable: 1",
        "duplicates: 1",
        "suspicious: 2",
    ):
        assert words in text
    assert json.loads((tree / "out" / "report.json").read_text())["expected"] == 6


def test_paths_alone_are_checked_in_the_format_that_is_guessed(tree, monkeypatch, capsys):
    monkeypatch.chdir(tree)
    monkeypatch.setattr("clipvid.data.check._probed", lambda paths, **_: map(_fake_probe, paths))
    for path in ("clips/run/a.mp4", "videos/run/a.mp4"):
        Path(path).parent.mkdir(parents=True)
        shutil.copy("a.mp4", path)
    outcomes = {
        "clips": "clips: 1 of 1 videos can be read",
        "videos": "videos: 1 of 1 videos can be read",
        "a.mp4 b.mp4": "2 of 2 videos can be read",
        "[ab].mp4": "2 of 2 videos can be read",
    }
    for words, line in outcomes.items():
        assert main(["data", "check", *words.split()]) == 0
        assert line in capsys.readouterr().out
    assert main(["data", "check", "captions.csv"]) == 1  # one of its videos is missing
    assert "5 of 6 videos can be read" in capsys.readouterr().out
    assert "nosuch is neither a format nor a path that exists; correct it" in refusal(capsys, "data", "check", "nosuch")


def test_the_report_of_another_data_set_is_never_overwritten(tree, monkeypatch, capsys):
    monkeypatch.chdir(tree)
    monkeypatch.setattr("clipvid.data.check._probed", lambda paths, **_: map(_fake_probe, paths))
    for folder in ("one/clips", "two/clips"):
        Path(folder).mkdir(parents=True)
        shutil.copy("a.mp4", f"{folder}/a.mp4")
    assert main(["data", "check", "folder", "one/clips"]) == 0
    assert (
        "no classes and no captions, enough for search and task selfsup; recognition needs" in capsys.readouterr().out
    )
    assert main(["data", "check", "folder", "one"]) == 0
    assert "1 class, 0 captions\n" in capsys.readouterr().out
    assert main(["data", "check", "videos", "two"]) == 0
    assert main(["data", "check", "folder", "one/clips"]) == 0
    assert "report: clipvid-check/folder-clips/report.json" in capsys.readouterr().out
    stored = Path("clipvid-check/folder-clips/report.json").read_bytes()
    error = refusal(capsys, "data", "check", "folder", "two/clips")
    assert f"report.json is about clips in {tree.resolve()}/one/clips, and would be overwritten; give another" in error
    assert "report.json is about two in " in refusal(
        capsys, "data", "check", "folder", "one/clips", "--out", "clipvid-check/videos-two"
    )
    assert Path("clipvid-check/folder-clips/report.json").read_bytes() == stored
    assert main(["data", "check", "folder", "one/clips"]) == 0


def _fake_probe(path: Path) -> dict[str, object]:
    info = {"codec": "h264", "frames": 10, "duration": 2.0}
    return {"path": str(path), "stamp": [0, 0], "content": str(path), "info": info}


def test_files_are_decoded_once_and_changed_ones_again(tree, write_video):
    data = open_dataset("csv", tree, allow_missing=True)
    first = check(data, tree / "out", workers=1)
    with (tree / "out" / LOG).open("a") as log:
        log.write('{"path": "cut o')  # a kill leaves a cut line
    again = check(data, tree / "out", workers=1)
    assert (first.probed, again.probed) == (5, 0)
    assert again.unreadable == first.unreadable
    (tree / "text.mp4").unlink()
    write_video(tree / "text.mp4", np.zeros((4, 32, 32, 3), dtype=np.uint8))
    mended = check(data, tree / "out", workers=1)
    assert (mended.probed, len(mended.unreadable)) == (1, 0)


def test_progress_says_when_workers_are_starting(tree, capsys):
    data = open_dataset("csv", tree, allow_missing=True)
    for part, ending in ((data.subset([0]), "starting 1 worker]"), (data, "starting 2 workers]")):
        check(part, tree / "out", workers=2, progress=True)
        lines = capsys.readouterr().err.rstrip().split("\r")
        assert lines[1].endswith(ending)
        assert "starting" not in lines[-1]


def test_progress_mentions_no_workers_when_none_start(tree, capsys):
    data = open_dataset("csv", tree, allow_missing=True)
    check(data, tree / "out", workers=1)
    check(data, tree / "out", workers=1, progress=True)
    assert "starting" not in capsys.readouterr().err


def test_a_file_that_takes_too_long_is_named(tree):
    data = open_dataset("csv", tree, allow_missing=True).subset([0])
    report = check(data, tree / "out", workers=1, limit=1e-6)
    assert list(report.unreadable.values()) == ["took more than 1e-06 s to decode"]


@pytest.mark.shared_data("hostile")
def test_hostile_files_neither_end_nor_hang_the_check(tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for path in HOSTILE.iterdir():
        if path.is_file() and path.suffix not in (".csv", ".md", ".txt") and path.stat().st_size:
            shutil.copy(path, folder)
    report = check(open_dataset("videos", folder), tmp_path / "out", workers=1, limit=10)
    assert report.readable + len(report.unreadable) == report.expected > 15
    assert len(report.unreadable) > 5
    assert all(reason for reason in report.unreadable.values())


def test_a_killed_check_goes_on_and_decodes_no_file_twice(tmp_path, write_video):
    """Use sixty files; the slow test has ten thousand."""
    killed_and_resumed(tmp_path, write_video, files=60, after=15)


@pytest.mark.slow
def test_a_killed_check_of_ten_thousand_files_goes_on(tmp_path, write_video):
    report = killed_and_resumed(tmp_path, write_video, files=10_000, after=1500)
    print(f"{report.probed / report.seconds:.0f} files a second")


def killed_and_resumed(folder, write_video, *, files, after):
    """Kill a check once it has logged `after` files, run it again, and return the report of the second run."""
    videos = folder / "videos"
    videos.mkdir()
    first = write_video(videos / "00000.mp4", np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8))
    data = first.read_bytes()
    for i in range(1, files):  # bytes after the end change the content hash and no frame
        (videos / f"{i:05d}.mp4").write_bytes(data + i.to_bytes(3, "big"))
    code = (
        "import sys; from clipvid.data.check import check; from clipvid.data.open import open_dataset\n"
        "if __name__ == '__main__': check(open_dataset('videos', sys.argv[1]), sys.argv[2], workers=2)"
    )
    script = folder / "run.py"
    script.write_text(code)
    log = folder / "out" / LOG
    process = subprocess.Popen([sys.executable, str(script), str(videos), str(folder / "out")])
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= after):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    report = check(open_dataset("videos", videos), folder / "out", workers=2)
    lines = [json.loads(line)["path"] for line in log.read_text().splitlines() if line.endswith("}")]
    assert len(set(lines)) == len(lines) == files, "no file is decoded twice"
    assert (report.readable, report.expected) == (files, files)
    assert report.probed <= files - after
    return report


DEADLY = """
import os, signal, sys
from pathlib import Path
from clipvid.data import check as data_check
from clipvid.data.open import open_dataset

folder = Path(sys.argv[1])

def probe(path):
    with (folder / "calls.txt").open("a") as calls:
        calls.write(path.name + chr(10))
    if path.name in sys.argv[2:] or (path.name == "once.mp4" and (folder / "calls.txt").read_text().count("once") == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(path)

if __name__ != "__main__":  # the workers import this script, and they alone decode
    from clipvid.video import decode

    original, decode.probe = decode.probe, probe
else:
    report = data_check.check(open_dataset("videos", folder / "videos"), folder / "out", workers=1)
    print(sorted(Path(path).name for path in report.unreadable), report.readable)
"""


def run_script(folder: Path, text: str, *args: str) -> subprocess.CompletedProcess[str]:
    (folder / "run.py").write_text(text)
    command = [sys.executable, str(folder / "run.py"), str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def four(tmp_path, write_video) -> Path:
    """Write four videos to the folder `videos` and return its parent."""
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "once", "z"):
        write_video(tmp_path / "videos" / f"{name}.mp4", np.zeros((3, 16, 16, 3), dtype=np.uint8))
    return tmp_path


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_file_is_blamed_only_after_two_workers_died_on_it(four):
    done = run_script(four, DEADLY, "b.mp4")
    assert done.stdout == "['b.mp4'] 3\n", done.stderr
    calls = (four / "calls.txt").read_text().split()
    assert [calls.count(f"{name}.mp4") for name in ("a", "b", "once", "z")] == [1, 2, 2, 1]
    log = [json.loads(line) for line in (four / "out" / LOG).read_text().splitlines()]
    assert {Path(line["path"]).name: line["error"] for line in log if "error" in line} == {
        "b.mp4": "ended the process that decoded it, twice"
    }
    assert len(log) == 4


UNGUARDED = """
import sys
from clipvid.data.check import check
from clipvid.data.open import open_dataset
check(open_dataset("videos", sys.argv[1] + "/videos"), sys.argv[1] + "/out", workers=2)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_gets_an_error_and_no_file_is_blamed(four):
    done = run_script(four, UNGUARDED)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("clipvid.errors.WorkerError: worker processes ended as they started: each imports ")
    assert 'put the calls of that script under `if __name__ == "__main__":`' in last
    assert not (four / "out" / LOG).exists()
    assert not (four / "out" / "report.json").exists()


def test_a_line_of_the_log_that_has_changed_is_not_believed(four):
    data = open_dataset("videos", four / "videos")
    expected = check(data, four / "out", workers=1)
    log = four / "out" / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    for change in ((b'"codec": "h264"', b'"codec": "h265"'), (b'"frames": 3', b'"frames": 9'), (b"}", b"")):
        log.write_bytes(lines[0].replace(*change) + b"".join(lines[1:]))
        again = check(data, four / "out", workers=1)
        assert again.probed == 1
        assert again.kinds == expected.kinds
    assert check(data, four / "out", workers=1).probed == 0


def test_a_file_that_is_replaced_within_one_tick_of_the_clock_is_checked_again(tmp_path, write_video):
    path = tmp_path / "a.mp4"
    for frames in (3, 5):
        write_video(tmp_path / "other.mp4", np.zeros((frames, 16, 16, 3), dtype=np.uint8))
        content = (tmp_path / "other.mp4").read_bytes().ljust(4096, b"\0")
        (tmp_path / "other.mp4").unlink()
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        report = check(open_dataset("videos", path), tmp_path / "out", workers=1)
        assert report.probed == 1


def test_a_file_that_took_too_long_is_checked_again_with_more_time(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", np.zeros((5, 16, 16, 3), dtype=np.uint8))
    data = open_dataset("videos", tmp_path)
    short = check(data, tmp_path / "out", workers=1, limit=1e-5)
    assert [reason.startswith("took more than") for reason in short.unreadable.values()] == [True]
    assert check(data, tmp_path / "out", workers=1, limit=1e-5).probed == 0
    long = check(data, tmp_path / "out", workers=1, limit=60)
    assert (long.probed, long.readable) == (1, 1)


def test_a_folder_without_any_of_the_videos_is_reported_and_questioned(tree, capsys):
    (tree / "empty").mkdir()
    options = ["--annotations", str(tree / "lacking.csv"), "--out", str(tree / "out")]
    (tree / "lacking.csv").write_text("path,caption\nx.mp4,a\ny.mp4,b\n")
    assert main(["data", "check", "csv", str(tree / "empty"), *options]) == 1
    printed = capsys.readouterr()
    assert "0 of 2 videos can be read" in printed.out
    assert "missing: 2" in printed.out
    assert (
        f"2 of 2 videos are missing; none of them is in {tree / 'empty'}; is it the folder of the videos?"
        in printed.err
    )
    report = json.loads((tree / "out" / "report.json").read_text())
    assert (report["expected"], report["readable"]) == (2, 0)
    assert [Path(path).name for path in report["missing"]] == ["x.mp4", "y.mp4"]


def test_the_report_of_a_custom_list_also_gives_the_protocols_number(tree):
    (tree / "own.csv").write_text("video_id,sentence\na,a dog\nb,a cat\ngone,a cow\n")
    data = read_dataset("msrvtt-1ka", tree, annotations=tree / "own.csv", allow_missing=True)
    report = check(data, tree / "out", workers=1)
    assert (report.expected, report.readable, report.protocol) == (3, 2, 1000)
    first = str(report).splitlines()[0]
    assert first.startswith("msrvtt-1ka, list own: 2 of 3 videos can be read (2 decoded now, ")
    assert first.endswith("; the protocol has 1000")


def test_the_command_exits_with_an_error_when_videos_are_missing(tree, capsys):
    assert main(["data", "check", "csv", str(tree), "--out", str(tree / "out"), "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert "4 of 6 videos can be read" in printed.out
    assert "1 video is missing and 1 cannot be read" in printed.err
    (tree / "captions.csv").write_text("path,caption\na.mp4,x\nb.mp4,y\n")
    assert main(["data", "check", "csv", str(tree), "--out", str(tree / "out"), "--workers", "1"]) == 0
    assert "2 of 2 videos can be read (0 decoded now, nothing new)" in capsys.readouterr().out
