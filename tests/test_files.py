"""Atomic files and folders: an earlier or the new version is there at every moment, and leftovers are cleaned."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clipvid.runtime import files
from clipvid.runtime.files import atomic_file, atomic_folder, recover, remove_leftovers, require_writable
from clipvid.runtime.storage import exchange

KILLED_WHILE_WRITING = """
import os, signal, sys
from clipvid.runtime.files import atomic_file

with atomic_file(sys.argv[1]) as draft:
    draft.write_text("half")
    draft.with_name(".tmpXXXX").write_text("a temporary file of another library")
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_BETWEEN_TWO_RENAMES = """
import os, signal, sys
from clipvid.runtime import files

files.exchange = lambda new, path: False
rename = os.rename

def rename_once(source, target):
    rename(source, target)
    os.kill(os.getpid(), signal.SIGKILL)

os.rename = rename_once
with files.atomic_folder(sys.argv[1]) as draft:
    (draft / "content").write_text("new")
"""


def write(folder: Path, content: str) -> None:
    with atomic_folder(folder) as draft:
        (draft / "content").write_text(content)


def write_half(folder: Path) -> None:
    with atomic_folder(folder) as draft:
        (draft / "content").write_text("half")
        raise KeyboardInterrupt


def kill(code: str, path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_is_replaced_whole_and_leaves_no_trace(tmp_path, monkeypatch, exchanged):
    if not exchanged:
        monkeypatch.setattr(files, "exchange", lambda new, path: False)
    for content in ("first", "second"):
        write(tmp_path / "index", content)
        assert (tmp_path / "index" / "content").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_failure_leaves_the_earlier_version(tmp_path):
    write(tmp_path / "index", "first")
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "index")
    with pytest.raises(OSError, match="full") as caught, atomic_file(tmp_path / "file"):
        raise OSError(28, "disk full")
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "index" / "content").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system cannot exchange two names")
def test_a_reader_beside_a_writer_always_finds_the_folder(tmp_path):
    write(tmp_path / "index", "first")
    if not exchange.exchange(tmp_path / "index", tmp_path / "index"):
        pytest.skip("this file system cannot exchange two names")
    done = threading.Event()

    def write_again() -> None:
        try:
            for _ in range(100):
                write(tmp_path / "index", "again")
        finally:
            done.set()

    writer = threading.Thread(target=write_again)
    writer.start()
    n_missing = 0
    while not done.is_set():
        n_missing += not (tmp_path / "index").is_dir()
    writer.join()
    assert n_missing == 0


def test_a_folder_moved_aside_by_a_killed_writer_is_brought_back(tmp_path):
    write(tmp_path / "index", "first")
    kill(KILLED_BETWEEN_TWO_RENAMES, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    recover(tmp_path / "index")
    assert (tmp_path / "index" / "content").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_lone_folder_of_an_earlier_version_is_brought_back(tmp_path):
    (tmp_path / ".index.123.old").mkdir()
    (tmp_path / ".index.123.old" / "content").write_text("first")
    recover(tmp_path / "index")
    assert (tmp_path / "index" / "content").read_text() == "first"


def test_leftovers_of_killed_writers_are_removed_and_those_of_living_ones_stay(tmp_path):
    kill(KILLED_WHILE_WRITING, tmp_path / "result.json")
    (leftover,) = tmp_path.iterdir()
    shutil.copytree(leftover, tmp_path / "saved")
    with atomic_file(tmp_path / "result.json") as draft:
        assert not leftover.exists(), "the next writer removes it"
        shutil.move(tmp_path / "saved", leftover)
        draft.write_text("new")
        assert remove_leftovers(tmp_path) == [leftover]
    assert (tmp_path / "result.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_staging_folder_that_has_just_been_made_is_not_removed(tmp_path):
    (tmp_path / ".new.abcdefgh.part").mkdir()
    assert remove_leftovers(tmp_path) == []
    os.utime(tmp_path / ".new.abcdefgh.part", (0, 0))
    assert remove_leftovers(tmp_path) == [tmp_path / ".new.abcdefgh.part"]


def test_many_threads_write_one_file_and_each_version_is_whole(tmp_path):
    contents = [letter * 100_000 for letter in "abcd"]

    def write_often(content: str) -> None:
        for _ in range(20):
            with atomic_file(tmp_path / "file") as draft:
                draft.write_text(content)

    threads = [threading.Thread(target=write_often, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_content_reaches_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda file: events.append(os.readlink(f"/proc/self/fd/{file}")))
    monkeypatch.setattr(os, "replace", lambda source, target: events.append("replaced") or os.rename(source, target))
    with atomic_file(tmp_path / "file") as draft:
        draft.write_text("content")
    assert events[0].endswith(".part/new/file")
    assert events[1:] == ["replaced", str(tmp_path)]


def test_a_long_name_can_be_written(tmp_path):
    with atomic_file(tmp_path / ("n" * 255)) as draft:
        draft.write_text("content")
    assert (tmp_path / ("n" * 255)).read_text() == "content"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a device, a pipe or a socket and would be replaced; choose another"):
        require_writable(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is not a file, and would be replaced"), atomic_file(tmp_path / "pipe"):
        pass
    with pytest.raises(FileExistsError, match="is not a file"), atomic_file(tmp_path):
        pass


@pytest.mark.parametrize("moment", ["aside", "new", "back"])
def test_an_interrupt_while_folders_change_places_loses_none(tmp_path, monkeypatch, moment):
    """Interrupt each step of the replacement on a system that cannot exchange two names."""
    write(tmp_path / "index", "before")
    rename, n_calls = os.rename, itertools.count(1)
    last = {"aside": 1, "new": 2, "back": 2}[moment]

    def interrupted(source, target):
        number = next(n_calls)
        if moment == "back" and number >= last:
            raise OSError(errno.EIO, "Input/output error", str(source))
        if moment == "new" and number == last:
            raise KeyboardInterrupt
        rename(source, target)
        if moment == "aside" and number == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write(tmp_path / "index", "after")
    monkeypatch.setattr(os, "rename", rename)
    files.recover(tmp_path / "index")
    assert (tmp_path / "index" / "content").read_text() == "before"
