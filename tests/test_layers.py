"""Imports point down: parsed from the source, so that an import inside a function counts as much as one at the top.

An import is of kind "module" (runs at import), "function" (runs on call; a library named in `require("...")` too) or
"typing" (never runs). All three must respect the layers; the first two must be free of cycles.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import clipvid

PACKAGE = Path(clipvid.__file__).parent
LAYERS = (
    {"errors", "config", "profile", "_optional", "_memory", "_files", "_names", "_words"}
    | {"_checks", "_workers", "_ahead"},
    {"nn", "losses", "metrics", "precision", "video", "data"},
    {"taps", "tower", "textual", "bases", "weight_cache", "quick", "backbone", "rerun"} | {"branches", "inference"},
    {"heads", "cost", "adapt", "saving", "cards", "checkpoints", "curves"},
    {"model", "loading", "interop", "interop_hf", "cache", "windows"},
    {"training", "run", "objectives", "optim", "constcl", "feed", "embedding", "evaluate", "matching", "search"}
    | {"plots", "report", "demo"},
    {"cli", "commands", "__main__"},
)
LAYER = {unit: height for height, units in enumerate(LAYERS) for unit in units}
SIDEWAYS = {  # within a layer a unit imports only itself, and what stands here
    "_optional": {"errors"},
    "_files": {"errors"},
    "_workers": {"errors"},
    "config": {"_checks"},
    "data": {"video"},
    "quick": {"weight_cache"},
    "backbone": {"taps", "tower", "textual", "bases", "quick", "weight_cache"},
    "rerun": {"taps", "tower", "backbone"},
    "branches": {"taps", "tower", "backbone"},
    "loading": {"model"},
    "interop": {"model"},
    "interop_hf": {"model"},
    "cache": {"model"},
    "windows": {"model"},
    "model": {"windows"},
    "embedding": {"matching"},
    "feed": {"embedding"},
    "evaluate": {"embedding", "matching"},
    "search": {"embedding", "matching"},
    "constcl": {"feed"},
    "objectives": {"constcl", "feed"},
    "run": {"evaluate", "feed", "objectives", "optim"},
    "training": {"feed", "run"},
    "demo": {"training", "embedding", "evaluate", "search", "plots"},
    "cli": {"commands"},
    "__main__": {"cli"},
}
OWNERS = {  # heavy library: the only modules, or packages with everything in them, that import it
    "open_clip": {"clipvid.bases"},
    "av": {"clipvid.video", "clipvid.data.shapes"},
    "PIL": {"clipvid.video"},
    "decord": {"clipvid.video"},
    "torchcodec": {"clipvid.video"},
    "faiss": {"clipvid.search"},
    "lightning": {"clipvid.run"},
    "lightning_fabric": {"clipvid.run"},
    "matplotlib": {"clipvid.plots"},
    "jsonargparse": {"clipvid.cli"},
    "peft": {"clipvid.adapt"},
}


class Import(NamedTuple):
    source: str
    target: str
    kind: str
    line: int


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("clipvid", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source: str, text: str) -> Iterator[Import]:
    """Every import in the text of module `source`; names of submodules are resolved to them."""

    def walk(node: ast.AST, kind: str) -> Iterator[Import]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            kind = "function" if kind == "module" else kind
        if isinstance(node, ast.If) and "TYPE_CHECKING" in {ast.unparse(node.test), ast.unparse(node.test)[7:]}:
            for child in node.body:
                yield from walk(child, "typing")
            for child in node.orelse:
                yield from walk(child, kind)
            return
        for target in _targets(node):
            yield Import(source, target, kind, node.lineno)  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(node):
            yield from walk(child, kind)

    return walk(ast.parse(text), "module")


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, f"line {node.lineno}: imports are absolute, write the module's full name"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES or name == "clipvid.__version__" else str(node.module) for name in names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in {"require", "import_module", "__import__"}:
            return [str(node.args[0].value)]
    return []


def unit(module: str) -> str:
    return module.split(".")[1]


def breaches(found: list[Import]) -> list[str]:
    """What is wrong with these imports, one sentence each."""
    said = []
    for entry in found:
        where = f"{entry.source}:{entry.line} imports {entry.target}"
        top = entry.target.partition(".")[0]
        owners = OWNERS.get(top)
        if owners and not any(entry.source == owner or entry.source.startswith(owner + ".") for owner in owners):
            said.append(f"{where}, which belongs to {', '.join(sorted(owners))} alone")
        if top != "clipvid" or entry.source == "clipvid" or entry.target == "clipvid.__version__":
            continue
        if entry.target == "clipvid":
            said.append(f"{where}, the public face; import from the module that owns the name")
            continue
        here, there = unit(entry.source), unit(entry.target)
        for name in {here, there} - set(LAYER):
            said.append(f"clipvid.{name} has no layer; place it in LAYERS of tests/test_layers.py and in DESIGN")
        if {here, there} <= set(LAYER) and here != there:
            if LAYER[there] > LAYER[here]:
                said.append(f"{where}, upwards from layer {LAYER[here]} to {LAYER[there]} ({entry.kind} import)")
            elif LAYER[there] == LAYER[here] and there not in SIDEWAYS.get(here, ()):
                said.append(f"{where}, sideways in layer {LAYER[here]} ({entry.kind} import)")
    return sorted(set(said))


def cycle(found: list[Import]) -> list[str]:
    """A circle of modules that import each other at run time, or an empty list."""
    graph: dict[str, list[str]] = {}
    for entry in found:
        if entry.kind != "typing" and entry.target in MODULES and entry.target != entry.source != "clipvid":
            graph.setdefault(entry.source, []).append(entry.target)
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module not in done:
            for target in graph.get(module, []):
                if circle := visit(target, [*trail, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


@pytest.fixture(scope="module")
def package_imports() -> list[Import]:
    return [entry for name, path in MODULES.items() for entry in imports(name, path.read_text(encoding="utf-8"))]


def test_imports_point_down_and_heavy_libraries_have_one_owner(package_imports):
    assert not breaches(package_imports)


def test_no_modules_import_each_other_in_a_circle(package_imports):
    assert not cycle(package_imports)


def test_every_module_has_a_layer():
    unplaced = {unit(name) for name in MODULES if name != "clipvid"} - set(LAYER)
    assert not unplaced, f"place {', '.join(sorted(unplaced))} in LAYERS of tests/test_layers.py"


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("clipvid.losses", "from clipvid.backbone import Taps", "upwards from layer 1 to 2 (module import)"),
        (
            "clipvid.nn.mixers",
            "def f():\n    from clipvid import backbone",
            "upwards from layer 1 to 2 (function import)",
        ),
        (
            "clipvid.heads",
            "if TYPE_CHECKING:\n    import clipvid.training",
            "upwards from layer 3 to 5 (typing import)",
        ),
        ("clipvid.backbone", "import clipvid.branches", "sideways in layer 2"),
        ("clipvid.video.decode", "from clipvid.data.record import Record", "sideways in layer 1"),
        ("clipvid.model", "from clipvid import read_video", "the public face"),
        ("clipvid.helpers", "import clipvid.errors", "clipvid.helpers has no layer"),
        ("clipvid.evaluate", "def f():\n    import open_clip.model", "belongs to clipvid.bases alone"),
        ("clipvid.cache", 'require("faiss", why="search")', "belongs to clipvid.search alone"),
        ("clipvid.data.readers", "import av", "belongs to clipvid.data.shapes, clipvid.video alone"),
    ],
)
def test_each_kind_of_breach_is_seen(module, text, complaint):
    assert complaint in " ".join(breaches(list(imports(module, text))))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("clipvid.data.dataset", "from clipvid.video.sampling import sample"),
        ("clipvid.branches.stan", "from clipvid.backbone import Taps"),
        ("clipvid.video._pyav", "import av"),
        ("clipvid.model", "from clipvid import __version__, branches"),
    ],
)
def test_what_is_allowed_passes(module, text):
    assert not breaches(list(imports(module, text)))


def test_a_circle_is_seen_across_functions_but_not_through_typing():
    down = Import("clipvid.plots", "clipvid.errors", "module", 1)
    assert cycle([down, Import("clipvid.errors", "clipvid.plots", "function", 1)])
    assert not cycle([down, Import("clipvid.errors", "clipvid.plots", "typing", 1)])
