"""Several writers and readers of one index, cache or model: nothing is lost, and every version read is whole."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from faults import Child, leftovers, needs_fork, run, seeded
from test_kills import DATA_CONFIG, SAVES

from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError
from clipvid.features.maintenance import parts_of
from clipvid.features.tap_cache import TapCache
from clipvid.models.factory import attach, load
from clipvid.models.video_clip import VideoCLIP
from clipvid.search.index import VideoIndex

pytestmark = needs_fork


@pytest.fixture(scope="module")
def model() -> VideoCLIP:
    torch.manual_seed(1)
    return attach(tiny.backbone(), branch_kwargs={"depth": 1})


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_video) -> list[Path]:
    """Sixteen short videos of noise."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    frames = rng.integers(0, 255, (16, 2, 32, 32, 3)).astype(np.uint8)
    return [write_video(folder / f"{i}.mp4", frames[i]) for i in range(16)]


@pytest.mark.parametrize(("kind", "n_loads"), [(kind, 25) for kind in SAVES] + [
    pytest.param(kind, 1000, marks=pytest.mark.slow) for kind in SAVES
])  # fmt: skip
def test_loads_beside_saves_are_all_whole(model, tmp_path, kind, n_loads):
    write, read = SAVES[kind]
    writer = Child(tmp_path.parent / f"{tmp_path.name}.log", write, model, tmp_path)
    while not (tmp_path / "reported").exists():
        time.sleep(0.001)
    versions = [read(model, tmp_path) for _ in range(n_loads)]
    writer.send(9)
    assert writer.wait() == -9, writer.output
    assert versions == sorted(versions)
    assert len(set(versions)) > 2, "the saves must go on while it is loaded"


def add_to_index(model: VideoCLIP, folder: Path, videos: list[Path], how: str) -> None:
    """Add videos one by one, each in a change of its own."""
    config = replace(DATA_CONFIG, unreadable="skip")
    for video in videos:
        if how == "changing":
            with VideoIndex.changing(folder, model) as index:
                index.add(video, progress=False)
            continue
        while True:  # load, add and save without a lock: refused if somebody else has saved meanwhile
            index = VideoIndex.load(folder, model)
            index.add(video, config, progress=False)
            try:
                index.save(folder)
            except CheckpointError as error:
                if "was saved by another process" not in str(error):
                    raise
            else:
                break


@pytest.mark.parametrize("n_rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n_writers", [2, 4])
def test_processes_that_write_one_index_lose_no_video(model, videos, tmp_path, n_writers, n_rounds):
    rng = seeded(f"index {n_writers}")
    for number in range(n_rounds):
        folder = tmp_path / str(number)
        VideoIndex(model, replace(DATA_CONFIG, unreadable="skip")).save(folder)
        shares = [videos[start : n_writers * 2 : n_writers] for start in range(n_writers)]
        logs = [tmp_path / f"{start}.log" for start in range(n_writers)]
        how = [rng.choice(["changing", "save"]) for _ in shares]
        children = [
            Child(log, add_to_index, model, folder, share, kind)
            for log, share, kind in zip(logs, shares, how, strict=True)
        ]
        for child in children:
            assert child.wait() == 0, child.output
        assert set(VideoIndex.load(folder, model).paths) == {path for share in shares for path in share}
    assert leftovers(tmp_path) == []


def test_threads_that_write_one_index_lose_no_video(model, videos, tmp_path):
    VideoIndex(model, replace(DATA_CONFIG, unreadable="skip")).save(tmp_path / "index")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda video: add_to_index(model, tmp_path / "index", [video], "changing"), videos[:8]))
    assert set(VideoIndex.load(tmp_path / "index", model).paths) == set(videos[:8])
    assert leftovers(tmp_path) == []


def test_a_build_that_waited_for_another_one_does_not_replace_it(model, videos, tmp_path):
    first = VideoIndex(model, replace(DATA_CONFIG, unreadable="skip"))
    second = VideoIndex(model, replace(DATA_CONFIG, unreadable="skip"))
    with ThreadPoolExecutor(1) as pool:
        with first.saving_to(tmp_path / "index"):
            waiting = pool.submit(_fill, second, tmp_path / "index", videos[1])
            time.sleep(0.1)
            first.add(videos[0], progress=False)
        with pytest.raises(CheckpointError, match="was saved by another process"):
            waiting.result()
    assert VideoIndex.load(tmp_path / "index", model).paths == (videos[0],)


def _fill(index: VideoIndex, folder: Path, video: Path) -> None:
    with index.saving_to(folder):
        index.add(video, progress=False)


def save_models(model: VideoCLIP, folder: Path, value: float) -> None:
    next(model.branch.parameters()).data.fill_(value)
    for _ in range(20):
        model.save(folder)


@pytest.mark.parametrize("n_rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n_writers", [2, 4])
def test_processes_that_save_one_model_leave_one_of_theirs(model, tmp_path, n_writers, n_rounds):
    for number in range(n_rounds):
        folder = tmp_path / f"model-{number}"
        children = [
            Child(tmp_path / f"{value}.log", save_models, model, folder, float(value)) for value in range(n_writers)
        ]
        for child in children:
            assert child.wait() == 0, child.output
        weight = next(load(folder, base=tiny.backbone()).branch.parameters()).detach()
        assert weight.flatten()[0] in range(n_writers)
        assert torch.equal(weight, torch.full_like(weight, float(weight.flatten()[0])))
    assert leftovers(tmp_path) == []


def fill_cache(model: VideoCLIP, folder: Path, videos: list[Path]) -> None:
    data = VideoDataset(tuple(Record(path) for path in videos), (), "noise")
    assert len(TapCache(folder).store(model, data, DATA_CONFIG).data) == len(videos)


@pytest.mark.parametrize("n_rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n_writers", [2, 4])
def test_processes_that_fill_one_cache_lose_no_clip(model, videos, tmp_path, n_writers, n_rounds):
    rng = seeded(f"cache {n_writers}")
    for number in range(n_rounds):
        folder = tmp_path / str(number)
        children = [
            Child(tmp_path / f"{start}.log", fill_cache, model, folder, rng.sample(videos, len(videos) // 2))
            for start in range(n_writers)
        ]
        for child in children:
            assert child.wait() == 0, child.output
        assert not any(part.damaged for part in parts_of(folder, full=True))
        run(tmp_path / "log", fill_cache, model, folder, videos)
    assert leftovers(tmp_path) == []
