"""Sealed archives: torch reads them as before, and every changed byte is noticed."""

from __future__ import annotations

import random
import zipfile

import pytest
import torch

from clipvid.runtime.storage.archive import is_intact, seal_archive


@pytest.fixture
def archive(tmp_path):
    """Return a sealed archive of torch's."""
    torch.save({"weights": torch.arange(100_000)}, tmp_path / "a.pt")
    assert is_intact(tmp_path / "a.pt") is None
    seal_archive(tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_others_read_a_sealed_archive(archive):
    assert is_intact(archive) is True
    assert torch.equal(torch.load(archive, weights_only=True)["weights"], torch.arange(100_000))
    assert zipfile.ZipFile(archive).testzip() is None


def test_a_changed_byte_is_noticed(archive):
    content = archive.read_bytes()
    for _ in range(50):
        changed = bytearray(content)
        changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
        archive.write_bytes(changed)
        assert is_intact(archive) is not True
    archive.write_bytes(content[:-1])
    assert is_intact(archive) is not True


@pytest.mark.parametrize("content", [b"", b"no archive", b"no archive " * 10])
def test_only_an_archive_without_a_comment_is_sealed(archive, content):
    (archive.parent / "other").write_bytes(content)
    with pytest.raises(ValueError, match="must be a zip archive without a comment"):
        seal_archive(archive.parent / "other")
    with pytest.raises(ValueError, match="must be a zip archive without a comment"):
        seal_archive(archive)
