"""Project rules that no linter checks: headers, sizes, and text that must not appear in the project."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("clipvid", "tests", "benchmarks", "scripts", "assets", "docs", "examples", ".ci", ".github")
TEXT = {
    ".py", ".md", ".rst", ".ipynb", ".toml", ".sh", ".txt", ".json", ".yaml", ".yml",
    ".cfg", ".cff", ".html", ".ini", "",
}  # fmt: skip
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)
LIBRARY = [path for path in CODE if path.is_relative_to(ROOT / "clipvid")]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
MAY_NAME = {"rows", "table", "meta", "runs", "refused", "time_share_by_operation", "metrics", "t2v", "v2t"}
"""Fields of results whose keys are names: of rows, models, operations and metrics, or messages of errors."""
MAY_PRINT = {"cli", "__main__.py", "demo"}  # names of files and folders
# Words are split, so that this file does not contain what it searches for.
FORBIDDEN = ("pypi" + ".org", "files.python" + "hosted", "download.py" + "torch", "/wo" + "rk/", "/ro" + "ot/")
UNFINISHED = re.compile("|".join((r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", "NotImplemented" + "Error")))


def texts() -> list[Path]:
    in_folders = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    at_root = [path for path in ROOT.iterdir() if path.name != ".git"]  # a file where git has the repository elsewhere
    files = [path for path in (*at_root, *in_folders) if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in files if path.suffix in TEXT and path.stat().st_size < 2_000_000]


def fields(value: Any, *, below: str = "") -> Iterator[str]:
    """Yield the keys of a result that are fields, not metrics or names; profiles are left out, clipvid writes them."""
    if isinstance(value, dict):
        for key, content in value.items():
            if below not in MAY_NAME and not re.search(r"(R|recall)@\d+$", key):
                yield key
            yield from () if key == "profile" else fields(content, below=key)
    for content in value if isinstance(value, list) else ():
        yield from fields(content)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def long_functions(tree: ast.AST, *, limit: int) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > limit]


def complaints_about(path: Path) -> Iterator[str]:
    """Yield what is wrong with the form and the size of a file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if not ast.get_docstring(tree):
        yield "begin the file with a docstring: purpose, contract, limits"
    limit = 450 if path in LIBRARY else 500
    if len(text.splitlines()) > limit:
        yield f"a file has at most {limit} lines; split it by topic"
    if long := long_functions(tree, limit=80):
        yield f"a function has at most 80 lines, better 40: {', '.join(long)}"
    defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
    if path in LIBRARY and defines and "from __future__ import annotations" not in text:
        yield "begin the imports with `from __future__ import annotations`"
    if path in LIBRARY and not {path.name, path.parent.name} & MAY_PRINT and (lines := prints(text)):
        yield f"only the command line and the demo print, not lines {lines}; raise, return or log"


def prints(text: str) -> list[int]:
    """Return the lines that call print."""
    if "print(" not in text:
        return []
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_files_have_a_docstring_and_limited_sizes_and_the_library_does_not_print():
    assert len(CODE) > 300
    assert not [f"{named(path)}: {complaint}" for path in CODE for complaint in complaints_about(path)]


def test_no_file_names_a_registry_or_a_machine_path():
    hits = [(named(path), word) for path in texts() for word in FORBIDDEN if word in path.read_text(encoding="utf-8")]
    assert not hits


def test_no_unfinished_code():
    hits = [(named(path), UNFINISHED.findall(path.read_text(encoding="utf-8"))) for path in CODE]
    assert not [entry for entry in hits if entry[1]]


def test_fields_of_results_are_in_snake_case():
    keys = {key for path in RESULTS for key in fields(json.loads(path.read_text(encoding="utf-8")))}
    wrong = sorted(key for key in keys if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", key))
    assert not wrong, "name a field in snake_case, with its unit at the end; labels belong to scripts/performance.py"


def test_the_rules_cover_the_project_and_detect_breaches():
    covered = {named(path) for path in texts()}
    assert {"pyproject.toml", "clipvid/errors.py", "scripts/test.sh", ".ci/run", "LICENSE"} <= covered
    assert list(fields({"ms per clip": 1, "rows": {"a b": {"R@1": 2, "c d": [{"e f": 3}]}}})) == [
        "ms per clip",
        "rows",
        "c d",
        "e f",
    ]
    assert UNFINISHED.search("# TO" + "DO later")
    assert prints("x = 1\nprint(x)") == [2]
    assert long_functions(ast.parse("def f():\n" + "    x = 1\n" * 80), limit=80) == ["f"]
