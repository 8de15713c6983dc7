"""Commands that Ctrl-C, SIGTERM or SIGHUP ends at random moments: one line, the right code, and a rerun goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import Child, command, leftovers, needs_fork, run, seeded

from clipvid.data.motion_shapes import write_dataset
from clipvid.features.maintenance import parts_of
from clipvid.models.factory import create_model, load
from clipvid.search.index import VideoIndex

pytestmark = needs_fork
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
FEW = ["--data-config.frames", "2"]
TRAIN = ["--model", "clipvid-mini", "--epochs", "2", "--batch-size", "4", "--checkpoint-every", "1", *FEW]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Return a folder with a csv file and twelve videos."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, "test", 12)
    return root / "test"


def is_whole_run(out: Path) -> None:
    if (out / "run" / "best").exists():
        load(out / "run" / "best")


def is_whole_index(out: Path) -> None:
    if (out / "index").exists():
        VideoIndex.load(out / "index", create_model("clipvid-mini", branch="mean"))


def is_whole_cache(out: Path) -> None:
    if (out / "cache").exists() and list((out / "cache").glob("*/*.safetensors")):
        assert not any(part.damaged for part in parts_of(out / "cache", full=True))


def is_whole_check(out: Path) -> None:
    if (out / "check" / "report.json").exists():
        json.loads((out / "check" / "report.json").read_text())


@dataclass(frozen=True)
class Case:
    """A command, how to go on after it was ended, and what it must have written in the end."""

    words: Callable[[Path], list[str]]
    again: Callable[[Path, Path], list[str]]
    """Function of the videos and the folder: the words of the command that goes on."""
    check: Callable[[Path], None]
    product: str
    advice: str


def _words(*words: str) -> Callable[[Path], list[str]]:
    return lambda videos: [word.replace("VIDEOS", str(videos)) for word in words]


def _rerun(*more: str) -> Callable[..., list[str]]:
    return lambda words, out: [*words, *more]


def _goes_on_with_add(words: list[str], out: Path) -> list[str]:
    return [*words[:1], "add", words[2], "--out", "index"] if (out / "index").exists() else words


def _train(task: str, *more: str) -> Case:
    words = ["train", "VIDEOS/captions.csv", "--val", "VIDEOS/captions.csv", "--task", task, *TRAIN, *more]
    return Case(
        _words(*words, "--out", "run"),
        _rerun("--resume"),
        is_whole_run,
        "run/best/branch.safetensors",
        "run it again with --resume to continue from the last checkpoint",
    )


INDEX = ["index", "build", "VIDEOS", "--frames", "2", "--out", "index", "--model", "clipvid-mini"]
EMBED = [
    "embed",
    "VIDEOS",
    "--model",
    "clipvid-mini",
    "--out",
    "e.safetensors",
    "--overwrite",
    *FEW,
    "--cache",
    "cache",
]
CASES = {
    "train retrieval": _train("retrieval"),
    "train recognition": _train("recognition", "--cache", "cache"),
    "train selfsup": _train("selfsup", "--selfsup.hidden", "16", "--selfsup.out", "8", "--selfsup.regions", "2"),
    "train workers": _train("retrieval", "--data-config.workers", "1"),
    "index": Case(_words(*INDEX), _goes_on_with_add, is_whole_index, "index/index.json", "again|clipvid index add"),
    "embed": Case(_words(*EMBED), _rerun(), is_whole_cache, "e.safetensors", "with --cache DIR it continues"),
    "check": Case(
        _words("data", "check", "VIDEOS", "--out", "check", "--workers", "1"),
        _rerun(),
        is_whole_check,
        "check/report.json",
        "checked files are not decoded again",
    ),
}


def _in(folder: Path, *words: str) -> int:

    os.chdir(folder)
    return command(*words)


def _check_output(child: Child, code: int, number: int, advice: str) -> None:
    """Check the exit code and the only line that tells of the end."""
    assert code in (0, CODES[number]), f"exit code {code}:\n{child.output}"
    assert "Traceback" not in child.output, child.output
    if code:
        ended = re.findall(r"^clipvid .*", child.output, flags=re.MULTILINE)
        assert len(ended) == 1, child.output
        assert re.search(rf"(interrupted|terminated); .*({advice})", ended[0]), child.output


def end_at_random_moments(name: str, videos: Path, folder: Path, n_signals: int) -> int:
    """Send a command signals until they are used up; check it after each, and at its end. Return how many hit."""
    rng, case, hits = seeded(name), CASES[name], 0
    words, expected, out = case.words(videos), folder / "expected", folder / "out"
    expected.mkdir()
    out.mkdir()
    undisturbed = run(folder / "log", _in, expected, *words)
    for _ in range(n_signals):
        if not (out / case.product).exists() or "embed" in words:
            child = Child(folder / "log", _in, out, *(case.again(words, out)))
            number, group = rng.choice([*CODES]), rng.random() < 0.5
            time.sleep(0.02 + rng.uniform(0, undisturbed.seconds))
            child.send(number, group=group)
            code = child.wait()
            print(name, signal.Signals(number).name, "to the group" if group else "", code)
            hits += code != 0
            _check_output(child, code, number, case.advice)
        else:
            shutil.rmtree(out)
            out.mkdir()
        case.check(out)
    run(folder / "log", _in, out, *case.again(words, out))
    case.check(out)
    if name.startswith("train") or name == "embed":
        assert (out / case.product).read_bytes() == (expected / case.product).read_bytes()
    assert leftovers(out) == leftovers(expected) == []
    return hits


def test_a_command_that_a_signal_ends_says_so_and_goes_on(videos, tmp_path):
    name = seeded("which").choice(sorted(CASES))
    end_at_random_moments(name, videos, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_command_goes_on_after_signals_at_any_moment(videos, tmp_path, name):
    assert end_at_random_moments(name, videos, tmp_path, 6) >= 1
