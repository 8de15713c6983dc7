"""The profile of a run: stages that add up, work beside them, and nothing where nobody asks."""

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
from clipvid.features.memory import encode_dataset
from clipvid.models.factory import attach
from clipvid.runtime.profiling import awaited, beside, profiled, stage
from clipvid.training.loop import train


def test_stages_add_up_and_an_inner_one_takes_its_time_out_of_the_outer():
    start = time.perf_counter()
    with profiled() as found, stage("loss"):
        time.sleep(0.02)
        with stage("tower"):
            time.sleep(0.05)
        with stage("tower"):
            time.sleep(0.01)
    whole = time.perf_counter() - start
    assert 0.06 <= found.seconds["tower"] < 0.2
    assert 0.02 <= found.seconds["loss"] < found.seconds["tower"]
    assert found.total == pytest.approx(sum(found.seconds.values()))
    assert 0.08 <= found.total <= whole


def test_a_whole_stage_keeps_what_happens_inside_it():
    with profiled() as found, stage("validation", complete=True), stage("tower"):
        beside(decode=1.0)
        time.sleep(0.01)
    assert found.seconds["validation"] >= 0.01
    assert "tower" not in found.seconds
    assert not found.beside
    with profiled() as again, stage("tower"):
        pass
    assert "tower" in again.seconds


def test_an_error_ends_the_profile_and_leaves_its_figures():
    block = profiled()
    found = block.__enter__()
    inner = stage("branch")
    inner.__enter__()
    time.sleep(0.01)
    error = ZeroDivisionError()
    for context in (inner, block):
        assert not context.__exit__(ZeroDivisionError, error, None)
    assert found.seconds["branch"] >= 0.01
    with profiled() as second:
        pass
    assert list(second.seconds) == ["other"]


def test_other_threads_do_not_switch_the_stopwatch():
    def other() -> None:
        with stage("tower"):
            beside(decode=1.0)

    with profiled() as found:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert list(found.seconds) == ["other"]
    assert not found.beside


def test_threads_profile_their_own_blocks_at_the_same_time():
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


def test_waiting_is_the_time_until_an_item_comes():
    def slow():
        for number in range(3):
            time.sleep(0.02)
            yield number

    with profiled() as found:
        assert [number for number in awaited(slow()) if not time.sleep(0.005)] == [0, 1, 2]
    assert 0.06 <= found.seconds["waiting for data"] < found.total
    assert found.seconds["other"] >= 0.015


def test_awaiting_closes_what_it_awaits():
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


@pytest.fixture
def clips(tmp_path):
    return motion_shapes.write_dataset(tmp_path / "shapes", "test", 8)


def test_embedding_and_training_say_where_their_time_went(tiny_clip, clips):
    model = attach(tiny_clip, depth=1)
    with profiled() as live:
        embed_videos(model, clips, DataConfig(frames=2, batch_size=4))
    assert set(live.seconds) == {"other", "waiting for data", "normalise", "tower", "branch"}
    assert set(live.beside) == {"decode", "transform"}
    assert min(live.beside.values()) > 0
    store = encode_dataset(model, clips, DataConfig(frames=2))
    with profiled() as cached:
        config = TrainConfig(task="recognition", epochs=1, batch_size=4, data_config=DataConfig(frames=2))
        train(model, store, store, config, progress=False)
    learned = {"branch", "loss", "backward", "optimiser", "validation", "waiting for data", "other"}
    assert set(cached.seconds) == learned  # no tower, nothing decoded
    assert not cached.beside
    assert str(cached).count(" s") == len(learned) + 1


@pytest.fixture
def table(tmp_path, clips) -> Path:
    """The clips with captions and two classes."""
    rows = [f"{record.path},{record.captions[0]},{i % 2}" for i, record in enumerate(clips)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["path,caption,label", *rows]) + "\n")
    return path


ASKED = ["--profile", "true"]


def seconds(path: Path) -> dict[str, float]:
    """Of a profile that was written, which adds up."""
    told = json.loads(path.read_text())
    assert told["total seconds"] == pytest.approx(sum(told["seconds"].values()))
    return told["seconds"]


def test_embed_prints_its_profile_and_writes_it_beside_the_embeddings(tmp_path, clips, capsys):
    out = tmp_path / "e.safetensors"
    assert main(["embed", str(clips[0].path.parent), "--out", str(out), "--data_config.frames", "2", *ASKED]) == 0
    printed = capsys.readouterr().out
    assert printed.count("waiting for data") == 1
    assert "decode, beside" in printed
    assert "tower" in seconds(tmp_path / "e.profile.json")


def test_index_writes_its_profile_beside_its_folder(tmp_path, clips, capsys):
    assert main(["index", str(clips[0].path.parent), "--out", str(tmp_path / "index"), "--frames", "2", *ASKED]) == 0
    assert "waiting for data" in capsys.readouterr().out
    assert "tower" in seconds(tmp_path / "index.profile.json")
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.json", "vectors.faiss"}


def test_train_writes_its_profile_into_the_run(tmp_path, table):
    short = ["--data_config.frames", "2", "--epochs", "1", "--batch_size", "4", "--depth", "1", "--val_fraction", "0.5"]
    assert main(["train", str(table), "--out", str(tmp_path / "run"), *short, *ASKED]) == 0
    assert {"tower", "branch", "backward"} <= set(seconds(tmp_path / "run" / "profile.json"))


def test_eval_writes_its_profile_beside_the_card(tmp_path, table):
    result = tmp_path / "result.json"
    assert main(["eval", str(table), "--data_config.frames", "2", "--out", str(result), *ASKED]) == 0
    assert "text" in seconds(tmp_path / "result.profile.json")
