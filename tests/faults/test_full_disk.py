"""Saves to a disk that fills up: one clear error with the path, the earlier version as it was, and no leftovers."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from faults import Child, command, leftovers, needs_fork
from test_kills import DATA_CONFIG

from clipvid.config.settings import TrainConfig
from clipvid.data.check import check
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CacheError, ClipvidWarning
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.tap_cache import TapCache
from clipvid.models.factory import attach, load
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import append_line, describe_os_error
from clipvid.search.index import VideoIndex
from clipvid.training.loggers import TensorBoardLogger
from clipvid.training.loop import train

resource = pytest.importorskip("resource")
pytestmark = needs_fork
ROOM = 1 << 20
"""Bytes of the small disk."""


@contextmanager
def _limited(n_bytes: int) -> Iterator[None]:
    """Limit the size of files that this process writes: beyond it a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """Return the folder of a disk of `ROOM` bytes; skip the test where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def model() -> VideoCLIP:
    torch.manual_seed(1)
    return attach(tiny.backbone(), branch_kwargs={"depth": 1})


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video) -> VideoDataset:
    """Eight short videos of noise with a caption each."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    frames = rng.integers(0, 255, (8, 4, 48, 48, 3)).astype(np.uint8)
    records = [Record(write_video(folder / f"{i}.mp4", frames[i]), (f"clip {i}",)) for i in range(8)]
    return VideoDataset(tuple(records), (), "noise")


def save_model(model: VideoCLIP, clips: VideoDataset, out: Path) -> None:
    model.save(out / "model")


def save_index(model: VideoCLIP, clips: VideoDataset, out: Path) -> None:
    index = VideoIndex(model, replace(DATA_CONFIG, unreadable="skip"))
    index._put([r.path for r in clips], np.eye(len(clips), 16, dtype=np.float32))
    index.save(out / "index")


def save_result(model: VideoCLIP, clips: VideoDataset, out: Path) -> None:
    evaluate_retrieval(model, clips, DATA_CONFIG).save(out / "result.json", per_query=True)


def save_run(model: VideoCLIP, clips: VideoDataset, out: Path) -> None:
    torch.manual_seed(1)
    model = attach(tiny.backbone(), branch_kwargs={"depth": 1})
    config = TrainConfig(epochs=1, batch_size=8, data_config=DATA_CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipvidWarning)  # of the curves
        train(model, clips, None, config, out=out / "run", resume=True, progress=False)


def save_cache(model: VideoCLIP, clips: VideoDataset, out: Path) -> None:
    TapCache(out / "cache").store(model, clips, DATA_CONFIG)


SAVES: dict[str, Callable[[VideoCLIP, VideoDataset, Path], None]] = {
    "model": save_model,
    "index": save_index,
    "result": save_result,
    "run": save_run,
    "cache": save_cache,
}


def _content(folder: Path) -> dict[str, bytes]:
    ignored = ("tensorboard", "hashes.jsonl")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part in ignored for part in path.parts)
    }


def _fill(disk: Path) -> None:
    """Fill a disk to its last block."""
    with suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def _message(kind: str, model: VideoCLIP, clips: VideoDataset, out: Path) -> str:
    with pytest.raises((OSError, CacheError)) as caught:
        SAVES[kind](model, clips, out)
    return describe_os_error(caught.value) if isinstance(caught.value, OSError) else str(caught.value)


@pytest.mark.parametrize("kind", SAVES)
def test_a_save_to_a_full_disk_names_it_and_leaves_the_earlier_version(model, clips, tmp_path, kind):
    SAVES[kind](model, clips, tmp_path)
    if kind in ("run", "cache"):  # else the next call finds that all is done
        (tmp_path / "new").mkdir()
        out = tmp_path / "new"
    else:
        out = tmp_path
    before = _content(out)
    with _limited(200):
        message = _message(kind, model, clips, out)
    assert str(out) in message
    assert "\n" not in message
    assert _content(out) == before
    assert leftovers(tmp_path) == []
    SAVES[kind](model, clips, out)


@pytest.mark.parametrize("kind", ["model", "index", "result", "run"])
def test_a_disk_that_is_full_is_an_error_that_says_so(model, clips, disk, kind):
    SAVES[kind](model, clips, disk)
    before = _content(disk)
    _fill(disk)
    if kind == "run":
        (disk / "run" / "checkpoint.pt").unlink()
        before = {name: content for name, content in before.items() if name != "run/checkpoint.pt"}
        _fill(disk)
    message = _message(kind, model, clips, disk)
    assert str(disk) in message
    assert "\n" not in message
    (disk / "filler").unlink()
    assert _content(disk) == before
    assert leftovers(disk) == []


def _log_curves(folder: Path) -> None:
    logger = TensorBoardLogger(folder)
    for step in range(200):
        logger.log({"loss": 1.0, "lr": 0.1}, step)
    logger.close()


def test_curves_that_cannot_be_written_are_a_warning(tmp_path, capfd):
    with _limited(200), pytest.warns(ClipvidWarning, match=f"{tmp_path}/curves.*training goes on without curves"):
        _log_curves(tmp_path / "curves")
    assert capfd.readouterr().err == ""


def test_curves_are_those_that_tensorboard_reads(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    for step in range(3):
        logger.log({"loss": step / 2, "lr": 0.1}, step)
    logger.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_a_line_that_does_not_fit_is_taken_back(tmp_path):
    append_line(tmp_path / "log", b"first\n")
    with _limited(10), pytest.raises(OSError, match="large") as caught:
        append_line(tmp_path / "log", b"a line that is longer\n")
    assert caught.value.filename == str(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == b"first\n"


def _in(folder: Path, words: list[str]) -> int:
    os.chdir(folder)
    return command(*words)


@pytest.mark.parametrize("option", [[], ["--cache", "cache"]], ids=["embed", "embed with a cache"])
def test_a_command_says_it_in_one_line(clips, disk, tmp_path, option):
    sources = [str(record.path) for record in clips]
    words = ["embed", *sources, "--data-config.frames", "1", "--out", "e.safetensors", *option]
    _fill(disk)
    child = Child(tmp_path / "log", _in, disk, words)
    assert child.wait() == 1, child.output
    ended = [line for line in child.output.splitlines() if line.startswith("clipvid embed: ")]
    assert len(ended) == 1, child.output
    assert "Traceback" not in child.output
    assert ("cache" if option else "e.json") in ended[0]
    assert leftovers(disk) == []


def test_a_data_check_on_a_full_disk_keeps_its_log(clips, tmp_path):
    check(clips.subset([0]), tmp_path / "check", workers=1)
    log = next(path for path in (tmp_path / "check").iterdir() if path.name != "report.json")
    before = log.read_bytes()
    with _limited(len(before) + 20), pytest.raises(OSError, match="large") as caught:
        check(clips, tmp_path / "check", workers=1)
    assert str(tmp_path / "check") in describe_os_error(caught.value)
    assert log.read_bytes() == before
    assert check(clips, tmp_path / "check", workers=1).probed == len(clips) - 1


def test_the_model_that_was_saved_before_still_loads(model, tmp_path):
    model.save(tmp_path / "model")
    with _limited(1000), pytest.raises(OSError, match="cannot be written"):
        model.save(tmp_path / "model")
    load(tmp_path / "model", base=tiny.backbone())
