"""The benchmark of structures: its cells are resumed, shared by processes and keyed by their settings.

A slow test measures all cells of a small grid and tabulates them.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipvid.demo.tour import load_backbone

pytest.importorskip("fcntl", reason="the cells' locks are POSIX")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    folders = [str(ROOT / name) for name in ("benchmarks", "scripts")]
    sys.path[:0] = folders
    yield {name: importlib.import_module(name) for name in ("cells", "structures", "structures_plan", "update_readme")}
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def bench(scripts, tmp_path_factory) -> Any:
    few = scripts["structures_plan"].FewLabels(shots=1, epochs=1, clips=4, pretrain_epochs=1, pretrain_rates=(1e-4,))
    budget = scripts["structures"].Budget(
        train_clips=8,
        val_clips=4,
        test_clips=4,
        retrieval_epochs=1,
        recognition_epochs=1,
        batch_size=4,
        rates=(1e-3, 2e-3),
        seeds=(1, 2),
        few=few,
    )
    return scripts["structures"].Bench(tmp_path_factory.mktemp("work"), budget, load_backbone(), "cpu")


@pytest.mark.slow
def test_cells_are_measured_once_and_the_table_holds_them(scripts, bench):
    structures = scripts["structures"]
    names = ["zero-shot", "posterior", *structures.PRETRAINED]
    cells = list(structures.trainings(bench, names))
    expected = 2 + 1 + 1 + 2 * (2 + 3)
    assert len(cells) == expected, (
        "rates of a row and of pre-training, zero-shot, and per seed two tasks and few labels"
    )
    scripts["cells"].fill(cells)
    texts = {cell.path: cell.path.read_text() for cell in cells}
    chosen = json.loads(texts[bench.path("posterior", "retrieval", 1)])
    scores = {rate: json.loads(texts[bench.path("posterior", f"tune-{rate:g}", 50)])["score"] for rate in (1e-3, 2e-3)}
    assert scores[chosen["lr"]] == max(scores.values())
    assert set(chosen["metrics"]) == set(structures.METRICS)

    removed = bench.path("posterior", "recognition", 2)
    removed.unlink()  # as if the run had been interrupted at this cell
    scripts["cells"].fill(list(structures.trainings(bench, names)))
    remade = json.loads(removed.read_text())
    assert remade["metrics"] == json.loads(texts[removed])["metrics"], "a cell is a function of its name"
    assert all(path.read_text() == text for path, text in texts.items() if path != removed), (
        "other cells stay unchanged"
    )

    table = structures.summary(bench)
    row = table["rows"]["posterior"]
    assert len(row["metrics"]["R@1"]["values"]) == 2
    assert set(table["rows"]) == set(names)
    assert table["missing"] > 0
    assert row["metrics"]["R@1"]["mean"] == pytest.approx(sum(row["metrics"]["R@1"]["values"]) / 2)

    for name in ("zero-shot", "posterior"):
        measured = {**structures.cost(bench, name, steps=3), "seconds": 1.0, "core_seconds": 1.0, "commit": "abc"}
        scripts["cells"].write_json(bench.path(name, "cost", 0), {**measured, **scripts["cells"].machine()})
    table = structures.summary(bench)
    assert table["rows"]["posterior"]["cost"]["parameters"] > 0
    assert "abc" in table["commit"]
    text = scripts["update_readme"].structures_table(table)
    assert "| zero-shot |" in text
    assert f"{row['metrics']['R@1']['mean']:.1f} ± {row['metrics']['R@1']['std']:.1f}" in text
    assert "With 1 labelled clips per motion (`stan-conv_full`, 1 epochs), motion top-1 is" in text
    assert table["commit"] in text


def test_a_failing_child_process_raises_an_error(scripts):
    with scripts["cells"].helpers(1, ["-c", "pass"]):
        pass
    with pytest.raises(RuntimeError, match="exit code 3"), scripts["cells"].helpers(1, ["-c", "raise SystemExit(3)"]):
        pass


def test_a_lock_has_one_holder_at_a_time(scripts, tmp_path):
    held = scripts["cells"]._held
    # flock refuses a second open file even in the same process
    with held(tmp_path / "a.lock") as first, held(tmp_path / "a.lock") as second:
        assert (first, second) == (True, False)
    with held(tmp_path / "a.lock") as again:
        assert again


def test_the_core_seconds_of_a_cell_include_its_child_processes(scripts, tmp_path):
    def measure() -> dict[str, Any]:
        subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
        return {}

    scripts["cells"].fill([scripts["cells"].Cell(tmp_path / "a.json", "a", measure)])
    assert scripts["cells"].read_json(tmp_path / "a.json")["core_seconds"] > 0.05


def test_the_readme_matches_the_stored_measurements(scripts):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert scripts["update_readme"].filled(text) == text, "run scripts/update_readme.py"


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_tables_of_a_page_match_the_stored_results(scripts, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert scripts["update_readme"].with_performance(text) == text, "run scripts/update_readme.py"


def test_another_budget_or_structure_gives_another_cell(scripts, bench, monkeypatch):
    structures = scripts["structures"]
    other = replace(bench, budget=replace(bench.budget, train_clips=24))
    fewer = replace(bench, budget=replace(bench.budget, few=replace(bench.budget.few, shots=2)))
    for task in ("retrieval", "cost"):
        assert bench.path("posterior", task, 1) != other.path("posterior", task, 1)
    assert bench.model("posterior", 1) != other.model("posterior", 1)
    assert bench.path("few-shot scratch", "recognition", 1) != fewer.path("few-shot scratch", "recognition", 1)
    assert bench.path("posterior", "retrieval", 1) == fewer.path("posterior", "retrieval", 1)
    retrained = replace(bench, backbone=SimpleNamespace(fingerprint="other", device=bench.backbone.device))
    assert bench.path("posterior", "retrieval", 1) != retrained.path("posterior", "retrieval", 1)
    assert bench.path("posterior", "cost", 0) != replace(bench, device="cuda").path("posterior", "cost", 0)
    keys = {name: bench.path(name, "retrieval", 1).stem.rpartition("-")[2] for name in structures.ROWS}
    assert len(set(keys.values())) == len(keys), "the key of a cell covers the definition of its row"
    before = bench.path("few-shot scratch", "recognition", 1)
    monkeypatch.setitem(structures.STRUCTURES, "stan-conv_full", structures.Structure("stan", {"depth": 1}))
    assert bench.path("few-shot scratch", "recognition", 1) != before


def test_a_cell_locked_by_another_process_is_skipped(scripts, tmp_path):
    cells, measured = scripts["cells"], []

    def cell(name: str, *after: str) -> Any:
        def measure() -> dict[str, Any]:
            measured.append(name)
            return {}

        return cells.Cell(tmp_path / f"{name}.json", name, measure, tuple(tmp_path / f"{a}.json" for a in after))

    held, free = cell("held"), cell("free", "held")
    with cells._held(held.path.with_suffix(".lock")) as acquired:
        assert acquired
        assert not cells._filled(held, 1, 2)
        assert not cells._filled(free, 1, 2), "it waits for the locked cell"
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
    cells.fill([replace(failing, measure=lambda: {"metrics": {"x": 1.0}})])
    stored = json.loads(failing.path.read_text())
    assert stored["metrics"] == {"x": 1.0}
    assert {"seconds", "core_seconds", "commit"} <= set(stored)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_peak_memory_excludes_what_was_allocated_before_the_block():
    """Measure in a separate process, as the benchmark does: an allocator that served other code keeps its pages."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import cells\n"
        "held = torch.ones(2**22)\n"
        "with cells.peak_memory('cpu') as peak: torch.ones(2**24).sum() + held.sum()\n"
        "print(peak[0])"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks")]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 60 < peak < 90, "64 MiB"
