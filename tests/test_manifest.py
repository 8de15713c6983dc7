"""Manifests: every change of a sealed folder is an error, and a folder is read in one version beside its writers."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import xxhash

from clipvid.errors import CheckpointError
from clipvid.runtime.files import atomic_folder
from clipvid.runtime.storage.manifest import MANIFEST, hash_bytes, hash_file, read_sealed, seal, verify

REFUSAL = {"error": CheckpointError, "advice": "save it again"}


def save(folder: Path, content: str) -> None:
    with atomic_folder(folder) as draft:
        (draft / "config.json").write_text(content)
        (draft / "store").mkdir()
        (draft / "store" / "vectors").write_text(content * 100)
        seal(draft)


def both(folder: Path) -> tuple[str, str]:
    return (folder / "config.json").read_text(), (folder / "store" / "vectors").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a sealed folder."""
    save(tmp_path / "saved", "a")
    return tmp_path / "saved"


def test_a_file_has_the_hash_of_the_reference(tmp_path):
    content = random.randbytes(10_000_000)
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == xxhash.xxh3_128(content).hexdigest()


def test_a_sealed_folder_is_read(folder):
    assert read_sealed(folder, both, **REFUSAL) == ("a", "a" * 100)
    assert verify(folder, **REFUSAL) == 2


@pytest.mark.parametrize("name", ["config.json", "store/vectors"])
def test_a_changed_bit_is_an_error(folder, name):
    for _ in flipped_bits(folder / name, times=20):
        with pytest.raises(CheckpointError, match="is damaged: its bytes have changed since it was written; save it"):
            read_sealed(folder, both, **REFUSAL)
    assert read_sealed(folder, both, **REFUSAL) == ("a", "a" * 100)


def test_a_changed_bit_of_the_manifest_is_an_error_or_changes_nothing(folder):
    n_refused = 0
    for _ in flipped_bits(folder / MANIFEST, times=50):
        try:
            content = read_sealed(folder, both, **REFUSAL)
        except CheckpointError:
            n_refused += 1
        else:
            assert content == ("a", "a" * 100)
    assert n_refused > 30


def flipped_bits(path: Path, *, times: int) -> Iterator[None]:
    """Flip a random bit of a file during each step of a loop."""
    content = path.read_bytes()
    for _ in range(times):
        changed = bytearray(content)
        changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        yield
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "store"])
def test_a_missing_file_is_an_error(folder, name):
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is damaged: .* is missing; save it again"):
        read_sealed(folder, both, **REFUSAL)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"format_version": 1}',
        '{"format_version": 1, "id": "", "files": {"a": 1}, "check": ""}',
    ],
    ids=["empty", "a list", "deep", "missing keys", "a wrong type"],
)
def test_a_manifest_that_is_none_is_an_error(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged \(.*\); save it again"):
        read_sealed(folder, both, **REFUSAL)


def test_a_manifest_of_a_later_version_is_refused_by_name(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(CheckpointError, match="has format 2, this version of clipvid reads 1; save it again"):
        read_sealed(folder, both, **REFUSAL)


def test_files_added_by_others_are_ignored(folder):
    (folder / "README.md").write_text("a model card")
    assert read_sealed(folder, both, **REFUSAL) == ("a", "a" * 100)


def test_a_reader_beside_a_writer_gets_one_version(folder):
    done = threading.Event()

    def save_often() -> None:
        try:
            for number in range(100):
                save(folder, "ab"[number % 2])
        finally:
            done.set()

    writer = threading.Thread(target=save_often)
    writer.start()
    n_read = 0
    while not done.is_set():
        config, vectors = read_sealed(folder, both, **REFUSAL)
        assert vectors == config * 100
        n_read += 1
    writer.join()
    assert n_read


@pytest.mark.parametrize("name", ["../other", "/dev/zero", "", ".", "store/../../other", "a\0b"])
def test_a_manifest_that_names_a_file_outside_its_folder_is_an_error(folder, name):
    (folder.parent / "other").write_text("x")
    content = json.loads((folder / MANIFEST).read_text())
    files = content["files"] | {name: "0" * 32}
    check = hash_bytes(msgspec.json.encode([content["format_version"], content["id"], sorted(files.items())]))
    (folder / MANIFEST).write_text(json.dumps(content | {"files": files, "check": check}))
    with pytest.raises(CheckpointError, match=r"it names .*, which is not in the folder|is missing; save it again"):
        read_sealed(folder, both, **REFUSAL)


def test_a_pipe_is_not_opened(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(OSError, match="not a regular file"):
        hash_file(folder / "config.json")
    with pytest.raises(
        CheckpointError, match=r"config\.json cannot be read or changed: not a regular file .*; save it again"
    ):
        read_sealed(folder, both, **REFUSAL)
