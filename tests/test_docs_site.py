"""The documentation site builds without a warning, and its reference has every public name."""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import re
import runpy
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import clipvid
from clipvid import plots

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INTERNAL = {
    "clipvid.data.motion_shapes",
    "clipvid.data.motion_shapes.write_dataset",
    "clipvid.search.stores.faiss.FaissStore",
    "clipvid.video.backends.pyav",
}
"""Names without an entry of the reference: the rendered videos of examples, and members that an example wraps."""
REFERENCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.rst")))


def public_names() -> list[str]:
    """Return the full names of the root, of clipvid.plots, and of clipvid.registry where it exists."""
    modules = [clipvid, plots]
    if importlib.util.find_spec("clipvid.registry"):
        modules.append(importlib.import_module("clipvid.registry"))
    return [f"{module.__name__}.{name}" for module in modules for name in module.__all__]


def inventory(path: Path) -> set[str]:
    """Return the names of the Python objects in Sphinx's objects.inv: four lines of text, then compressed lines."""
    compressed = path.read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(compressed).decode("utf-8").splitlines()
    return {line.split()[0] for line in lines if " py:" in line}


@pytest.mark.parametrize("name", clipvid.__all__)
def test_a_page_of_the_reference_has_the_name(name):
    entry = rf"^\.\. auto(function|class):: {name}$"
    assert re.search(entry, REFERENCE, re.MULTILINE), f"add clipvid.{name} to a page of docs/reference"


def imported_names(page: Path) -> set[str]:
    """Return the full names that the Python blocks of a page import from modules of clipvid."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    imports = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    taken = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    return {name for name in taken if name.startswith("clipvid.")}


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_names_that_a_page_imports_are_in_the_reference(page):
    modules = {f"clipvid.{name}" for name in re.findall(r"automodule:: clipvid\.(\w+)", REFERENCE)}
    entries = {name.rpartition(".")[2] for name in re.findall(r"auto(?:function|class):: ([\w.]+)", REFERENCE)}
    taken = imported_names(page) - modules - INTERNAL
    unlisted = {n for n in taken if n.rpartition(".")[0] not in modules and n.rpartition(".")[2] not in entries}
    assert not unlisted, "add it to docs/reference"


def test_every_page_is_in_the_table_of_contents():
    entries = set(re.findall(r"^   (?:\w[\w ]* <)?([\w/-]+)>?$", (DOCS / "index.rst").read_text(), re.MULTILINE))
    stubs = {f"project/{path.stem}" for path in (DOCS / "project").glob("*.md")}
    assert entries >= {path.stem for path in DOCS.glob("*.md")} | stubs, "list the page in docs/index.rst"


def test_the_glossary_is_sorted_and_explains_each_word_once():
    rows = re.findall(r"^\| (.+?) \|", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = [word.lower() for word in rows if word != "term"]
    assert words == sorted(set(words))
    missing = {"tap", "level", "tower", "branch", "mixer", "head", "clip", "view", "gallery", "hubness"} - set(words)
    missing |= {"data config", "data set", "result", "cache key", "metric", "metadata", "protocol spec"} - set(words)
    assert not missing


@pytest.mark.parametrize(
    ("link", "docname", "folder", "expected"),
    [
        ("docs/stan.md#ours", "project/overview", ROOT, "../stan.md#ours"),
        ("assets/structures.png", "project/overview", ROOT, "../../assets/structures.png"),
        ("../CONTRIBUTING.md", "architecture", DOCS, "project/contributing.md"),
        ("../CONTRIBUTING.md#commits", "architecture", DOCS, "project/contributing.md#commits"),
        ("stan.md", "architecture", DOCS, "stan.md"),
        ("https://github.com", "architecture", DOCS, "https://github.com"),
        ("#rooms", "architecture", DOCS, "#rooms"),
    ],
)
def test_links_lead_to_the_same_file_on_the_site(link, docname, folder, expected, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # conf.py adds the checkout
    relinked = runpy.run_path(str(DOCS / "conf.py"))["relinked"]
    assert relinked(f"[text]({link})", docname=docname, folder=folder) == f"[text]({expected})"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_every_public_name(tmp_path):
    for module in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(module, reason=f"the documentation needs {module}: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    command += ["-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "site")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    names = inventory(tmp_path / "site" / "objects.inv")
    assert not set(public_names()) - names
    assert {"clipvid.VideoCLIP.encode_video", "clipvid.TrainConfig.micro_batch_size"} <= names
    assert {"clipvid.VideoIndex.to_frame", "clipvid.search.hits.Hits.to_json"} <= names
    page = (tmp_path / "site" / "reference" / "models.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert "Settings by which files are read: those of the model" in shown, "a colon in a docstring makes no field"
    assert "Float[Tensor, 'b t e']" in shown, "annotations of shapes are readable"
    assert "clips per pass of the branch" in (tmp_path / "site" / "reference" / "training.html").read_text("utf-8")
