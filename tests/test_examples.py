"""The notebooks of examples/ run, and are stored as executed: with outputs, small, and without traces of a machine."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from clipvid.cli.commands import COMMANDS, GROUPS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
KIBIBYTES = 64


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the cells of one kind, "code" or "markdown", of a stored notebook."""
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_there_is_a_notebook_for_search_and_one_for_training():
    assert {path.stem for path in NOTEBOOKS} >= {"search_your_videos", "few_shot_classifier"}


@notebooks
def test_a_notebook_is_stored_as_executed_from_top_to_bottom(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run scripts/run_notebooks.py"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@notebooks
def test_a_notebook_is_small_and_names_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < KIBIBYTES * 1024
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|usr|work|Users|opt|var)/", text)


@notebooks
def test_links_of_a_notebook_lead_to_files(path):
    targets = re.findall(r"\]\(([^)#]+)\)", "\n".join("".join(cell["source"]) for cell in cells(path, "markdown")))
    assert all("://" in target or (path.parent / target).exists() for target in targets)


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda path: path.name)
def test_commands_within_the_text_exist(path):
    is_page = path.suffix == ".md"
    text = (
        path.read_text(encoding="utf-8")
        if is_page
        else "\n".join("".join(c["source"]) for c in cells(path, "markdown"))
    )
    for line in re.findall(r"(?<!`)`clipvid ((?!COMMAND)[a-z][^`]*)`(?!`)", text):
        words = shlex.split(line.replace("\n", " "))
        name = " ".join(words[:2]) if words[0] in GROUPS else words[0]
        assert name in COMMANDS, f"clipvid {line}"


def test_outputs_of_a_stream_are_stored_as_one():
    nbformat = pytest.importorskip("nbformat", reason="notebooks need it: pip install -e '.[notebooks]'")
    pytest.importorskip("nbclient", reason="the script runs notebooks with it: pip install -e '.[notebooks]'")
    merged = runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py"))["_merged"]
    parts = [("stdout", "a\n"), ("stdout", "b\n"), ("stderr", "c\n"), ("stdout", "d\n")]
    outputs = merged([nbformat.v4.new_output("stream", name=name, text=text) for name, text in parts])
    assert [(output.name, output.text) for output in outputs] == [("stdout", "a\nb\n"), *parts[2:]]


@notebooks
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # warnings of Jupyter's packages; those of clipvid stay in the kernel's process
def test_a_notebook_runs_and_shows_what_is_stored(path, tmp_path):
    for module in ("nbclient", "ipykernel"):
        pytest.importorskip(module, reason=f"running notebooks needs {module}: pip install -e '.[notebooks]'")
    import nbformat

    script = runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py"))
    actual = script["text_of"](script["execute"](path, tmp_path))
    assert actual == script["text_of"](nbformat.read(path, as_version=4)), "run scripts/run_notebooks.py"
