"""The comparison of structures as a program: cells are resumed, shared, keyed by what decides them, and tabled."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clipvid.demo import load_backbone

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    folders = [str(ROOT / name) for name in ("benchmarks", "scripts")]
    sys.path[:0] = folders
    yield {name: importlib.import_module(name) for name in ("cells", "structures", "update_readme")}
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def bench(scripts, tmp_path_factory) -> Any:
    few = scripts["structures"].FewLabels(structure="posterior", shots=1, epochs=1, clips=4, pretrain_epochs=1)
    budget = scripts["structures"].Budget(
        train_clips=20,
        val_clips=4,
        test_clips=10,
        retrieval_epochs=1,
        recognition_epochs=1,
        batch_size=4,
        rates=(1e-3, 2e-3),
        seeds=(1, 2),
        few=few,
    )
    return scripts["structures"].Bench(tmp_path_factory.mktemp("work"), budget, load_backbone(), "cpu")


def test_cells_are_measured_once_and_the_table_holds_them(scripts, bench):
    structures, names = scripts["structures"], ["zero-shot", "posterior", "few-shot scratch"]
    wanted = list(structures.trainings(bench, names))
    assert len(wanted) == 2 + 1 + 2 * (2 + 1), "rates, zero-shot, and for each seed two tasks and the few labels"
    scripts["cells"].fill(wanted)
    found = {cell.path: cell.path.read_text() for cell in wanted}
    chosen = json.loads(found[bench.path("posterior", "retrieval", 1)])
    scores = {rate: json.loads(found[bench.path("posterior", f"tune-{rate:g}", 50)])["score"] for rate in (1e-3, 2e-3)}
    assert scores[chosen["lr"]] == max(scores.values())
    assert set(chosen["figures"]) == set(structures.FIGURES)

    again = bench.path("posterior", "recognition", 2)
    again.unlink()  # as if the run had been interrupted there
    scripts["cells"].fill(list(structures.trainings(bench, names)))
    remade = json.loads(again.read_text())
    assert remade["figures"] == json.loads(found[again])["figures"], "a cell is a function of its name"
    assert all(path.read_text() == text for path, text in found.items() if path != again), "the others stay"

    table = structures.summary(bench)
    row = table["rows"]["posterior"]
    assert len(row["figures"]["R@1"]["values"]) == 2
    assert set(table["rows"]) == set(names)
    assert table["missing"] > 0


def test_the_readme_says_what_was_measured(scripts):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert scripts["update_readme"].filled(text) == text, "run scripts/update_readme.py"


def test_another_budget_or_structure_is_another_cell(scripts, bench, monkeypatch):
    structures = scripts["structures"]
    other = replace(bench, budget=replace(bench.budget, train_clips=24))
    fewer = replace(bench, budget=replace(bench.budget, few=replace(bench.budget.few, shots=2)))
    for task in ("retrieval", "cost"):
        assert bench.path("posterior", task, 1) != other.path("posterior", task, 1)
    assert bench.model("posterior", 1) != other.model("posterior", 1)
    assert bench.path("few-shot scratch", "recognition", 1) != fewer.path("few-shot scratch", "recognition", 1)
    assert bench.path("posterior", "retrieval", 1) == fewer.path("posterior", "retrieval", 1)
    own = {name: bench.path(name, "retrieval", 1).stem.rpartition("-")[2] for name in structures.ROWS}
    assert len(set(own.values())) == len(own), "what a row is made of is in its key"
    before = bench.path("few-shot scratch", "recognition", 1)
    monkeypatch.setitem(structures.STRUCTURES, "posterior", structures.Structure("posterior", {"depth": 1}))
    assert bench.path("few-shot scratch", "recognition", 1) != before


def test_a_cell_that_another_process_holds_is_left_to_it(scripts, tmp_path):
    cells, measured = scripts["cells"], []

    def cell(name: str, *after: str) -> Any:
        def measure() -> dict[str, Any]:
            measured.append(name)
            return {}

        return cells.Cell(tmp_path / f"{name}.json", name, measure, tuple(tmp_path / f"{a}.json" for a in after))

    held, free = cell("held"), cell("free", "held")
    with cells._held(held.path.with_suffix(".lock")) as mine:
        assert mine
        assert not cells._filled(held, 1, 2)
        assert not cells._filled(free, 1, 2), "it waits for the held one"
    cells.fill([free, held])
    assert measured == ["held", "free"]
    with pytest.raises(ValueError, match=r"orphan waits for .*nobody\.json"):
        cells.fill([cell("orphan", "nobody")])


def test_a_cell_that_fails_leaves_no_file_and_is_tried_again(scripts, tmp_path):
    cells = scripts["cells"]
    failing = cells.Cell(tmp_path / "a.json", "a", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cells.fill([failing])
    assert not failing.done
    cells.fill([replace(failing, measure=lambda: {"figures": {"x": 1.0}})])
    kept = json.loads(failing.path.read_text())
    assert kept["figures"] == {"x": 1.0}
    assert {"seconds", "core seconds", "commit"} <= set(kept)


def test_peak_memory_is_what_a_block_needs_beyond_what_was_held(scripts):
    held = torch.ones(2**22)
    with scripts["cells"].peak_memory("cpu") as peak:
        needed = torch.ones(2**24).sum() + held.sum()
    assert needed > 0
    assert 60 < peak[0] < 90, "64 MiB"
