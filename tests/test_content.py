"""Identity of clips: every byte counts, a replaced file has another hash, and a settled file is hashed once."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest

from clipvid.data.probing import content
from clipvid.data.probing.content import HashLog, content_hash, stamp_of


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_hashes", {})


@pytest.fixture
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock be ten seconds later, so that new files are settled."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10)


def test_every_byte_counts(tmp_path):
    data = bytearray(random.randbytes(1_000_000))
    hashes = set()
    for number, position in enumerate([None, 0, 70_000, 400_000, 600_000, 999_999]):
        changed = bytearray(data)
        if position is not None:
            changed[position] ^= 1
        (tmp_path / str(number)).write_bytes(changed)
        hashes.add(content_hash(tmp_path / str(number)))
    assert len(hashes) == 6


def test_copies_have_one_hash_whatever_their_names(tmp_path):
    (tmp_path / "a").write_bytes(random.randbytes(1000))
    shutil.copy(tmp_path / "a", tmp_path / "b")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")


def test_folders_of_pictures_differ_by_any_picture_and_by_their_order(tmp_path):
    pictures = [b"BM" + random.randbytes(300_000) for _ in range(3)]
    pictures.append(bytes([*pictures[0][:150_000], pictures[0][150_000] ^ 1, *pictures[0][150_001:]]))
    hashes = []
    for number, order in enumerate([(0, 1, 2), (0, 2, 1), (3, 1, 2), (0, 1), (0, 1, 2)]):
        (tmp_path / str(number)).mkdir()
        for index, picture in enumerate(order):
            (tmp_path / str(number) / f"{index}.bmp").write_bytes(pictures[picture])
        hashes.append(content_hash(tmp_path / str(number)))
    assert hashes[0] == hashes[4]
    assert len(set(hashes)) == 4


def test_a_file_replaced_at_once_with_the_same_size_and_time_has_another_hash(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"first")
    os.utime(path, ns=(10**18, 10**18))
    first = content_hash(path)
    path.write_bytes(b"other")
    os.utime(path, ns=(10**18, 10**18))
    assert content_hash(path) != first


@pytest.mark.usefixtures("_later")
def test_a_settled_file_is_hashed_once_and_again_after_any_change(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(content, "hash_file", lambda path: hashed.append(path) or str(len(hashed)))
    path = tmp_path / "a"
    path.write_bytes(b"first")
    assert [content_hash(path), content_hash(path)] == ["1", "1"]
    os.utime(path)
    assert [content_hash(path), content_hash(path)] == ["2", "2"]
    (tmp_path / "b").write_bytes(b"other")
    os.replace(tmp_path / "b", path)
    assert content_hash(path) == "3"


def test_a_file_that_has_just_changed_is_hashed_again(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(content, "hash_file", lambda path: hashed.append(path) or "0")
    (tmp_path / "a").write_bytes(b"first")
    content_hash(tmp_path / "a")
    content_hash(tmp_path / "a")
    assert len(hashed) == 2


@pytest.mark.usefixtures("_later")
def test_a_log_keeps_hashes_for_later_runs_and_ignores_damaged_lines(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(random.randbytes(100))
    expected = [content_hash(path) for path in paths]
    log = HashLog(tmp_path / "hashes.jsonl")
    log.add(paths[:2])
    log.add(paths)
    lines = (tmp_path / "hashes.jsonl").read_text().splitlines()
    assert len(lines) == 3
    wrong = lines[1].replace(expected[1], "0" * 32)
    (tmp_path / "hashes.jsonl").write_text("\n".join(["[" * 100_000, lines[0], wrong, lines[2][:-5], "{}", ""]))
    monkeypatch.setattr(content, "_hashes", {})
    HashLog(tmp_path / "hashes.jsonl")
    assert content._hashes == {stamp_of(paths[0]): expected[0]}
