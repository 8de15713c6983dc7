"""A process that writes a cache is killed at random moments: finished clips survive, partial ones are never served."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from clipvid.config.data_config import DataConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import VideoDataset
from clipvid.features import tap_cache
from clipvid.features.shards import Shards, check_shard, shard_files
from clipvid.features.tap_cache import TapCache
from clipvid.models.factory import create_model
from clipvid.models.video_clip import VideoCLIP

DATA_CONFIG = DataConfig(frames=2, batch_size=1, precision="32-true")


@pytest.fixture
def model():
    return create_model("clipvid-mini", branch_kwargs={"depth": 2})


def fill(cache: TapCache, model: VideoCLIP, data: VideoDataset, began: Connection) -> None:
    """Fill the cache, and send a message once encoding begins."""
    torch.set_num_threads(1)  # a forked process lacks its parent's pool of threads, and would wait for it
    write = tap_cache.write_cache_key
    tap_cache.write_cache_key = lambda *args: (write(*args), began.send(True))
    cache.store(model, data, DATA_CONFIG)


def start_writer(cache: TapCache, model: VideoCLIP, data: VideoDataset) -> BaseProcess:
    """Return a forked process that has begun to encode, or has ended as nothing was left to encode.

    A fork costs milliseconds, and loading torch again would cost seconds.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=fill, args=(cache, model, data, send), daemon=True)
    process.start()
    send.close()
    assert receive.poll(60), "the writer hangs"
    with contextlib.suppress(EOFError):
        receive.recv()
    return process


def finished_keys(folder: Path) -> set[str]:
    """Return the keys of the clips in finished files, after checking every byte of the files."""
    for path in shard_files(folder):
        check_shard(path, full=True)
    return set(Shards(folder)._location)


@pytest.mark.skipif(sys.platform != "linux", reason="forks after torch was loaded, which is safe on Linux")
@pytest.mark.parametrize(("n_clips", "n_kills"), [(16, 5), pytest.param(40, 20, marks=pytest.mark.slow)])
def test_a_cache_killed_at_random_moments_loses_no_finished_clip_and_serves_no_partial_one(
    model, tmp_path, n_clips, n_kills
):
    data = write_dataset(tmp_path / "shapes", "test", n_clips)
    cache, undisturbed = TapCache(tmp_path / "killed"), TapCache(tmp_path / "undisturbed")
    folder = tmp_path / "killed" / cache.cache_key(model, DATA_CONFIG).key
    cache.store(model, data.subset([0]), DATA_CONFIG)  # the first call also imports and prepares
    started = time.perf_counter()
    expected = undisturbed.store(model, data, DATA_CONFIG)
    seconds = time.perf_counter() - started
    rng, before, kills, counts = random.Random(7), finished_keys(folder), 0, set()
    for _ in range(n_kills):
        process = start_writer(cache, model, data)
        time.sleep(rng.uniform(0, 4 * seconds / n_kills))
        done = finished_keys(folder)  # before the kill
        process.kill()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        after = finished_keys(folder)
        assert before <= done <= after, "a finished clip was lost"
        before = after
        kills += process.exitcode == -signal.SIGKILL
        counts.add(len(after))
    assert kills >= n_kills / 2
    assert len(counts) >= 3, "the kills must hit while clips are written"
    process = start_writer(cache, model, data)
    process.join(60)
    assert process.exitcode == 0
    assert len(finished_keys(folder)) == n_clips
    resumed = TapCache(tmp_path / "killed").store(model, data, DATA_CONFIG)
    taps = [store.batch(range(n_clips)) for store in (resumed, expected)]
    for a, b in zip(*((*t.patches, *t.cls, t.frames) for t in taps), strict=True):
        assert torch.equal(a, b)
    assert [r.path for r in resumed.data] == [r.path for r in data]
