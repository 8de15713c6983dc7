"""Maintenance of a cache: damage in one folder is reported and hides no other; only requested files are removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import VideoDataset
from clipvid.errors import CacheError
from clipvid.features.embed import embed_texts
from clipvid.features.maintenance import parts_of, prune
from clipvid.features.tap_cache import TapCache
from clipvid.features.text_cache import TextCache
from clipvid.models.factory import create_model
from clipvid.models.video_clip import VideoCLIP

DATA_CONFIGS = [DataConfig(frames=2, precision="32-true"), DataConfig(frames=3, precision="32-true")]
DAMAGE = {
    "cut": (lambda text: text[:20], "is not a valid cache key (Input data was truncated"),
    "another type": (lambda text: "[1, 2]", "is not a valid cache key ("),
    "no text": (lambda text: "\x00\xff", "is not a valid cache key ("),
    "other taps": (
        lambda text: text.replace('"frames": 2', '"frames": 4'),
        "does not match the name of its folder",
    ),
}


@pytest.fixture(scope="module")
def model() -> VideoCLIP:
    return create_model("clipvid-mini", branch_kwargs={"depth": 1}).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 4)


@pytest.fixture
def folders(model, data, tmp_path) -> list[Path]:
    """Folders of a cache with two data configs; the cache key of the first is truncated."""
    cache = TapCache(tmp_path / "taps")
    for data_config in DATA_CONFIGS:
        cache.store(model, data, data_config)
    paths = [cache.folder / cache.cache_key(model, data_config).key for data_config in DATA_CONFIGS]
    (paths[0] / "cache_key.json").write_text('{"tower": "ab')
    return paths


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_key_is_reported_for_its_folder(folders, model, data, damage):
    change, message = DAMAGE[damage]
    TapCache(folders[0].parent).store(model, data, DATA_CONFIGS[0])  # writes the cache key again
    path = folders[0] / "cache_key.json"
    path.write_bytes(change(path.read_text()).encode("latin-1"))
    part = next(part for part in parts_of(folders[0].parent) if part.folder == folders[0])
    assert part.cache_key is None
    assert part.broken.startswith(message)
    assert part.rows == 4


def test_a_missing_cache_key_is_reported(folders):
    (folders[0] / "cache_key.json").unlink()
    part = next(part for part in parts_of(folders[0].parent) if part.folder == folders[0])
    assert part.cache_key is None
    assert part.rows == 4


def test_ls_shows_damaged_and_intact_folders(folders, capsys):
    assert main(["cache", "ls", str(folders[0].parent)]) == 0
    output = capsys.readouterr().out
    assert f"{folders[0]}: 4 clips, " in output
    assert "cache_key.json is not a valid cache key (" in output
    assert f"{folders[1]}: 4 clips, " in output
    assert "3 frames (uniform)" in output


def test_verify_names_damage_in_all_folders_and_fails(folders, capsys):
    shard = next(folders[1].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["cache", "verify", str(folders[0].parent)]) == 1
    output = capsys.readouterr()
    assert "cache_key.json is not a valid cache key (" in output.out
    assert f"{shard.name} is damaged" in output.out
    assert "1 file of " in output.err
    assert f"cache_key.json of {folders[0]} is damaged; the next run that uses the cache writes it again" in output.err


def test_verify_recommends_prune_only_for_files_that_prune_removes(folders, capsys):
    shard = next(folders[0].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["cache", "verify", str(folders[0].parent)]) == 1
    output = capsys.readouterr()
    assert f"{shard.name} is damaged" in output.out
    assert "cache prune" not in output.err


def test_prune_leaves_a_folder_without_valid_cache_key_and_reports_it(folders, capsys):
    """Files beside an unreadable cache key may belong to somebody else."""
    (folders[0] / "model.safetensors").write_bytes(b"somebody's")
    (folders[0] / ".left.part").write_bytes(b"half")
    (folders[1] / ".left.part").write_bytes(b"half")
    before = sorted(folders[0].iterdir())
    assert main(["cache", "prune", str(folders[0].parent)]) == 0
    output = capsys.readouterr().out
    assert f"removed {folders[1] / '.left.part'}" in output
    assert f"left {folders[0]}: cache_key.json is not a valid cache key (" in output
    assert output.endswith("\n1 removed\n")
    assert sorted(folders[0].iterdir()) == before


def test_prune_of_a_tower_removes_only_its_folders(folders, model):
    pruned = prune(folders[0].parent, tower=model.backbone.tower_fingerprint[:9])
    assert pruned.removed == (folders[1],)
    assert [part.folder for part in pruned.left] == [folders[0]]
    assert folders[0].is_dir()


def test_reading_clips_restores_the_cache_key(folders, model, data, monkeypatch):
    monkeypatch.setattr("clipvid.features.tap_cache.LiveSource", None)  # nothing is encoded
    assert len(TapCache(folders[0].parent).store(model, data, DATA_CONFIGS[0])) == 4
    assert [part.broken for part in parts_of(folders[0].parent)] == ["", ""]


def test_reading_captions_restores_their_cache_key(model, tmp_path):
    first = embed_texts(model, ["a", "b"], cache=TextCache(tmp_path))
    (cache_key,) = tmp_path.glob("text-*/cache_key.json")
    expected = cache_key.read_text()
    cache_key.write_text("[]")
    (part,) = parts_of(tmp_path)
    assert str(part).startswith(f"{cache_key.parent}: 2 captions, ")
    assert embed_texts(model, ["a", "b"], cache=TextCache(tmp_path)).equal(first)
    assert cache_key.read_text() == expected


def test_files_have_permissions_of_the_umask(folders):
    umask = os.umask(0)
    os.umask(umask)
    for path in folders[1].iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_file_without_permission_is_not_reported_as_damaged_and_stays(folders, monkeypatch, capsys):
    shard = next(folders[1].glob("*.safetensors"))
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shard and allowed(path, mode))
    for command in ("verify", "prune"):
        assert main(["cache", command, str(folders[0].parent)]) == 1
        assert f"{shard} cannot be read or changed: permission denied" in capsys.readouterr().err
    assert shard.exists()


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header | {"keys": json.dumps(json.loads(header["keys"])[::-1])},
        lambda header: header | {"keys": NESTED},
        lambda header: header | {"checks": NESTED},
        lambda header: header | {"checks": "5"},
        lambda header: header | {"hash": ""},
        lambda header: {name: value for name, value in header.items() if name != "hash"},
    ],
    ids=["keys swapped", "nested keys", "nested checks", "no list", "empty hash", "no hash"],
)
def test_a_changed_header_of_a_shard_is_refused(model, data, tmp_path, change):
    cache = TapCache(tmp_path / "taps")
    cache.store(model, data, DATA_CONFIGS[0])
    path = next(cache.folder.glob("*/*.safetensors"))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(load_file(path), path, change(header))
    with pytest.raises(
        CacheError, match="is damaged: its header has changed since it was written; clipvid cache prune"
    ):
        cache.store(model, data, DATA_CONFIGS[0])
    assert prune(cache.folder).removed == (path,)
    cache.store(model, data, DATA_CONFIGS[0])


@pytest.mark.parametrize("part", [{"keys": NESTED}, {"keys": "5"}, {"checks": NESTED}, {"checks": '["a", "b"]'}])
def test_a_header_of_the_earlier_format_is_read_and_wrong_lists_are_refused(model, data, tmp_path, part):
    cache = TapCache(tmp_path / "taps")
    expected = cache.store(model, data, DATA_CONFIGS[0]).batch([0]).frames
    path = next(cache.folder.glob("*/*.safetensors"))
    with safe_open(path, framework="pt") as file:
        header = file.metadata() | {"format": "clipvid-cache-2"}
    del header["hash"]
    tensors = load_file(path)
    save_file(tensors, path, header)
    assert torch.equal(cache.store(model, data, DATA_CONFIGS[0]).batch([0]).frames, expected)
    save_file(tensors, path, header | part)
    with pytest.raises(CacheError, match="is damaged"):
        cache.store(model, data, DATA_CONFIGS[0])
