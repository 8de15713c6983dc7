"""Cached taps belong to the bytes of a file: equal sizes, equal samples and replacements in place are told apart."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from clipvid.config.data_config import DataConfig
from clipvid.data.check import check
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CacheError
from clipvid.features.embed import embed_videos
from clipvid.features.shards import write_shard
from clipvid.features.tap_cache import TapCache
from clipvid.models.factory import create_model

CONFIG = DataConfig(frames=8, batch_size=4, precision="32-true")
SIDE = 160


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("clipvid-mini", branch_kwargs={"depth": 1})


def write_y4m(path: Path, grey: np.ndarray) -> Path:
    """Write frames of one grey level each as uncompressed video; the sizes of such files depend on no content."""
    frame = b"FRAME\n" + bytes(SIDE * SIDE)
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{SIDE} H{SIDE} F8:1 Ip A1:1 Cmono\n".encode())
        for level in grey:
            file.write(frame[:6] + bytes([int(level)]) * (SIDE * SIDE))
    return path


@pytest.fixture
def pair(tmp_path):
    """Return two files of one size that differ in a few frames between the start, the middle and the end."""
    first = np.full(24, random.randrange(20, 120))
    second = first.copy()
    second[[5, 6, 7, 16, 17]] = 230
    return write_y4m(tmp_path / "a.y4m", first), write_y4m(tmp_path / "b.y4m", second)


def data_of(*paths: Path) -> VideoDataset:
    return VideoDataset(tuple(map(Record, paths)))


def test_two_files_of_one_size_have_their_own_taps(model, pair, tmp_path):
    cache = TapCache(tmp_path / "cache")
    cache.store(model, data_of(pair[0]), CONFIG)
    cached = embed_videos(model, cache.store(model, data_of(*pair), CONFIG)).video
    assert torch.equal(cached, embed_videos(model, data_of(*pair), replace(CONFIG, batch_size=1)).video)
    assert not torch.allclose(cached[0], cached[1], atol=1e-3)


def test_a_file_replaced_in_place_gets_new_taps(model, pair, tmp_path):
    cache, status = TapCache(tmp_path / "cache"), pair[0].stat()
    cache.store(model, data_of(pair[0]), CONFIG)
    pair[0].write_bytes(pair[1].read_bytes())
    os.utime(pair[0], ns=(status.st_atime_ns, status.st_mtime_ns))  # as tools that copy with times do
    cached = embed_videos(model, cache.store(model, data_of(pair[0]), CONFIG)).video
    assert torch.equal(cached, embed_videos(model, data_of(pair[1]), CONFIG).video)


def test_folders_of_bitmaps_that_differ_inside_have_their_own_taps(model, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder, level in zip(folders, (60, 200), strict=True):
        folder.mkdir()
        for number in range(4):
            picture = np.full((SIDE, SIDE * 2, 3), 60, np.uint8)
            picture[30:70] = picture[95:130] = level
            PIL.Image.fromarray(picture).save(folder / f"{number}.bmp")
    cache = TapCache(tmp_path / "cache")
    cached = embed_videos(model, cache.store(model, data_of(*folders), replace(CONFIG, frames=4))).video
    assert not torch.allclose(cached[0], cached[1], atol=1e-3)


def test_the_check_of_a_data_set_takes_only_copies_for_duplicates(pair, tmp_path):
    copy = tmp_path / "copy.y4m"
    copy.write_bytes(pair[0].read_bytes())
    report = check(data_of(*pair, copy), tmp_path / "report", workers=1)
    assert report.duplicates == ((str(pair[0]), str(copy)),)


def test_the_hashes_of_settled_files_are_stored_for_the_next_run(model, pair, tmp_path, monkeypatch):
    from clipvid.data.probing import content
    from clipvid.runtime.storage import stamps

    monkeypatch.setattr(stamps, "SETTLED", 0.0)
    monkeypatch.setattr(content, "_hashes", {})
    cache = TapCache(tmp_path / "cache")
    cache.store(model, data_of(*pair), CONFIG)
    cache.store(model, data_of(*pair), CONFIG)
    monkeypatch.setattr(content, "_hashes", {})
    monkeypatch.setattr(content, "hash_file", None)  # no file is hashed again
    assert cache.needs(model, data_of(*pair), CONFIG) == 0


@pytest.mark.parametrize("fault", ["shape", "value"])
def test_taps_with_a_right_checksum_that_do_not_fit_are_refused(model, pair, tmp_path, monkeypatch, fault):
    cache = TapCache(tmp_path / "cache")
    store = cache.store(model, data_of(pair[0]), CONFIG)
    (shard,), (key,) = sorted((tmp_path / "cache").glob("*/*.safetensors")), store.taps.keys
    tensors = {name: value[None].clone() for name, value in store.taps.shards.row(key).items()}
    tensors["frames"] = tensors["frames"][..., :-1] if fault == "shape" else torch.full_like(tensors["frames"], np.nan)
    if fault == "value":
        with pytest.raises(CacheError, match="frames of a clip is not finite, so it is not stored"):
            write_shard(shard.parent, [key], tensors)
    shard.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("clipvid.features.shards.is_finite", lambda tensor: True)
        write_shard(shard.parent, [key], tensors)
    with pytest.raises(CacheError, match=r"is damaged: (frames is|a value of clip 0 is not finite)"):
        embed_videos(model, cache.store(model, data_of(pair[0]), CONFIG))
