"""Batches decoded in the background: the same batches, errors at their own batch, no thread or process left behind."""

from __future__ import annotations

import os
import pickle
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from multiprocessing import active_children, get_all_start_methods, get_context, get_start_method, set_start_method
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data import loader, motion_shapes
from clipvid.data.batches.batch import collate, in_order
from clipvid.data.dataset import ClipDataset
from clipvid.data.loader import batches_of
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import VideoError, WorkerError
from clipvid.models.factory import attach
from clipvid.runtime.prefetch import prefetch
from clipvid.runtime.storage import stamps
from clipvid.training.loop import train
from clipvid.video.backends import judged, verdicts
from clipvid.video.backends.verdicts import Memory, Verdict
from clipvid.video.container.times import FrameTimes
from clipvid.video.transforms import VideoTransform


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clipvid-")]


@pytest.fixture
def dataset(tmp_path, write_video) -> ClipDataset:
    """Seven clips, sampled and augmented at random; the sixth is not a video."""
    records = []
    for number in range(7):
        pictures = np.full((6 + number, 32, 48, 3), 30 * number, np.uint8)
        pictures[:, :, :: number + 2] += np.arange(6 + number, dtype=np.uint8)[:, None, None, None] * 8
        records.append(Record(write_video(tmp_path / f"{number}.mp4", pictures), captions=(f"clip {number}",)))
    records[5].path.write_text("no video")
    transform = VideoTransform(16, crop_scale=(0.3, 1.0), flip=0.5)
    return ClipDataset(
        VideoDataset(tuple(records)), frames=4, transform=transform, random=True, unreadable="skip", seed=3
    )


def as_is(dataset: ClipDataset, batch_rows):
    """Return the batches that a single thread makes, clip by clip."""
    return [collate([dataset[row] for row in rows]) for rows in batch_rows]


def same(batches, expected) -> bool:
    return len(batches) == len(expected) and all(
        torch.equal(a.video, b.video) and torch.equal(a.index, b.index) for a, b in zip(batches, expected, strict=True)
    )


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_give_the_batches_of_loading_clip_by_clip(dataset, monkeypatch, n_threads):
    monkeypatch.setattr(loader, "_threads", lambda device: n_threads)
    batch_rows = [[3, 0], [6], [5, 1], [5], [2, 4]]
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        batches = list(batches_of(dataset, batch_rows))
        assert same(batches, as_is(dataset, batch_rows))
        assert [len(batch.unreadable) for batch in batches] == [0, 0, 1, 1, 0]
    assert not threads()


@pytest.mark.slow
def test_processes_give_the_same_batches(dataset):
    batch_rows = in_order(len(dataset), 3)
    assert same(list(batches_of(dataset, batch_rows, workers=2)), as_is(dataset, batch_rows))


@pytest.fixture
def loaders(monkeypatch) -> list[object]:
    """Iterators of loaders that were started, referenced as by a traceback.

    Their processes must not end merely because the last reference to them goes.
    """
    iterators: list[object] = []
    make_iterator = DataLoader.__iter__
    monkeypatch.setattr(DataLoader, "__iter__", lambda self: iterators.append(make_iterator(self)) or iterators[-1])
    return iterators


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_no_process_outlives_an_error_in_the_consumer(dataset, loaders, error):
    def use() -> None:
        with closing(batches_of(dataset, in_order(7, 1), workers=1)) as batches:
            for _ in batches:
                assert active_children()
                raise error

    with pytest.raises(error):
        use()
    assert len(loaders) == 1
    assert not active_children()


def test_no_process_outlives_an_unreadable_file(dataset, loaders):
    dataset.unreadable = "raise"
    with pytest.raises(VideoError, match=r"5\.mp4"):
        list(batches_of(dataset, [[0], [5], [1]], workers=1))
    assert len(loaders) == 1
    assert not active_children()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_killed_worker_is_one_clear_error(dataset, loaders):
    class Deadly(VideoTransform):
        def augment(self, frames, rng):
            os.kill(os.getpid(), signal.SIGKILL)

    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"a worker process was ended .*workers=0"):
        list(batches_of(with_transform(dataset, Deadly(16)), [[0], [1]], workers=1))
    assert time.monotonic() - start < 60
    assert not active_children()


