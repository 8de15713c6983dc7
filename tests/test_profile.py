"""Profiles of runs: stages add up, background work is listed apart, and nothing is recorded unless requested."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data import motion_shapes
from clipvid.features.embed import embed_videos
from clipvid.features.taps.memory import encode_dataset
from clipvid.models.factory import attach
from clipvid.runtime.profiling import awaited, beside, profiled, stage
from clipvid.training.loop import train


def test_stages_add_up_and_the_time_of_an_inner_stage_is_not_in_the_outer():
    start = time.perf_counter()
    with profiled() as profile, stage("loss"):
        time.sleep(0.02)
        with stage("tower"):
            time.sleep(0.05)
        with stage("tower"):
            time.sleep(0.01)
    elapsed = time.perf_counter() - start
    assert 0.06 <= profile.seconds["tower"] < 0.2
    assert 0.02 <= profile.seconds["loss"] < profile.seconds["tower"]
    assert profile.total == pytest.approx(sum(profile.seconds.values()))
    assert 0.08 <= profile.total <= elapsed


def test_a_complete_stage_includes_its_inner_stages():
    with profiled() as profile, stage("validation", complete=True), stage("tower"):
        beside(decode=1.0)
        time.sleep(0.01)
    assert profile.seconds["validation"] >= 0.01
    assert "tower" not in profile.seconds
    assert not profile.beside
    with profiled() as second, stage("tower"):
        pass
    assert "tower" in second.seconds


def test_an_error_ends_the_profile_and_leaves_its_times():
    block = profiled()
    profile = block.__enter__()
    inner = stage("branch")
    inner.__enter__()
    time.sleep(0.01)
    error = ZeroDivisionError()
    for context in (inner, block):
        assert not context.__exit__(ZeroDivisionError, error, None)
    assert profile.seconds["branch"] >= 0.01
    with profiled() as second:
        pass
    assert list(second.seconds) == ["other"]


def test_other_threads_do_not_change_the_profile():
    def other() -> None:
        with stage("tower"):
            beside(decode=1.0)

    with profiled() as profile:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert list(profile.seconds) == ["other"]
    assert not profile.beside


def test_concurrent_threads_each_profile_their_block():
    start = threading.Barrier(4)

    def work(name: str) -> list[str]:
        with profiled() as profile:
            start.wait()
            with stage(name):
                start.wait()
            start.wait()
        return list(profile.seconds)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, "abcd")) == [["other", name] for name in "abcd"]


def test_a_profile_inside_a_profile_is_refused():
    with profiled(), pytest.raises(ValueError, match="profiled already; use"), profiled():
        pass


def test_waiting_for_data_is_the_time_until_an_item_is_ready():
    def slow():
        for number in range(3):
            time.sleep(0.02)
            yield number

    with profiled() as profile:
        assert [number for number in awaited(slow()) if not time.sleep(0.005)] == [0, 1, 2]
    assert 0.06 <= profile.seconds["waiting for data"] < profile.total
    assert profile.seconds["other"] >= 0.015


def test_awaited_closes_its_source():
    closed = []

    def source():
        try:
            yield 1
        finally:
            closed.append(True)

    items = awaited(source())
    next(items)
    items.close()
    assert closed


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return motion_shapes.write_dataset(tmp_path_factory.mktemp("shapes"), "test", 8)


def test_embedding_and_training_record_their_stages(tiny_clip, clips):
    model = attach(tiny_clip, branch_kwargs={"depth": 1})
    with profiled() as live:
        embed_videos(model, clips, DataConfig(frames=2, batch_size=4))
    assert set(live.seconds) == {"other", "waiting for data", "normalise", "tower", "branch"}
    assert set(live.beside) == {"decode", "transform"}
    assert min(live.beside.values()) > 0
    store = encode_dataset(model, clips, DataConfig(frames=2))
    with profiled() as cached:
        config = TrainConfig(task="recognition", epochs=1, batch_size=4, data_config=DataConfig(frames=2))
        train(model, store, store, config, progress=False)
    stages = {"branch", "loss", "backward", "optimizer", "validation", "waiting for data", "other"}
    assert set(cached.seconds) == stages  # cached taps need neither tower nor decoding
    assert not cached.beside
    assert str(cached).count(" s") == len(stages) + 1


@pytest.fixture
def table(tmp_path, clips) -> Path:
    """Table of the clips with captions and two classes."""
    rows = [f"{record.path},{record.captions[0]},{i % 2}" for i, record in enumerate(clips)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["path,caption,label", *rows]) + "\n")
    return path


PROFILE = ["--profile"]


def seconds(path: Path) -> dict[str, float]:
    """Return the seconds by stage of a written profile, after checking that they add up to its total."""
    written = json.loads(path.read_text())
    assert written["total_seconds"] == pytest.approx(sum(written["seconds"].values()))
    return written["seconds"]


def test_embed_prints_its_profile_and_writes_it_beside_the_embeddings(tmp_path, clips, capsys):
    out = tmp_path / "e.safetensors"
    assert main(["embed", str(clips[0].path.parent), "--out", str(out), "--data-config.frames", "2", *PROFILE]) == 0
    printed = capsys.readouterr().out
    assert printed.count("waiting for data") == 1
    assert "decode, in parallel" in printed
    assert "tower" in seconds(tmp_path / "e.profile.json")


def test_index_writes_its_profile_beside_its_folder(tmp_path, clips, capsys):
    assert (
        main(["index", "build", str(clips[0].path.parent), "--out", str(tmp_path / "index"), "--frames", "2", *PROFILE])
        == 0
    )
    assert "waiting for data" in capsys.readouterr().out
    assert "tower" in seconds(tmp_path / "index.profile.json")
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.json", "manifest.json", "store"}


def test_train_writes_its_profile_into_the_run(tmp_path, table):
    short = ["--data-config.frames", "2", "--epochs", "1", "--batch-size", "4", "--depth", "1", "--val-fraction", "0.5"]
    assert main(["train", str(table), "--out", str(tmp_path / "run"), *short, *PROFILE]) == 0
    assert {"tower", "branch", "backward"} <= set(seconds(tmp_path / "run" / "profile.json"))


def test_eval_writes_its_profile_beside_the_result(tmp_path, table):
    result = tmp_path / "result.json"
    assert main(["eval", str(table), "--data-config.frames", "2", "--out", str(result), *PROFILE]) == 0
    assert "text" in seconds(tmp_path / "result.profile.json")
