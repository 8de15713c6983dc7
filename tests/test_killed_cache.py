"""A process that writes a cache is killed at random moments: what it finished stays, the rest is never served."""

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
"""Fork a writer, kill it, look at what it left; so many times, then let one finish. Forked from a process that has
loaded everything and, with one thread for torch, runs none beside itself, so a run costs milliseconds."""

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
reading = DataConfig(frames=2, batch_size=1, precision="32-true")
data, model, cache = open_dataset("csv", root), create_model("clipvid-mini", depth=2), TapCache(folder)
place = folder / cache.cache_key(model, reading).key


def begin():
    """A process that fills the cache, from the moment when it begins to encode; its id."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        code, write = 1, disk.write_cache_key
        disk.write_cache_key = lambda *given: (write(*given), os.write(theirs, b"."))
        try:
            cache.store(model, data, reading)
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    os.read(ours, 1)
    os.close(ours)
    return child


def clips():
    """Keys of the clips in finished files, every byte of which is checked."""
    for path in shard_files(place):
        check_shard(path, full=True)
    return set(Shards(place)._location)


cache.store(model, data.subset([0]), reading)  # warm
began = time.perf_counter()
cache.store(model, data.subset(range(1, 6)), reading)
one, draw, before, told = (time.perf_counter() - began) / 5, random.Random(seed), clips(), []
for _ in range(kills):
    child = begin()
    time.sleep(draw.uniform(0, 3 * one * (len(data) - 6) / kills))
    done = clips()  # finished before the blow
    os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    after = clips()
    assert before <= done <= after, "a finished clip was lost"
    told.append({"killed": killed, "clips": len(after), "drafts": len(list(place.glob(".*")))})
    before = after
status = os.waitpid(begin(), 0)[1]
print(json.dumps({"runs": told, "status": status, "clips": len(clips())}))
'''


def test_killed_at_20_random_moments_a_cache_loses_no_finished_clip_and_serves_no_half_one(tmp_path):
    data = write_dataset(tmp_path / "shapes", "test", CLIPS)
    root = data[0].path.parent
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(root), str(tmp_path / "killed"), str(KILLS), "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == 0
    assert told["clips"] == CLIPS
    assert sum(run["killed"] for run in told["runs"]) >= KILLS / 2, told
    assert len({run["clips"] for run in told["runs"]}) >= 3, "the blows fall while clips are written"
    model = create_model("clipvid-mini", depth=2)
    stores = [TapCache(tmp_path / name).store(model, data, DATA_CONFIG) for name in ("killed", "undisturbed")]
    found, wanted = (store.batch(range(CLIPS)) for store in stores)
    for a, b in zip(
        (*found.patches, *found.cls, found.frames), (*wanted.patches, *wanted.cls, wanted.frames), strict=True
    ):
        assert torch.equal(a, b)
    assert [r.path for r in stores[0].data] == [r.path for r in data]