UNGUARDED = """
import multiprocessing, sys
multiprocessing.set_start_method("spawn", force=True)
if __name__ == "__mp_main__" and sys.argv[2] == "1":  # a worker fails here as it would at the end, but sooner
    multiprocessing.Process().start()
from pathlib import Path
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from clipvid.data.dataset import ClipDataset
from clipvid.data.loader import batches_of
from clipvid.data.records import Record, VideoDataset
from clipvid.video.transforms import VideoTransform
assert len(_MultiProcessingDataLoaderIter._try_get_data.__defaults__) == 1
_MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)  # torch looks for ended workers every 5 s
data = VideoDataset((Record(Path(sys.argv[1])),) * int(sys.argv[2]))
list(batches_of(ClipDataset(data, frames=2, transform=VideoTransform(16)), [[0]], workers=1))
"""


def run_script(script: Path, arguments: list[str], errors: Path) -> None:
    """Run a script as the main module of this process, and send what it writes about errors to a file."""
    sys.argv, sys.stderr = [str(script), *arguments], errors.open("w", encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")  # multiprocessing writes the traceback


def check_main_guard_error(exit_code: int | None, errors: str) -> None:
    last = errors.splitlines()[-1]
    assert exit_code == 1
    assert last.startswith("clipvid.errors.WorkerError: worker processes ended as they started"), errors
    assert 'under `if __name__ == "__main__":`, or give workers=0' in last


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks a process that has torch")
def test_a_script_without_a_main_guard_gets_an_error_that_says_so(tmp_path, dataset):
    (tmp_path / "run.py").write_text(UNGUARDED)
    arguments = [str(dataset.data[0].path), "1"]
    # A fork imports nothing again.
    target = partial(run_script, tmp_path / "run.py", arguments, tmp_path / "errors")
    process = get_context("fork").Process(target=target)
    process.start()
    process.join(120)
    check_main_guard_error(process.exitcode, (tmp_path / "errors").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("clips", [1, 20_000])  # 20,000 clips fill the pipe
def test_an_interpreter_that_runs_a_script_without_a_main_guard_ends_with_that_error(tmp_path, dataset, clips):
    script = tmp_path / "run.py"
    script.write_text(UNGUARDED)
    command = [sys.executable, str(script), str(dataset.data[0].path), str(clips)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    check_main_guard_error(process.returncode, process.stderr)


def test_a_new_process_is_sent_the_clips_and_the_decoder_verdicts(dataset, monkeypatch):
    """Start methods other than fork pickle what a worker needs; a forked one inherits it."""
    sent: list[bytes] = []

    class Recorder:
        def __init__(self, clips, *, worker_init_fn, collate_fn, **_) -> None:
            sent.append(pickle.dumps((clips, worker_init_fn, collate_fn)))

        def __iter__(self):
            return self

        def __next__(self) -> None:
            raise StopIteration

        def _shutdown_workers(self) -> None: ...

    monkeypatch.setattr(loader, "DataLoader", Recorder)
    main_process, new_process = Memory(), Memory()
    file = verdicts.identity(dataset.data[0].path)
    objection = Verdict.of(FrameTimes((), 0.0), stream=0, objection="a verdict that only the main process has")
    main_process.learn({("decord", file.device, file.inode): (file, objection)})
    monkeypatch.setattr(loader, "memory", lambda: main_process)
    assert list(batches_of(dataset, [[0]], workers=1)) == []
    monkeypatch.setattr(loader, "memory", lambda: new_process)
    clips, start, collate_for_sending = pickle.loads(sent[0])
    start(0)
    assert new_process.get(file, "decord") == objection
    received = pickle.loads(pickle.dumps(collate_for_sending([clips[1]])))
    assert same([received.batch], as_is(dataset, [[1]]))


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_get_the_decoder_verdicts_and_send_new_ones_back(tmp_path, write_video, monkeypatch, context):
    if context not in get_all_start_methods():
        pytest.skip(f"needs {context}")
    default_method = get_start_method()
    fresh = Memory()
    monkeypatch.setattr(verdicts, "memory", lambda: fresh)
    for module in (loader, judged):
        monkeypatch.setattr(module, "memory", lambda: fresh)
    new, old = (write_video(tmp_path / name, np.zeros((6, 32, 32, 3), np.uint8)) for name in ("new.mp4", "old.mp4"))
    files = {path: verdicts.identity(path) for path in (new, old)}
    objection = Verdict.of(FrameTimes((), 0.0), stream=0, objection="a verdict that only the main process has")
    fresh.learn({("decord", files[old].device, files[old].inode): (files[old], objection)})
    monkeypatch.setattr(stamps, "SETTLED", 0.0)
    data = VideoDataset((Record(new), Record(old)))
    clips = ClipDataset(data, frames=2, transform=VideoTransform(16), backend="decord")
    set_start_method(context, force=True)
    try:
        if context == "spawn":  # the patched SETTLED does not reach a spawned process
            time.sleep(2.1)
        batches = batches_of(clips, [[0], [1]], workers=1)
        assert next(batches).index.tolist() == [0]
        assert fresh.get(files[new], "decord") is not None
        with pytest.raises(VideoError, match="a verdict that only the main process has"):
            next(batches)
        assert fresh.news is None, "only workers list what is new"
    finally:
        set_start_method(default_method, force=True)


def test_an_unreadable_file_is_an_error_at_its_own_batch(dataset):
    dataset.unreadable = "raise"
    batches = batches_of(dataset, [[0], [1], [2], [5], [3]])
    assert [next(batches).index.tolist() for _ in range(3)] == [[0], [1], [2]]
    with pytest.raises(VideoError, match=r"5\.mp4"):
        next(batches)
    assert not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_no_thread_outlives_an_error_in_the_consumer(dataset, error):
    def use() -> None:
        with closing(batches_of(dataset, in_order(7, 1))) as batches:
            for _ in batches:
                assert threads()
                raise error

    with pytest.raises(error) as caught:
        use()
    assert caught.traceback  # the traceback references the frames, and still no thread is left
    assert not threads()


def test_closing_a_loader_abandons_the_clip_that_is_being_decoded(dataset, monkeypatch):
    begun = threading.Event()
    stopped_at_frame: list[bool] = []
    stop_checks: list[Callable[[], bool]] = []
    original = ClipDataset.stopping
    monkeypatch.setattr(
        ClipDataset, "stopping", lambda self, stopped: stop_checks.append(stopped) or original(self, stopped)
    )

    class Watched(VideoTransform):
        def augment(self, frames, rng):
            if len(stopped_at_frame) == 4:  # the first clip is done; this is the first frame of the second
                begun.set()
                deadline = time.monotonic() + 30
                while not stop_checks[0]() and time.monotonic() < deadline:
                    time.sleep(0.005)
            stopped_at_frame.append(stop_checks[0]())
            return super().augment(frames, rng)

    dataset.transform = Watched(16)
    batches = batches_of(dataset, [[0], [1], [2]])
    next(batches)
    assert begun.wait(30)
    batches.close()  # signals the stop, then waits for the current frame
    assert stopped_at_frame == [False] * 4 + [True]  # three frames of the second clip and all of the third are skipped
    assert not threads()


def test_prefetch_runs_two_jobs_ahead_and_no_further():
    done: list[int] = []
    results = prefetch(partial(lambda n: done.append(n) or n, n) for n in range(9))
    assert next(results) == 0
    time.sleep(0.05)
    assert done in ([0], [0, 1], [0, 1, 2])
    results.close()
    assert not threads()


def test_results_overlap_with_their_use():
    done = [threading.Event() for _ in range(6)]
    for number, _ in enumerate(prefetch(event.set for event in done)):
        assert all(event.wait(30) for event in done[: number + 3])  # the next two are made while this one is used


def test_the_error_of_a_job_comes_after_the_results_before_it():
    results = prefetch([lambda: 1, lambda: 1 // 0, lambda: 3])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads()


def test_decode_times_are_part_of_the_batch(dataset):
    frames_seen: list[None] = []

    class Slow(VideoTransform):
        def augment(self, frames, rng):
            frames_seen.append(None)
            time.sleep(0.02)
            return super().augment(frames, rng)

    start = time.perf_counter()
    plain, slow = as_is(dataset, [[0, 1]])[0].durations, as_is(with_transform(dataset, Slow(16)), [[0, 1]])[0].durations
    elapsed = time.perf_counter() - start
    assert min(plain) > 0
    assert slow.transform >= 0.02 * len(frames_seen) > 0
    assert sum(plain) + sum(slow) <= elapsed


def with_transform(dataset: ClipDataset, transform: VideoTransform) -> ClipDataset:
    dataset.transform = transform
    return dataset


def test_clips_are_passed_as_uint8(dataset):
    (batch,) = batches_of(dataset, [[0, 1]])
    assert batch.video.dtype == torch.uint8


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_training_that_stops_early_leaves_no_thread(tiny_clip, tmp_path, monkeypatch, error):
    data = motion_shapes.write_dataset(tmp_path / "shapes", "test", 8)
    alive: list[list[str]] = []

    def step(run, batch):
        alive.append(threads())
        raise error

    monkeypatch.setattr("clipvid.training.trainer.Run.step", step)
    config = TrainConfig(task="recognition", epochs=1, batch_size=2, data_config=DataConfig(frames=2))
    with pytest.raises(error) as caught:
        train(attach(tiny_clip, branch_kwargs={"depth": 1}), data, None, config, progress=False)
    assert caught.traceback
    assert alive[0]
    assert not threads()
