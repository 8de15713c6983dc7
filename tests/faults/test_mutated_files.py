"""Damaged files: whatever happens to a stored file, it is used as it was, made again, or refused with the reason."""

from __future__ import annotations

import json
import os
import random
import time

import pytest
import torch
from artefacts import KINDS, kinds
from damage import damaged, edited, written
from forked import needs_fork
from judge import CRASH, EDITED, ERROR, MEMORY, OTHER, REFUSED, RIGHT, SLOW, compared, used
from suite import SEED, mutate_in_jobs, new_seed

from clipvid.errors import CacheError

pytestmark = needs_fork


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return the kinds of stored files by name, with an intact artefact of each."""
    return {kind.name: kind for kind in kinds(tmp_path_factory.mktemp("intact"))}


@pytest.fixture(scope="module")
def seed():
    return new_seed()


def test_the_list_of_kinds_is_complete(stored):
    assert tuple(stored) == KINDS


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("n", [1, pytest.param(300, marks=pytest.mark.slow)])
def test_a_damaged_file_is_right_again_or_refused(stored, seed, tmp_path, name, n):
    counts = mutate_in_jobs(stored[name], tmp_path, seed=seed, n=n, jobs=1 if n < 20 else 2)
    assert not counts.failures, f"{SEED}={seed} repeats this:\n" + "\n\n".join(counts.failures[:5])
    assert counts.verdicts.total() == n


def test_damage_depends_on_the_generator_alone_and_always_changes_the_file():
    content = {"frames": 8, "names": ["a", "b"], "note": json.dumps({"lr": 0.5, "betas": [0.9, 0.98]})}
    data = json.dumps(content).encode()
    seen = set()
    for number in range(300):
        assert damaged(data, random.Random(number)) == damaged(data, random.Random(number))
        assert damaged(data, random.Random(number))[0] != data
        changed, description = edited(content, random.Random(number))
        assert written(changed) == written(edited(content, random.Random(number))[0])
        seen |= {
            word for word in ("nested", "twice", "swapped", "drop", "rename", "in its text") if word in description
        }
    assert len(seen) == 6
    assert json.loads(data) == content


def test_each_verdict_is_reached(tmp_path, monkeypatch):
    """Check the oracle itself: it must detect each forbidden outcome."""

    def verdict(function, *, may_differ=False):
        return compared(used(function, tmp_path), "1", may_differ=may_differ).verdict

    def refuse(path):
        raise CacheError(f"{path} is damaged")

    def hide(path):
        try:
            return bytearray(2**34)
        except MemoryError as error:
            raise CacheError("too large") from error

    assert verdict(lambda path: 1) == RIGHT
    assert verdict(lambda path: 2) == OTHER
    assert verdict(lambda path: 2, may_differ=True) == EDITED
    assert verdict(refuse) == REFUSED
    assert verdict(lambda path: {}["x"]) == ERROR
    assert verdict(lambda path: os.abort()) == CRASH
    assert verdict(hide) == MEMORY
    assert verdict(lambda path: torch.zeros(2**40)) == MEMORY
    assert verdict(lambda path: len(bytearray(b"x") * int(1.2 * 2**30))) == MEMORY
    monkeypatch.setattr("judge.SECONDS", 0.0)
    assert verdict(lambda path: sum(range(10**6)) and 1) == SLOW
    monkeypatch.setattr("judge.PATIENCE", 0.2)
    assert verdict(lambda path: time.sleep(60)) == SLOW
