"""Looking after a cache: damage in one folder is named and hides no other; nothing goes that was not asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import VideoDataset
from clipvid.features.embed import embed_texts
from clipvid.features.maintenance import parts_of, prune
from clipvid.features.tap_cache import TapCache
from clipvid.features.text_cache import TextCache
from clipvid.models.factory import create_model
from clipvid.models.video_clip import VideoCLIP

READINGS = [DataConfig(frames=2, precision="32-true"), DataConfig(frames=3, precision="32-true")]
DAMAGE = {
    "cut": (lambda text: text[:20], "is not a valid cache key (Unterminated string"),
    "of another type": (lambda text: "[1, 2]", "is not a valid cache key ("),
    "no text": (lambda text: "\x00\xff", "is not a valid cache key ("),
    "of other taps": (
        lambda text: text.replace('"frames": 2', '"frames": 4'),
        "does not match the name of its folder",
    ),
}


@pytest.fixture(scope="module")
def model() -> VideoCLIP:
    return create_model("clipvid-mini", depth=1).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 4)


@pytest.fixture
def folders(model, data, tmp_path) -> list[Path]:
    """Of a cache of two readings; the recipe of the first is cut off."""
    cache = TapCache(tmp_path / "taps")
    for data_config in READINGS:
        cache.store(model, data, data_config)
    found = [cache.folder / cache.cache_key(model, data_config).key for data_config in READINGS]
    (found[0] / "cache_key.json").write_text('{"tower": "ab')
    return found


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_recipe_is_said_in_its_part(folders, model, data, damage):
    change, said = DAMAGE[damage]
    TapCache(folders[0].parent).store(model, data, READINGS[0])  # which writes it anew
    path = folders[0] / "cache_key.json"
    path.write_bytes(change(path.read_text()).encode("latin-1"))
    part = next(part for part in parts_of(folders[0].parent) if part.folder == folders[0])
    assert part.cache_key is None
    assert part.broken.startswith(said)
    assert part.rows == 4


def test_a_recipe_that_is_gone_is_said_too(folders):
    (folders[0] / "cache_key.json").unlink()
    part = next(part for part in parts_of(folders[0].parent) if part.folder == folders[0])
    assert part.cache_key is None
    assert part.rows == 4


def test_ls_shows_it_and_the_others(folders, capsys):
    assert main(["cache", "ls", str(folders[0].parent)]) == 0
    said = capsys.readouterr().out
    assert f"{folders[0]}: 4 clips, " in said
    assert "cache_key.json is not a valid cache key (" in said
    assert f"{folders[1]}: 4 clips, " in said
    assert "3 frames (uniform)" in said


def test_verify_names_it_looks_at_the_others_and_ends_with_an_error(folders, capsys):
    shard = next(folders[1].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["cache", "verify", str(folders[0].parent)]) == 1
    said = capsys.readouterr()
    assert "cache_key.json is not a valid cache key (" in said.out
    assert f"{shard.name} is damaged" in said.out
    assert "1 file of " in said.err
    assert (
        f"cache_key.json of {folders[0]} is damaged; the next run that uses the cache writes it again" in said.err
    )


def test_verify_promises_no_removal_of_what_prune_leaves(folders, capsys):
    shard = next(folders[0].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["cache", "verify", str(folders[0].parent)]) == 1
    said = capsys.readouterr()
    assert f"{shard.name} is damaged" in said.out
    assert "cache prune" not in said.err


def test_prune_leaves_all_of_it_and_says_so(folders, capsys):
    """Files beside a recipe that cannot be read may be anybody's."""
    (folders[0] / "model.safetensors").write_bytes(b"somebody's")
    (folders[0] / ".left.part").write_bytes(b"half")
    (folders[1] / ".left.part").write_bytes(b"half")
    before = sorted(folders[0].iterdir())
    assert main(["cache", "prune", str(folders[0].parent)]) == 0
    said = capsys.readouterr().out
    assert f"removed {folders[1] / '.left.part'}" in said
    assert f"left {folders[0]}: cache_key.json is not a valid cache key (" in said
    assert said.endswith("\n1 removed\n")
    assert sorted(folders[0].iterdir()) == before


def test_prune_of_a_tower_takes_only_what_is_known_to_be_of_it(folders, model):
    pruned = prune(folders[0].parent, tower=model.backbone.tower_fingerprint[:9])
    assert pruned.removed == (folders[1],)
    assert [part.folder for part in pruned.left] == [folders[0]]
    assert folders[0].is_dir()


def test_a_run_that_reads_the_clips_writes_the_recipe_anew(folders, model, data, monkeypatch):
    monkeypatch.setattr("clipvid.features.tap_cache.stream_taps", None)  # nothing is encoded
    assert len(TapCache(folders[0].parent).store(model, data, READINGS[0])) == 4
    assert [part.broken for part in parts_of(folders[0].parent)] == ["", ""]


def test_a_run_that_reads_captions_writes_their_recipe_anew(model, tmp_path):
    first = embed_texts(model, ["a", "b"], cache=TextCache(tmp_path))
    (cache_key,) = tmp_path.glob("text-*/cache_key.json")
    wanted = cache_key.read_text()
    cache_key.write_text("[]")
    (part,) = parts_of(tmp_path)
    assert str(part).startswith(f"{cache_key.parent}: 2 captions, ")
    assert embed_texts(model, ["a", "b"], cache=TextCache(tmp_path)).equal(first)
    assert cache_key.read_text() == wanted


def test_files_are_for_whom_the_folder_is(folders):
    umask = os.umask(0)
    os.umask(umask)
    for path in folders[1].iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_file_that_may_not_be_read_is_no_damage_and_stays(folders, monkeypatch, capsys):
    shard = next(folders[1].glob("*.safetensors"))
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shard and allowed(path, mode))
    for command in ("verify", "prune"):
        assert main(["cache", command, str(folders[0].parent)]) == 1
        assert f"{shard} cannot be read or changed: permission denied" in capsys.readouterr().err
    assert shard.exists()
