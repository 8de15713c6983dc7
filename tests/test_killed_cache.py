"""A process that writes a cache is killed at random moments: finished clips survive, partial ones are never served."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import time
from multiprocessing.connection import Connection
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

DATA_CONFIG = DataConfig(frames=2, batch_size=1, precision="32-true")
CLIPS, KILLS = 40, 20


@pytest.fixture
def model():
    return create_model("clipvid-mini", depth=2)


def fill(cache: TapCache, model, data: VideoDataset, began: Connection) -> None:
    """Fill the cache, and send a message once encoding begins."""
    torch.set_num_threads(1)  # the pool of threads stayed in the process that forked this one
    write = tap_cache.write_cache_key
    tap_cache.write_cache_key = lambda *args: (write(*args), began.send(True))
    cache.store(model, data, DATA_CONFIG)


def writer(*args) -> multiprocessing.Process:
    """Return a forked process that has begun to encode, or has ended as nothing was left to encode.

    A fork costs milliseconds, and loading torch again would cost seconds.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=fill, args=(*args, send))
    process.start()
    send.close()
    with contextlib.suppress(EOFError):
        receive.recv()
    return process


def finished(folder: Path) -> set[str]:
    """Return the keys of the clips in finished files, after checking every byte of the files."""
    for path in shard_files(folder):
        check_shard(path, full=True)
    return set(Shards(folder)._location)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_cache_killed_at_20_random_moments_loses_no_finished_clip_and_serves_no_partial_one(model, tmp_path):
    data = write_dataset(tmp_path / "shapes", "test", CLIPS)
    cache, undisturbed = TapCache(tmp_path / "killed"), TapCache(tmp_path / "undisturbed")
    folder = tmp_path / "killed" / cache.cache_key(model, DATA_CONFIG).key
    started = time.perf_counter()
    expected = undisturbed.store(model, data, DATA_CONFIG)
    seconds = time.perf_counter() - started
    cache.store(model, data.subset([0]), DATA_CONFIG)
    rng, before, kills, counts = random.Random(7), finished(folder), 0, set()
    for _ in range(KILLS):
        process = writer(cache, model, data)
        time.sleep(rng.uniform(0, 3 * seconds / KILLS))
        done = finished(folder)  # before the kill
        process.kill()
        process.join()
        after = finished(folder)
        assert before <= done <= after, "a finished clip was lost"
        before = after
        kills += process.exitcode == -signal.SIGKILL
        counts.add(len(after))
    assert kills >= KILLS / 2
    assert len(counts) >= 3, "the kills must hit while clips are written"
    process = writer(cache, model, data)
    process.join()
    assert process.exitcode == 0
    assert len(finished(folder)) == CLIPS
    resumed = TapCache(tmp_path / "killed").store(model, data, DATA_CONFIG)
    taps = [store.batch(range(CLIPS)) for store in (resumed, expected)]
    for a, b in zip(*((*t.patches, *t.cls, t.frames) for t in taps), strict=True):
        assert torch.equal(a, b)
    assert [r.path for r in resumed.data] == [r.path for r in data]
