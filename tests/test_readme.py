"""The README and the pages of docs/ are correct: Python blocks run in order, commands and linked files exist.

Blocks share one namespace and run in an empty folder beside the project's assets. A ```text block right after one is
its expected output (`...` matches anything). After `<!-- not run: reason -->` a block is only compiled, and the names
and keywords it takes from clipvid are looked up.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import json
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import clipvid
from clipvid.cli.commands import command_name
from clipvid.cli.main import main
from clipvid.data import motion_shapes

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One code block of a page."""

    language: str
    code: str
    line: int
    not_run: str  # the reason, or ""
    output: str | None


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page, each with the reason it is not run and the output shown below it."""
    collected, fences = [], list(FENCE.finditer(text))
    for fence, after in zip(fences, [*fences, None][1:], strict=True):
        before = text[: fence.start()].rstrip()
        reason = re.search(r"<!-- not run: (.+?) -->\Z", before)
        shown = after and after[1] == "text" and not text[fence.end() : after.start()].strip()
        line = text.count("\n", 0, fence.start()) + 1
        collected.append(
            Block(fence[1], fence[2], line, reason[1] if reason else "", after[2] if after and shown else None)
        )
    return collected


def run(block: Block, namespace: dict) -> None:
    """Execute a block and compare its output with the one that the page shows."""
    if ">>>" in block.code:
        test = doctest.DocTestParser().get_doctest(block.code, namespace, f"README:{block.line}", None, block.line)
        test.globs, report = namespace, io.StringIO()
        failed = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.write, clear_globs=False).failed
        assert not failed, report.getvalue()
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.code, f"README:{block.line}", "exec"), namespace)
    if block.output is not None:
        same = doctest.OutputChecker().check_output(block.output, printed.getvalue(), FLAGS)
        assert same, f"README line {block.line} says\n{block.output}\nbut this is printed:\n{printed.getvalue()}"


def unknown_names(code: str) -> list[str]:
    """Return the names and keywords that the code takes from clipvid but that do not exist."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("clipvid."):
            wrong += [ast.unparse(node)] if _look_up(ast.unparse(node)) is None else []
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "clipvid":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            wrong += [name for name in names if _look_up(name) is None]
        if isinstance(node, ast.Call) and (called := _look_up(ast.unparse(node.func))) is not None:
            taken = inspect.signature(called).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
                given = {keyword.arg for keyword in node.keywords if keyword.arg} - {entry.name for entry in taken}
                wrong += [f"{ast.unparse(node.func)}({name}=)" for name in sorted(given)]
    return wrong


def _look_up(dotted: str) -> object | None:
    first, *rest = dotted.split(".")
    if first != "clipvid":
        return None
    value, path = clipvid, "clipvid"
    for name in rest:
        path += f".{name}"
        if not hasattr(value, name) and hasattr(value, "__path__") and importlib.util.find_spec(path):
            importlib.import_module(path)
        if not hasattr(value, name):
            return None
        value = getattr(value, name)
    return value


def commands(text: str) -> list[list[str]]:
    """Return the arguments of every `clipvid ...` line in the shell blocks."""
    shells = [block for block in blocks(text) if block.language in {"bash", "sh", "shell", "console"}]
    lines = "\n".join(block.code for block in shells).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    words = [entry[2:] if entry[:2] == ["python", "-m"] else entry for entry in words]
    return [entry[1:] for entry in words if entry and entry[0] == "clipvid"]


@cache
def help_of(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*words, "--help"]) == 0, f"clipvid {' '.join(words)} --help fails"
    return printed.getvalue()


PROSE = {"architecture.md", "glossary.md"}
"""Pages without an example to run."""
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in PROSE)]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def python(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text(encoding="utf-8")) if block.language == "python"]


@pytest.fixture(scope="module", autouse=True)
def _shapes_rendered_once(tmp_path_factory) -> Iterator[None]:
    """Render each clip of the data sets that pages write once, and copy it to the others."""
    rendered, render = tmp_path_factory.mktemp("rendered"), motion_shapes._write_chunk

    def write_chunk(folder: Path, split: str, seed: int, indices: list[int]) -> int:
        store = rendered / f"{split} {seed}"
        store.mkdir(exist_ok=True)
        names = [motion_shapes._name(index) for index in indices]
        render(store, split, seed, [i for i, name in zip(indices, names, strict=True) if not (store / name).exists()])
        for name in names:
            shutil.copy(store / name, folder)
        return len(indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion_shapes, "_write_chunk", write_chunk)
        yield


@pages
@pytest.mark.usefixtures("restored_registries")
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "readme"}
    ran = [run(block, namespace) for block in python(page) if not block.not_run]
    assert ran, "the page has no Python block that runs"


@pages
def test_blocks_that_are_not_run_use_names_that_exist(page):
    for block in python(page):
        if block.not_run:
            assert not unknown_names(block.code), f"{page.name} line {block.line}"


@pages
def test_linked_files_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pages
def test_commands_of_a_page_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        name = command_name(words) if words[0] not in ("--help", "--version", "--install-completion") else ""
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        missing = [option for option in options if not re.search(rf"{re.escape(option)}\b", help_of(*name.split()))]
        assert not missing, f"clipvid {name} has no option {missing}"


def test_blocks_are_read_with_their_reason_and_output():
    page = "<!-- not run: needs weights -->\n```python\nx = 1\n```\n\n```python\nprint(2)\n```\n\n```text\n2\n```\n"
    first, second, _ = blocks(page)
    assert (first.not_run, first.output) == ("needs weights", None)
    assert (second.not_run, second.output, second.line) == ("", "2\n", 6)
    run(second, {})


@pytest.mark.parametrize("code", ["print(3)", ">>> 1 + 2\n4\n"])
def test_wrong_output_is_noticed(code):
    with pytest.raises(AssertionError):
        run(Block("python", code, 1, "", "2\n"), {})


def test_wrong_names_and_keywords_are_noticed():
    code = "clipvid.no_such\nfrom clipvid.errors import NoSuch\nclipvid.errors.VideoError('a', 'b', bakend=1)"
    expected = ["clipvid.errors.NoSuch", "clipvid.errors.VideoError(bakend=)", "clipvid.no_such"]
    assert sorted(unknown_names(code)) == expected
    assert not unknown_names("from clipvid.errors import VideoError\nclipvid.errors.VideoError('a', 'b', backend='c')")


def test_commands_are_read_over_continued_lines():
    page = "```bash\npip install clipvid\n$ clipvid search \\\n  'a dog' --k=5  # five\npython -m clipvid info\n```\n"
    assert commands(page) == [["search", "a dog", "--k=5"], ["info"]]


def test_the_table_matches_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = runpy.run_path(str(ROOT / "scripts" / "update_readme.py"))
    results = json.loads((script["RESULTS"] / "demo.json").read_text(encoding="utf-8"))
    others = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(script["RESULTS"].glob("demo-seed-*"))]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script["fill"](text, "demo", script["demo_table"](results, others)) == text
