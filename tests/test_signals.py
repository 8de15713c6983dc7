"""Signals during a save take effect after it, and leftovers are taken for what they are."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
import tiny
import torch

from clipvid.cli.main import CONTINUE
from clipvid.data import motion_shapes
from clipvid.errors import CheckpointError
from clipvid.models.factory import attach, load
from clipvid.runtime.files import atomic_file, atomic_folder
from clipvid.runtime.signals import uninterrupted
from clipvid.runtime.storage.staging import LOCK, NEW, remove_dead_staging

pytestmark = pytest.mark.usefixtures("default_signals")


def test_a_signal_during_a_write_comes_after_it(tmp_path):
    def write() -> None:
        with atomic_file(tmp_path / "file") as draft:
            signal.raise_signal(signal.SIGINT)
            draft.write_text("content")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (tmp_path / "file").read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_signal_during_nested_blocks_comes_at_the_end_of_the_outer_one(tmp_path):
    done = []

    def write() -> None:
        with uninterrupted():
            with atomic_folder(tmp_path / "folder"):
                signal.raise_signal(signal.SIGINT)
            done.append("inner")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == ["inner"]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_second_interrupt_leaves_a_write_that_hangs(tmp_path):
    def write() -> None:
        with atomic_file(tmp_path / "file"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second signal is held back")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


def test_other_threads_and_ignored_signals_are_left_alone():
    thread = threading.Thread(target=lambda: uninterrupted().__enter__())
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def _leftover(folder: Path, *, host: str | None) -> Path:
    staging = folder / ".file.abcdefgh.part"
    (staging / NEW).mkdir(parents=True)
    if host is not None:
        (staging / LOCK).write_text(host)
    return staging


@pytest.mark.parametrize(("host", "stays"), [("another computer\n", True), ("", False), (None, True)])
def test_a_leftover_stays_as_long_as_its_writer_may_live(tmp_path, host, stays):
    """The lock of another computer may not be seen here; content without a lock is not that of a killed writer."""
    staging = _leftover(tmp_path, host=host)
    assert remove_dead_staging(tmp_path) == ([] if stays else [staging])
    assert staging.exists() is stays


def test_folders_of_other_programs_stay(tmp_path):
    (tmp_path / ".film.abcdefgh.part").mkdir()
    (tmp_path / ".film.abcdefgh.part" / "segment").touch()
    (tmp_path / ".download.part").touch()
    with atomic_file(tmp_path / "film") as draft:
        draft.write_text("content")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", ['{"look": ', None])
def test_a_data_set_goes_on_after_a_kill(tmp_path, content):
    partial = tmp_path / "test.partial"
    partial.mkdir()
    if content is None:
        expected = {"look": motion_shapes.LOOK, "deal": motion_shapes.DEAL, "split": "test", "seed": 0, "n": 2}
        content = json.dumps(expected)
        for index in range(2):
            motion_shapes._write_chunk(partial, "test", 0, [index])
    (partial / "content.json").write_text(content)
    _leftover(partial, host="")
    assert len(motion_shapes.write_dataset(tmp_path, "test", 2)) == 2
    assert not list((tmp_path / "test").glob(".*"))


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_a_model_of_another_precision_is_saved_so_that_it_loads(tmp_path, change):
    model = attach(tiny.backbone(), branch_kwargs={"depth": 1})
    getattr(model, change)().save(tmp_path / "model")
    loaded = load(tmp_path / "model", base=tiny.backbone())
    expected, weight = next(model.branch.parameters()), next(loaded.branch.parameters())
    assert torch.equal(weight, expected.to(weight.dtype))


def test_a_model_without_values_is_refused_before_anything_is_written(tmp_path):
    model = attach(tiny.backbone(), branch_kwargs={"depth": 1}).to("meta")
    with pytest.raises(CheckpointError, match=r"must have values to be saved, got .* on device meta; load the weights"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_long_commands_say_how_to_continue():
    assert {"train", "embed", "eval", "data check", "index build", "index add", "index refresh"} <= CONTINUE.keys()
