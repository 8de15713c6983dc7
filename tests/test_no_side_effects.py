"""Importing and using clipvid changes no state of the process that other libraries share."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pkgutil
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from forked import in_a_fork, needs_fork

import clipvid
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.models.factory import create_model
from clipvid.training.loop import train

ROOT = Path(clipvid.__file__).parent
MODULES = [m.name for m in pkgutil.walk_packages([str(ROOT)], "clipvid.") if not m.name.endswith("__main__")]


def umask() -> str:
    """Return the umask, read from the kernel: os.umask can only read it by setting it."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the umask is read from /proc")
    return status.read_text().split("Umask:")[1].split()[0]


def process_state() -> dict[str, Any]:
    """Return all state of this process that a library could change for others."""
    loggers = {
        name: logger for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)
    }
    return {
        "umask": umask(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default type": (torch.get_default_dtype(), torch.get_float32_matmul_precision()),
        "numpy errors": np.geterr(),
        "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2:]),
        "logging": [(logging.root.manager.disable, logging.root.level, list(logging.root.handlers))],
        "loggers": {name: (logger.level, logger.propagate, list(logger.handlers)) for name, logger in loggers.items()},
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "python": (sys.getrecursionlimit(), sys.excepthook, list(sys.path)),
    }


def changes(before: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of the process state that differ from `before`; new loggers do not count."""
    after = process_state()
    after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}
    return {name: (before[name], after[name]) for name in before if after[name] != before[name]}


def imported_packages() -> list[str]:
    """Return the third-party modules that clipvid imports: the effects of importing those are not clipvid's."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    names = {
        first or second for first, second in re.findall(r"^ *(?:from ([\w.]+) import|import ([\w.]+))", text, re.M)
    }
    return sorted(name for name in names if name.partition(".")[0] != "clipvid")


SETTERS = (
    (os, "umask"),
    (os, "chdir"),
    (signal, "signal"),
    (warnings, "simplefilter"),
    (warnings, "filterwarnings"),
    (logging, "basicConfig"),
    (logging, "disable"),
    (np, "seterr"),
    (torch, "manual_seed"),
    (torch, "set_num_threads"),
    (torch, "set_num_interop_threads"),
    (torch, "set_default_dtype"),
    (torch, "set_float32_matmul_precision"),
    (sys, "setrecursionlimit"),
)
"""Functions that change the state of the entire process."""


def refused(name: str) -> Callable[..., NoReturn]:
    """Return a replacement for the function `name` that fails."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError(f"{name} was called")

    return fail


def shift_state() -> None:
    """Give this process a state that an earlier import of clipvid cannot have left, so that a second one shows."""
    os.environ.clear()
    os.chdir("/")
    os.umask(0o17)
    warnings.resetwarnings()
    warnings.showwarning = sys.excepthook = refused("a replaced hook")
    torch.manual_seed(17)
    np.random.seed(17)
    loggers = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in (logging.root, *loggers):
        logger.level, logger.propagate, logger.handlers = 17, not logger.propagate, []


def import_every_module() -> None:
    """Import clipvid again, module by module, and check the state of this process after each."""
    for name in imported_packages():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name in [*sys.modules]:
        if name.partition(".")[0] == "clipvid" or name == "matplotlib.pyplot":
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "jaxtyping._import_hook"]
    shift_state()
    before = process_state()
    for library, name in SETTERS:
        setattr(library, name, refused(name))  # a setter that is undone would leave no trace in the state
    importlib.import_module("clipvid")
    for name in MODULES:
        importlib.import_module(name)
        assert not changes(before), (name, changes(before))
    assert "matplotlib.pyplot" not in sys.modules, "it keeps figures and chooses a window system"


@needs_fork
def test_importing_every_module_changes_no_process_state():
    in_a_fork(import_every_module)


@pytest.fixture
def watched_log() -> Iterator[None]:
    """Root logger without handlers, as in a program that has not configured logging: pytest adds its handlers."""
    handlers = [*logging.root.handlers]
    for handler in handlers:
        logging.root.removeHandler(handler)
    yield
    for handler in [*logging.root.handlers]:
        logging.root.removeHandler(handler)
    for handler in handlers:
        logging.root.addHandler(handler)


def test_creating_training_and_scoring_a_model_changes_no_process_state(
    watched_log, monkeypatch, tmp_path, write_video
):
    rng = np.random.default_rng(0)
    clips = [write_video(tmp_path / f"{i}.mp4", rng.integers(0, 255, (4, 48, 48, 3)).astype(np.uint8)) for i in "abcd"]
    data = VideoDataset(tuple(Record(path, (f"clip {path.stem}",)) for path in clips), (), "noise")
    data_config = DataConfig(frames=2, precision="bf16-mixed")
    importlib.import_module("open_clip")  # the effects of importing it are not clipvid's
    config = TrainConfig(epochs=1, batch_size=2, rand_augment=2, data_config=data_config)
    with monkeypatch.context() as patched:
        for library, name in (
            (os, "umask"),
            (logging, "disable"),
            (torch, "manual_seed"),
            (torch, "set_num_threads"),
        ):
            patched.setattr(library, name, refused(name))
        before = process_state()
        create_model("ViT-B-32", device="meta")
        model = create_model("clipvid-mini", branch_kwargs={"depth": 1})
        changed = changes(before)
        changed.pop("random")  # a new branch draws its weights from torch's generator, as any module does
        assert not changed
        before = process_state()
        train(model, data, data, config, progress=False)
        evaluate_retrieval(model, data, data_config)
        assert not changes(before)
