"""Augmented views: cached ones equal those made live, are used in turn, and depend on the clip alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.batches.batch import collate
from clipvid.data.dataset import ClipDataset
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import VideoDataset
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features import tap_cache
from clipvid.features.augmented_views import AugmentedViews
from clipvid.features.embed import embed_videos
from clipvid.features.encode import LiveSource
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps.clip_keys import clip_keys
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone.taps import Taps
from clipvid.models.factory import attach
from clipvid.runtime.precision import autocast
from clipvid.training.batches import open_batches
from clipvid.training.loop import train

DATA_CONFIG = DataConfig(frames=3, batch_size=4, precision="32-true")
VIEWS = AugmentedViews(2, crop_scale=(0.3, 0.8), flip=0.5, rand_augment=1)
CONFIG = TrainConfig(
    epochs=3, batch_size=4, cache_taps=True, cache_views=2, crop_scale=(0.3, 0.8), flip=0.5, rand_augment=1,
    data_config=DATA_CONFIG,
)  # fmt: skip
PLAIN = replace(CONFIG, cache_views=0, crop_scale=None, flip=0.0, rand_augment=0)
MIXED = TrainConfig(task="recognition", cache_views=2, mixup=0.3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return attach(tiny.backbone(), branch_kwargs={"depth": 2})


@pytest.fixture(scope="module", params=["disk", "memory", "disk, bf16"])
def cached(request, model, data, tmp_path_factory) -> TapStore:
    data_config = replace(DATA_CONFIG, precision="bf16-mixed") if "bf16" in request.param else DATA_CONFIG
    if request.param == "memory":
        return encode_dataset(model, data, data_config, augmented_views=VIEWS)
    return TapCache(tmp_path_factory.mktemp("taps")).store(model, data, data_config, augmented_views=VIEWS)


def encoded_lengths(monkeypatch) -> list[int]:
    """Return a list that receives the number of clips of every later pass of the tower."""
    lengths: list[int] = []
    monkeypatch.setattr(
        tap_cache, "LiveSource", lambda m, d, *a, **k: lengths.append(len(d)) or LiveSource(m, d, *a, **k)
    )
    return lengths


def test_cached_views_equal_the_same_views_made_live_bit_for_bit(model, data, cached):
    transform = replace(model.transform, crop_scale=(0.3, 0.8), flip=0.5, rand_layers=1)
    for view in range(2):
        names = [f"{key}:{view}" for key in clip_keys(data)]
        clips = ClipDataset(data, frames=3, transform=transform, random=True, names=names)
        clips.set_epoch(view)
        for rows in (range(4), range(4, 6)):
            video = collate([clips[row] for row in rows]).video
            with torch.no_grad(), autocast(cached.data_config.precision, model.device):
                live = model.taps(video)
            stored = cached.at(view).batch(rows)
            for expected, actual in zip((*live.patches, *live.cls, live.frames),
                                        (*stored.patches, *stored.cls, stored.frames), strict=True):  # fmt: skip
                assert torch.equal(expected, actual)


def test_views_differ_from_each_other_and_from_the_fixed_one(model, data, cached):
    fixed = encode_dataset(model, data, DATA_CONFIG).batch(range(6)).frames.float()
    first, second, third = (cached.at(epoch).batch(range(6)).frames.float() for epoch in range(3))
    assert not torch.allclose(first, second, atol=1e-2)
    assert not torch.allclose(first, fixed, atol=1e-2)
    assert torch.equal(first, third), "the third epoch reads the first view again"


def test_a_view_depends_on_its_clip_alone(model, data, tmp_path):
    full = TapCache(tmp_path / "a").store(model, data, DATA_CONFIG, augmented_views=VIEWS)
    other = data.subset([5, 2])
    part = TapCache(tmp_path / "b").store(model, other, DATA_CONFIG, augmented_views=VIEWS)
    assert (full.batch([5, 2]).frames.float() - part.batch([0, 1]).frames.float()).abs().max() < 0.02  # batch sizes


def test_more_views_are_added_to_the_cached_ones(model, data, tmp_path, monkeypatch):
    cache = TapCache(tmp_path)
    assert cache.needs(model, data, DATA_CONFIG, augmented_views=VIEWS) == 2 * cache.needs(model, data, DATA_CONFIG)
    cache.store(model, data, DATA_CONFIG, augmented_views=VIEWS)
    passes = encoded_lengths(monkeypatch)
    more = cache.store(model, data, DATA_CONFIG, augmented_views=replace(VIEWS, views=3))
    assert passes == [6]
    assert len({float(more.at(epoch).batch([0]).frames.float().sum()) for epoch in range(3)}) == 3
    cache.store(model, data, DATA_CONFIG)
    assert passes == [6, 6], "the fixed view is cached separately"


def test_training_reads_the_views_in_turn(model, data, cached):
    source = open_batches(model, cached, CONFIG, progress=False)
    assert isinstance(source.source, TapStore)
    for epoch in range(3):
        rows = source.order(epoch)[1]
        batch = next(iter(source.batches(epoch, start=1)))
        assert isinstance(batch.video, Taps)
        assert torch.equal(batch.video.frames, cached.at(epoch).batch(rows).frames)


def test_unreadable_clips_are_left_out_of_every_view_and_named_once(model, data, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    records = list(data)
    records[3] = replace(records[3], path=broken)
    partly_broken, skip = replace(data, records=tuple(records)), replace(DATA_CONFIG, unreadable="skip")
    for store in (
        TapCache(tmp_path / "taps").store(model, partly_broken, skip, augmented_views=VIEWS),
        encode_dataset(model, partly_broken, skip, augmented_views=VIEWS),
    ):
        assert [error.path for error in store.unreadable] == [broken]
        assert [record.path for record in store.data] == [r.path for r in records if r.path != broken]
        assert [len(store.at(view).batch(range(len(store))).frames) for view in range(2)] == [5, 5]


def test_training_from_augmented_views_validates_on_the_fixed_one(model, data):
    scores = []
    fixed = encode_dataset(model, data, DATA_CONFIG)
    for val in (data, fixed):
        torch.manual_seed(0)
        result = train(
            attach(model.backbone, branch_kwargs={"depth": 2}), data, val, replace(CONFIG, epochs=2), progress=False
        )
        scores.append([entry["score"] for entry in result.history])
    assert scores[0] == scores[1]


def test_equal_augmentations_have_one_cache_key(model):
    cache = TapCache("taps")
    variants = (
        AugmentedViews(3, crop_scale=(0.5, 1.0), flip=1.0),
        AugmentedViews(2, crop_scale=(0.5, 1.0), flip=1.0, rand_magnitude=3),
    )
    assert cache.cache_key(model, DATA_CONFIG, variants[0]).key == cache.cache_key(model, DATA_CONFIG, variants[1]).key
    assert (
        cache.cache_key(model, DATA_CONFIG, variants[0]).key
        != cache.cache_key(model, DATA_CONFIG, replace(variants[0], flip=0.5)).key
    )


def test_the_command_caches_views_and_a_second_run_decodes_nothing(tmp_path, monkeypatch, capsys):
    shapes = write_dataset(tmp_path / "shapes", "test", 6)[0].path.parent
    command = ["train", str(shapes), "--val", str(shapes), "--epochs", "1", "--cache", str(tmp_path / "taps")]
    command += ["--cache-views", "2", "--crop-scale", "0.5", "1.0", "--data-config.frames", "2", "--depth", "1"]
    passes = encoded_lengths(monkeypatch)
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    assert len(passes) == 3, "two views to train on, one to validate on"
    assert main([*command, "--out", str(tmp_path / "two"), "--seed", "1"]) == 0
    assert len(passes) == 3
    capsys.readouterr()
    assert main(["cache", "ls", str(tmp_path / "taps")]) == 0
    assert 'augmented views {"crop_scale": [0.5, 1.0]' in capsys.readouterr().out


@pytest.fixture(scope="module")
def in_memory(model, data) -> TapStore:
    return encode_dataset(model, data, DATA_CONFIG, augmented_views=VIEWS)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda m, d, s: TrainConfig(cache_taps=True, flip=0.5), ValueError, "cache augmented views: cache_views"),
        (
            lambda m, d, s: TrainConfig(task="recognition", cache_taps=True, cache_views=2, mixup=0.3),
            ValueError,
            "mixup blends the pixels of two clips",
        ),
        (lambda m, d, s: TrainConfig(cache_views=-1), ValueError, "cache_views must be an integer >= 0, got -1"),
        (
            lambda m, d, s: open_batches(m, d, replace(CONFIG, cache_taps=False), progress=False),
            ValueError,
            "cache_views 2 needs cached taps",
        ),
        (
            lambda m, d, s: open_batches(m, s, replace(CONFIG, flip=0.1), progress=False),
            ValueError,
            "holds .*flip.* 0.5.*training asks for .*flip.* 0.1",
        ),
        (
            lambda m, d, s: open_batches(m, s, PLAIN, progress=False),
            ValueError,
            "training asks for one fixed view",
        ),
        (
            lambda m, d, s: open_batches(m, s, replace(CONFIG, cache_views=3), progress=False),
            ValueError,
            "holds 2 augmented views .*training asks for 3 augmented views",
        ),
        (
            lambda m, d, s: open_batches(m, s, MIXED, progress=False),
            ValueError,
            "mixup blends the pixels of two clips",
        ),
        (
            lambda m, d, s: train(m, d, s, TrainConfig(data_config=DATA_CONFIG)),
            ValueError,
            "for training; validate on the vid",
        ),
        (lambda m, d, s: TrainConfig(task="selfsup", cache_views=2), ValueError, "leave out cache_views"),
        (lambda m, d, s: evaluate_retrieval(m, s), ValueError, "holds augmented views, which are for training"),
        (lambda m, d, s: embed_videos(m, s, DATA_CONFIG), ValueError, "holds augmented views, which are for training"),
        (lambda m, d, s: ClipDataset(d, frames=2, transform=m.transform, names=["a"]), ValueError, "got 1 for 6"),
        (lambda m, d, s: AugmentedViews(0), ValueError, "views must be an integer >= 1, got 0"),
        (lambda m, d, s: AugmentedViews(2, flip=2.0), ValueError, "flip must be a probability"),
    ],
)  # fmt: skip
def test_uses_that_augmented_views_do_not_support_are_refused(model, data, in_memory, act, error, message):
    with pytest.raises(error, match=message):
        act(model, data, in_memory)
