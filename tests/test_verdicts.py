"""PyAV checks a file for another decoder once; later reads skip the check unless the file changed."""

from __future__ import annotations

import os
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from forked import in_a_fork, needs_fork

from clipvid.errors import VideoError
from clipvid.runtime.storage import stamps
from clipvid.runtime.storage.stamps import Stamp
from clipvid.video.backends import judged, pyav
from clipvid.video.backends.verdicts import Memory, Verdict
from clipvid.video.container import demux
from clipvid.video.container.times import FrameTimes
from clipvid.video.decode import read, read_video


@pytest.fixture
def memory(monkeypatch) -> Memory:
    """Empty memory of verdicts that trusts files as soon as they are written."""
    fresh = Memory()
    monkeypatch.setattr(stamps, "SETTLED", 0.0)
    monkeypatch.setattr(judged, "memory", lambda: fresh)
    return fresh


@pytest.fixture
def openings(monkeypatch) -> list[Path]:
    """Files that PyAV opens, to demux or to decode."""
    paths: list[Path] = []
    open_container = demux.opened

    def opened(path):
        paths.append(Path(path))
        return open_container(path)

    for module in (demux, pyav):
        monkeypatch.setattr(module, "opened", opened)
    return paths


def random_frames(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def clip(tmp_path, write_video) -> Path:
    return write_video(tmp_path / "clip.mp4", random_frames(12))


def test_pyav_does_not_open_a_file_at_the_second_read(clip, memory, openings):
    first = read(clip, [7, 0, 3], backend="decord")
    assert len(openings) == 2  # to list its frames, and to decode the first
    openings.clear()
    assert torch.equal(read(clip, [7, 0, 3], backend="decord"), first)
    part = read_video(clip, 3, start=0.1, end=0.4, backend="decord")
    assert not openings
    assert (part.int() - read_video(clip, 3, start=0.1, end=0.4).int()).abs().max() <= 2


def test_a_changed_file_is_checked_again(clip, memory, openings, write_video):
    read(clip, [0], backend="decord")
    for n in (12, 9):
        write_video(clip, random_frames(n, seed=n))
        openings.clear()
        frames = read(clip, backend="decord")
        assert openings
        assert (frames.int() - read(clip).int()).abs().max() <= 2
    assert len(memory) == 1


def test_a_recently_changed_file_is_not_trusted(clip, memory, openings, monkeypatch):
    monkeypatch.setattr(stamps, "SETTLED", 60.0)
    for _ in range(2):
        openings.clear()
        read(clip, [0], backend="decord")
        assert openings
    assert not len(memory)


def test_a_file_that_is_replaced_during_opening_is_checked_again(
    clip, memory, openings, write_video, tmp_path, monkeypatch
):
    import decord

    other, opens = write_video(tmp_path / "other.mp4", random_frames(12, seed=5)), decord.VideoReader
    read(clip, [0], backend="decord")
    openings.clear()

    def replaces_and_opens(*args, **named):
        if other.exists():
            os.replace(other, clip)
        return opens(*args, **named)

    monkeypatch.setattr(decord, "VideoReader", replaces_and_opens)
    frames = read(clip, backend="decord")
    assert openings
    assert (frames.int() - read(clip).int()).abs().max() <= 2


@pytest.mark.parametrize("reason", ["does not read .*a side below 16", "shows another first frame", "finds 9 frames"])
def test_refusals_are_remembered(tmp_path, memory, openings, write_video, monkeypatch, reason):
    side = 8 if "side" in reason else 32
    path = write_video(tmp_path / "small.mp4", random_frames(9 if "side" in reason else 12)[:, :side, :side])
    if "another" in reason:
        monkeypatch.setattr(pyav, "same_first_frame", lambda *_: False)
    if "finds" in reason:
        listing = judged.listing_of
        monkeypatch.setattr(judged, "listing_of", lambda path: with_one_more_frame(listing(path)))
        reason = "finds 12 frames, PyAV finds 13"
    outcomes = []
    for _ in range(2):
        with pytest.raises(VideoError, match=f"decord {reason}.*use backend='pyav'") as caught:
            read(path, backend="decord")
        outcomes.append((caught.value.reason, len(openings)))
    assert outcomes[0] == outcomes[1]  # no file is opened the second time
    assert len(memory) == 1


def with_one_more_frame(listing):
    shown = FrameTimes((*listing.times, listing.timeline.shown.end), listing.timeline.shown.end + 0.04)
    return replace(listing, timeline=replace(listing.timeline, shown=shown))


def test_a_transient_error_is_not_remembered(clip, memory, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("decord.VideoReader", lambda *_, **__: 1 / 0)
        with pytest.raises(VideoError, match="cannot be opened"):
            read(clip, backend="decord")
    assert not len(memory)
    assert len(read(clip, backend="decord")) == 12


def test_memory_is_bounded_and_drops_newer_entries():
    cost = Verdict.of(lasting([0.0]), stream=0, objection="no").cost
    memory = Memory(limit=3 * cost)
    verdict = Verdict.of(lasting([0.0]), stream=0, objection="no")
    files = [Stamp(0, inode, 1, 1, 1) for inode in range(9)]
    for file in files:
        memory.put(file, "decord", verdict)
    assert [file.inode for file in files if memory.get(file, "decord")] == [0, 1, 8]
    memory.put(Stamp(0, 99, 1, 1, 1), "decord", Verdict.of(lasting(uneven_times(1000)), stream=0, objection=None))
    assert len(memory) <= 3


def lasting(times) -> FrameTimes:
    return FrameTimes(tuple(times), times[-1] + 0.04)


def uneven_times(n: int) -> list[float]:
    return [0.04 * k + 0.01 * (k % 2) for k in range(n)]


@pytest.mark.parametrize("rate", [24, 25, 30, 60])
@pytest.mark.parametrize("drop", [1000, 1001])
def test_times_at_a_constant_rate_need_no_memory_and_are_exact(rate, drop):
    times = [float(k * drop / (rate * 1000)) for k in range(5000)]
    verdict = Verdict.of(lasting(times), stream=0, objection=None)
    assert verdict.stamps is None
    assert verdict.times == tuple(times)
    assert Verdict.of(lasting(uneven_times(7)), stream=0, objection=None).stamps == array("d", uneven_times(7))
    assert Verdict.of(lasting(uneven_times(7)), stream=0, objection=None).times == tuple(uneven_times(7))
    assert Verdict.of(lasting([0.0]), stream=0, objection=None).times == (0.0,)


def test_threads_share_one_memory(tmp_path, memory, openings, write_video):
    paths = [write_video(tmp_path / f"{i}.mp4", random_frames(5 + i, seed=i)) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda k: len(read(paths[k % 4], backend="decord")), range(40)))
    assert counts == [5 + k % 4 for k in range(40)]
    assert len(memory) == 4
    openings.clear()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: read(paths[k % 4], backend="decord"), range(16)))
    assert not openings


@needs_fork
def test_a_process_forked_while_a_thread_uses_the_memory_can_use_it():
    memory, verdict, locked = Memory(), Verdict.of(lasting([0.0]), stream=0, objection="no"), Event()

    def use() -> None:
        with memory._lock:
            locked.set()
            time.sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(use)
        assert locked.wait(10)
        in_a_fork(memory.put, Stamp(1, 1, 1, 1, 1), "decord", verdict)
        work.result()
