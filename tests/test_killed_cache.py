"""A process that writes a cache is killed at random moments: finished clips survive, partial ones are never served."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from clipvid.config.data_config import DataConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.features.tap_cache import TapCache
from clipvid.models.factory import create_model

DATA_CONFIG = DataConfig(frames=2, batch_size=1, precision="32-true")
CLIPS, KILLS = 40, 20

RUN = '''
"""Fork a writer, kill it and check what it left, a given number of times; then let one writer finish. The parent has
loaded everything and runs no second thread (torch has one), so each fork costs milliseconds."""

import json, os, random, signal, sys, time
from pathlib import Path

import torch

from clipvid.features.tap_cache import TapCache
from clipvid.features import tap_cache as disk
from clipvid.features.shards import Shards, check_shard, shard_files
from clipvid.config.data_config import DataConfig
from clipvid.data.open import open_dataset
from clipvid.models.factory import create_model

torch.set_num_threads(1)
root, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
data_config = DataConfig(frames=2, batch_size=1, precision="32-true")
data, model, cache = open_dataset("csv", root), create_model("clipvid-mini", depth=2), TapCache(folder)
cache_folder = folder / cache.cache_key(model, data_config).key


def begin():
    """Fork a process that fills the cache, and return its id once it begins to encode."""
    read_end, write_end = os.pipe()
    if not (child := os.fork()):
        code, write = 1, disk.write_cache_key
        disk.write_cache_key = lambda *args: (write(*args), os.write(write_end, b"."))
        try:
            cache.store(model, data, data_config)
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    return child


def clips():
    """Return the keys of the clips in finished files, after checking every byte of the files."""
    for path in shard_files(cache_folder):
        check_shard(path, full=True)
    return set(Shards(cache_folder)._location)


cache.store(model, data.subset([0]), data_config)  # warm up
began = time.perf_counter()
cache.store(model, data.subset(range(1, 6)), data_config)
per_clip, rng, before, runs = (time.perf_counter() - began) / 5, random.Random(seed), clips(), []
for _ in range(kills):
    child = begin()
    time.sleep(rng.uniform(0, 3 * per_clip * (len(data) - 6) / kills))
    done = clips()  # finished before the kill
    os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    after = clips()
    assert before <= done <= after, "a finished clip was lost"
    runs.append({"killed": killed, "clips": len(after), "drafts": len(list(cache_folder.glob(".*")))})
    before = after
status = os.waitpid(begin(), 0)[1]
print(json.dumps({"runs": runs, "status": status, "clips": len(clips())}))
'''


def test_a_cache_killed_at_20_random_moments_loses_no_finished_clip_and_serves_no_partial_one(tmp_path):
    data = write_dataset(tmp_path / "shapes", "test", CLIPS)
    root = data[0].path.parent
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(root), str(tmp_path / "killed"), str(KILLS), "7"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["status"] == 0
    assert report["clips"] == CLIPS
    assert sum(run["killed"] for run in report["runs"]) >= KILLS / 2, report
    assert len({run["clips"] for run in report["runs"]}) >= 3, "the kills must hit while clips are written"
    model = create_model("clipvid-mini", depth=2)
    stores = [TapCache(tmp_path / name).store(model, data, DATA_CONFIG) for name in ("killed", "undisturbed")]
    taps, expected = (store.batch(range(CLIPS)) for store in stores)
    for a, b in zip(
        (*taps.patches, *taps.cls, taps.frames), (*expected.patches, *expected.cls, expected.frames), strict=True
    ):
        assert torch.equal(a, b)
    assert [r.path for r in stores[0].data] == [r.path for r in data]
