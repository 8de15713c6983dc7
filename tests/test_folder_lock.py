"""Folder locks: one run writes to a folder at a time, and the lock of a killed run does not block the next."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from refused import refusal

from clipvid.runtime.files import atomic_file, atomic_folder, remove_leftovers
from clipvid.runtime.storage.folder_lock import lock_folder

pytest.importorskip("fcntl")
KILLED = """
import os, signal, sys
from clipvid.runtime.storage.folder_lock import lock_folder

with lock_folder(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("outside", [False, True])
def test_a_locked_folder_is_refused_by_name_and_left_without_traces(tmp_path, outside):
    with lock_folder(tmp_path / "run", outside=outside):
        with pytest.raises(FileExistsError, match=f"another run is writing to {tmp_path}/run; wait until it ends, or"):
            lock_folder(tmp_path / "run", outside=outside).__enter__()
        with lock_folder(tmp_path / "other"):
            pass
        assert (tmp_path / "run").exists() is not outside
    assert not list(tmp_path.iterdir())


def test_files_written_under_the_lock_remain(tmp_path):
    with lock_folder(tmp_path / "run"):
        (tmp_path / "run" / "checkpoint.pt").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]


def test_a_killed_run_releases_its_lock(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ".lock").exists()
    with lock_folder(tmp_path / "run"):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="the system has no /proc")
@pytest.mark.parametrize("outside", [False, True])
def test_a_lock_that_cannot_be_created_is_an_error_not_an_endless_loop(outside):
    with pytest.raises(OSError, match="No such file"):
        lock_folder("/proc/new", outside=outside).__enter__()


def test_one_of_many_concurrent_threads_gets_the_lock_at_a_time(tmp_path):
    holders, n_holders = [], []

    def attempt(number: int) -> int:
        try:
            with lock_folder(tmp_path / "run"):
                holders.append(number)
                n_holders.append(len(holders))
                (tmp_path / "run" / "file").write_text(str(number))
                holders.remove(number)
        except FileExistsError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        n_acquired = sum(pool.map(attempt, range(400)))
    assert n_acquired >= 1
    assert set(n_holders) == {1}


@pytest.mark.parametrize("command", ["index build", "demo"])
def test_a_command_refuses_a_folder_that_another_run_writes_to(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipvid.models.factory.create_model", None)
    monkeypatch.setattr("clipvid.demo.tour.run", None)
    Path("videos").mkdir()
    Path("videos/a.mp4").touch()
    with lock_folder("out", outside=command == "index build"):
        error = refusal(capsys, *command.split(), *(["videos"] if command == "index build" else []), "--out", "out")
    assert error.startswith(f"clipvid {command}: another run is writing to out; wait until it ends, or choose another")


def test_a_link_to_a_folder_has_the_lock_of_the_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with lock_folder(tmp_path / "real", outside=True):
        for name in ("link", "real/../real"):
            with (
                pytest.raises(FileExistsError, match="another run is writing"),
                lock_folder(tmp_path / name, outside=True),
            ):
                pass
            with lock_folder(tmp_path / name, outside=True, again=True):
                pass


def test_where_there_are_no_locks_nothing_is_removed_as_a_leftover(tmp_path, monkeypatch):
    def unsupported(*_, **__):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("filelock.lock_descriptor", unsupported)
    with atomic_folder(tmp_path / "index") as draft:
        (draft / "a").touch()
        assert remove_leftovers(tmp_path) == []
        with atomic_file(tmp_path / "b") as other:  # looking for leftovers is the first step
            other.touch()
    assert (tmp_path / "index" / "a").exists()
