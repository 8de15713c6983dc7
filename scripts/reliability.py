"""Measure what clipvid makes of damaged files and write the figures to docs/reliability.md, between their markers.

    python scripts/reliability.py                             # every part, 300 mutations of each kind of file
    python scripts/reliability.py --parts mutations --n 1000

Contract: each part is a function of the options that returns the rows of its table; its failures end the script with
exit code 1, after the page was written. Linux only: the suites fork. A suite is a module of tests/faults/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is loaded: the suites fork
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
for folder in ("tests", "tests/faults", "benchmarks", "scripts", ""):
    sys.path.insert(0, str(ROOT / folder))

from cells import COMMIT, machine  # noqa: E402
from update_readme import fill  # noqa: E402


class Table(NamedTuple):
    """Result of a part: a table, a sentence on it, and one text for each failure."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str
    failures: Sequence[str]


def mutations(options: argparse.Namespace) -> Table:
    """Damage copies of every kind of stored file at random, and count the outcomes of their use."""
    from artefacts import kinds
    from judge import VERDICTS
    from suite import mutate_in_jobs, new_seed

    seed, rows, failures = new_seed(), [], []
    with tempfile.TemporaryDirectory() as name:
        stored = kinds(Path(name) / "intact")
        for kind in stored:
            counts = mutate_in_jobs(kind, Path(name) / "copies", seed=seed, n=options.n, jobs=options.jobs)
            verdicts = [counts.verdicts[verdict] for verdict in VERDICTS]
            rows.append([kind.name, counts.verdicts.total(), *verdicts, f"{counts.peak_mib:.0f}"])
            failures += counts.failures
            print(*rows[-1], sep=", ", flush=True)
    totals = [sum(column) for column in zip(*(row[1:-1] for row in rows), strict=True)]
    rows.append(["all", *totals, max((row[-1] for row in rows), key=float)])
    return Table(("file", "mutations", *VERDICTS, "peak MiB"), rows, f"Seed {seed}.", failures)


PARTS: dict[str, Callable[[argparse.Namespace], Table]] = {"mutations": mutations}
"""Parts by name; the page has the markers NAME:begin and NAME:end for each."""


def markdown(table: Table) -> str:
    """Return a table with its note as Markdown."""
    lines = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    setting = machine()
    note = f"{table.note} {setting['machine']}, torch {setting['torch']}, commit {COMMIT}."
    return f"{text}\n\n{note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--n", type=int, default=300, help="mutations of each kind of file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    failures = []
    for name in options.parts:
        table = PARTS[name](options)
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), name, markdown(table)), encoding="utf-8")
        failures += table.failures
    if failures:
        sys.exit("\n\n".join(failures))


if __name__ == "__main__":
    main()
