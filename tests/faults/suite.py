"""The suite of damaged files: random damage to every kind of stored file, and the counts of what its use gives.

Contract: a folder, a number and a seed in; outcomes by kind out. The seed is random unless CLIPVID_FAULT_SEED gives it;
every message of a failure has it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from judge import GOOD, RIGHT, Use, compared, used
from stored import Kind

SEED = "CLIPVID_FAULT_SEED"
"""Environment variable with the seed of the damage, as a failure names it."""


def new_seed() -> str:
    """Return the seed of CLIPVID_FAULT_SEED, else a random one."""
    return os.environ.get(SEED) or f"{random.SystemRandom().getrandbits(32):08x}"


@dataclass
class Counts:
    """Outcomes of the mutations of one kind."""

    kind: str
    verdicts: Counter[str] = field(default_factory=Counter)
    peak_mib: float = 0.0
    failures: list[str] = field(default_factory=list)

    def merge(self, other: Counts) -> None:
        """Add the outcomes of other mutations of the same kind."""
        self.verdicts.update(other.verdicts)
        self.peak_mib = max(self.peak_mib, other.peak_mib)
        self.failures += other.failures

    def add(self, use: Use, description: str) -> None:
        """Count one outcome."""
        self.verdicts[use.verdict] += 1
        self.peak_mib = max(self.peak_mib, use.mib)
        if use.verdict not in GOOD:
            self.failures.append(f"{description}: {use.verdict}\n{use.detail}")


def mutate_in_jobs(kind: Kind, folder: Path, *, seed: str, n: int, jobs: int) -> Counts:
    """Do the work of `mutate` in several processes, each with a part of the numbers."""
    context, counts, receivers = get_context("fork"), Counts(kind.name), []
    for job in range(min(jobs, n)):
        receive, send = context.Pipe(duplex=False)
        part = range(job * n // jobs, (job + 1) * n // jobs)
        process = context.Process(target=_mutate_part, args=(send, kind, folder / f"{job}", seed, part))
        process.start()
        send.close()
        receivers.append((receive, process))
    for receive, process in receivers:
        counts.merge(receive.recv())
        process.join()
    return counts


def _mutate_part(send: Connection, kind: Kind, folder: Path, seed: str, part: range) -> None:
    send.send(mutate(kind, folder, seed=seed, n=len(part), first=part.start))
    send.close()
    os._exit(0)


def mutate(kind: Kind, folder: Path, *, seed: str, n: int, first: int = 0) -> Counts:
    """Damage `n` copies of an artefact in one folder after another, and count the outcomes of their use."""
    counts = Counts(kind.name)
    expected = expected_of(kind, folder)
    for number in range(first, first + n):
        name = f"{seed}/{kind.name}/{number}"
        with copied(kind, folder) as copy:
            description, is_sealed = kind.damage(copy, random.Random(name))
            use = compared(used(kind.use, copy), expected, may_differ=is_sealed)
        counts.add(use, f"{name} ({description})")
    return counts


def expected_of(kind: Kind, folder: Path) -> str:
    """Return the result of two uses of intact copies, which must be equal."""
    outcomes = []
    for _ in range(2):
        with copied(kind, folder) as copy:
            outcomes.append(used(kind.use, copy))
    assert outcomes[0].verdict == RIGHT, f"the intact {kind.name} gives {outcomes[0]}"
    assert outcomes[0].detail == outcomes[1].detail, f"two uses of the intact {kind.name} differ"
    return outcomes[0].detail


@contextmanager
def copied(kind: Kind, folder: Path) -> Iterator[Path]:
    """Yield a copy of an artefact, always at the same path, and delete it after the block."""
    copy = folder / "copy" / kind.artefact.name
    shutil.copytree(kind.artefact, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy.parent)
