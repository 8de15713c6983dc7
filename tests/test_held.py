"""A folder is filled by one run alone, and a run that was killed stands in nobody's way."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from refused import refusal

from clipvid.runtime.files import lock_folder

pytest.importorskip("fcntl")
KILLED = """
import os, signal, sys
from clipvid.runtime.files import lock_folder

with lock_folder(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("outside", [False, True])
def test_what_is_held_is_refused_by_name_and_nothing_of_it_stays(tmp_path, outside):
    with lock_folder(tmp_path / "run", outside=outside):
        with pytest.raises(FileExistsError, match=f"another run is writing to {tmp_path}/run; wait until it ends, or"):
            lock_folder(tmp_path / "run", outside=outside).__enter__()
        with lock_folder(tmp_path / "other"):
            pass
        assert (tmp_path / "run").exists() is not outside
    assert not list(tmp_path.iterdir())


def test_what_was_written_stays(tmp_path):
    with lock_folder(tmp_path / "run"):
        (tmp_path / "run" / "checkpoint.pt").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]


def test_a_killed_run_leaves_nothing_that_holds(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ".lock").exists()
    with lock_folder(tmp_path / "run"):
        pass


def test_of_many_that_begin_at_once_one_at_a_time_gets_it(tmp_path):
    inside, most = [], []

    def attempt(number: int) -> int:
        try:
            with lock_folder(tmp_path / "run"):
                inside.append(number)
                most.append(len(inside))
                (tmp_path / "run" / "file").write_text(str(number))
                inside.remove(number)
        except FileExistsError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        got = sum(pool.map(attempt, range(400)))
    assert got >= 1
    assert set(most) == {1}


@pytest.mark.parametrize("command", ["index", "demo"])
def test_a_command_leaves_a_folder_alone_that_another_one_fills(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipvid.models.factory.create_model", None)
    monkeypatch.setattr("clipvid.demo.tour.run", None)
    Path("videos").mkdir()
    with lock_folder("out", outside=command == "index"):
        error = refusal(capsys, command, *(["videos"] if command == "index" else []), "--out", "out")
    assert error.startswith(f"clipvid {command}: another run is writing to out; wait until it ends, or choose another")
