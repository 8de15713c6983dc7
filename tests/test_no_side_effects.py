"""Importing and using clipvid changes nothing of the process that others of its parts share."""

from __future__ import annotations

import ast
import importlib
import logging
import os
import pkgutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

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
    """The umask, read from the kernel: reading it by os.umask would set it."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the umask is read from /proc")
    return status.read_text().split("Umask:")[1].split()[0]


def process_state() -> dict[str, Any]:
    """Everything of this process that a library could change for the others in it."""
    loggers = {name: it for name, it in logging.root.manager.loggerDict.items() if isinstance(it, logging.Logger)}
    return {
        "umask": umask(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default type": (torch.get_default_dtype(), torch.get_float32_matmul_precision()),
        "numpy errors": np.geterr(),
        "random": (torch.get_rng_state().tolist(), str(np.random.get_state())),
        "logging": [(logging.root.manager.disable, logging.root.level, list(logging.root.handlers))],
        "loggers": {name: (it.level, it.propagate, list(it.handlers)) for name, it in loggers.items()},
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "python": (sys.getrecursionlimit(), sys.excepthook, list(sys.path)),
    }


def changes(before: dict[str, Any]) -> dict[str, Any]:
    """Entries of the process's state that differ by now; loggers that are new are not a change of others."""
    after = process_state()
    after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}
    return {name: (before[name], after[name]) for name in before if after[name] != before[name]}


def imported_packages() -> list[str]:
    """Modules of others that clipvid's files import anywhere: the effects of importing those are not clipvid's."""
    names: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return sorted(name for name in names if not name.startswith("clipvid"))


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
"""Functions that change the process for everyone in it."""


def refused(name: str) -> Callable[..., NoReturn]:
    """Return a function in the place of `name` that fails."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError(f"{name} was called")

    return fail


IMPORTS = """
import contextlib, importlib, sys
import test_no_side_effects as here
for name in here.imported_packages():
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
for name in [name for name in sys.modules if name.startswith("clipvid")]:
    del sys.modules[name]
before = here.process_state()
for owner, name in here.SETTERS:
    setattr(owner, name, here.refused(name))  # one that sets and puts back would leave no trace in the state
importlib.import_module("clipvid")
for name in here.MODULES:
    importlib.import_module(name)
    assert not here.changes(before), (name, here.changes(before))
"""


def test_importing_every_module_changes_nothing_of_the_process():
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def watched_log() -> Iterator[None]:
    """A root logger without handlers, as that of a program that has not set up its log: pytest adds some of its own."""
    handlers = [*logging.root.handlers]
    for handler in handlers:
        logging.root.removeHandler(handler)
    yield
    for handler in [*logging.root.handlers]:
        logging.root.removeHandler(handler)
    for handler in handlers:
        logging.root.addHandler(handler)


def test_making_training_and_scoring_a_model_changes_nothing_of_the_process(
    watched_log, monkeypatch, tmp_path, write_video
):
    rng = np.random.default_rng(0)
    clips = [write_video(tmp_path / f"{i}.mp4", rng.integers(0, 255, (4, 48, 48, 3)).astype(np.uint8)) for i in "abcd"]
    data = VideoDataset(tuple(Record(path, (f"clip {path.stem}",)) for path in clips), (), "noise")
    data_config = DataConfig(frames=2, precision="bf16-mixed")
    importlib.import_module("open_clip")  # the effects of importing it are its own
    config = TrainConfig(epochs=1, batch_size=2, rand_augment=2, data_config=data_config)
    with monkeypatch.context() as patched:
        for video_index, name in (
            (os, "umask"),
            (logging, "disable"),
            (torch, "manual_seed"),
            (torch, "set_num_threads"),
        ):
            patched.setattr(video_index, name, refused(name))
        before = process_state()
        create_model("ViT-B-32", device="meta")
        model = create_model("clipvid-mini", depth=1)
        changed = changes(before)
        changed.pop("random")  # a branch's weights are drawn from torch's generator, as those of any module
        assert not changed
        before = process_state()
        train(model, data, data, config, progress=False)
        evaluate_retrieval(model, data, data_config)
        assert not changes(before)
