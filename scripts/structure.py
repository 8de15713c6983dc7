"""Measure the package's structure: rooms, levels, cycles and sizes, on request compared with another commit.

    python scripts/structure.py                 # this tree
    python scripts/structure.py --base REV      # compared with a commit, read through `git archive`

Contract: source text in, numbers out. The package is neither imported nor run. Every import counts: at the top of a
module, inside a function, under TYPE_CHECKING, or as a name passed to `require`. `tests/test_layers.py`
holds the package to these rules; `docs/architecture.md` shows the same rooms.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "clipvid"

LEVELS: tuple[dict[str, str], ...] = (
    {
        "config": "every setting as a dataclass that checks itself",
        "errors": "every exception and warning",
        "registry": "names to members; entry points of other packages",
        "nn": "tensors in, tensors out; knows no CLIP and no file",
    },
    {
        "runtime": "what any room may use: atomic files and locks, pools, precision, profiling, optional imports",
        "plots": "pictures of numbers and of frames: charts, film strips",
    },
    {"video": "files to uint8 frames: containers, decoders, sampling, transforms"},
    {
        "data": "data sets as plain records, and the loader that batches them",
        "models": "a video model on CLIP: build, save, load, convert",
    },
    {"features": "features of a data set by a frozen model: streamed, in memory, cached on disk"},
    {
        "evaluation": "scores, and how sure they are",
        "search": "an index of videos",
    },
    {"training": "one visible loop, resumable to the bit"},
    {"demo": "the embedded default: the whole job on videos it renders itself"},
    {"cli": "parse, call, print"},
)
"""Rooms (the folders of the package) and their purposes, from the lowest level up. A room imports itself and rooms of
lower levels."""

EXCEPTIONS: frozenset[tuple[str, str]] = frozenset()
"""Pairs (importing module, imported module) that may break the rule. It should stay empty."""

LIMITS = {"levels by room": 9, "levels by file": 14, "entries at the top": 22}
LONG_FILE, LONG_FUNCTION = 350, 60


class Import(NamedTuple):
    """One import statement: importing module, imported module, kind ("module", "function" or "typing"), and line."""

    source: str
    target: str
    kind: str
    line: int


class Package:
    """A package read from source: its modules and every import between them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.doors = {
            self.name,
            f"{self.name}.__main__",
        }  # entry points for users; no module of the package imports them
        self.modules = dict(_modules(folder))
        texts = {name: path.read_text(encoding="utf-8") for name, path in self.modules.items()}
        self.imports: list[Import] = []
        self.long_functions: list[str] = []
        for name, text in texts.items():
            tree = ast.parse(text)
            self.imports += self._imports_in(name, tree)
            self.long_functions += [f"{name}:{function}" for function in _long_functions(tree)]

    def imports_of(self, source: str, text: str) -> Iterator[Import]:
        """Yield every import in the text of module `source`; imported submodules are named in full."""
        return self._imports_in(source, ast.parse(text))

    def _imports_in(self, source: str, tree: ast.Module) -> Iterator[Import]:

        def walk(node: ast.AST, kind: str) -> Iterator[Import]:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                kind = "function" if kind == "module" else kind
            if isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING":
                for child in node.body:
                    yield from walk(child, "typing")
                for child in node.orelse:
                    yield from walk(child, kind)
                return
            for target in self._targets(node):
                yield Import(source, target, kind, node.lineno)  # type: ignore[attr-defined]
            for child in ast.iter_child_nodes(node):
                yield from walk(child, kind)

        return walk(tree, "module")

    def _targets(self, node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: imports must be absolute; write the module's full name")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            return [name if name in self.modules else str(node.module) for name in names]
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in {"require", "import_module", "__import__"}:
                return [str(node.args[0].value)]
        return []

    def room(self, module: str) -> str:
        """Return the room of a module: the first name below the package."""
        return module.split(".")[1]

    def graph(self, *, rooms: bool) -> dict[str, set[str]]:
        """Return the set of imported rooms or modules of each room or module."""
        edges: dict[str, set[str]] = {}
        for name in self.modules:
            if name not in self.doors:
                edges.setdefault(self.room(name) if rooms else name, set())
        for entry in self.imports:
            if self.doors & {entry.source, entry.target} or entry.target not in self.modules:
                continue
            source, target = (self.room(m) if rooms else m for m in (entry.source, entry.target))
            if source != target:
                edges[source].add(target)
        return edges

    def breaches(self) -> list[str]:
        """Return a sentence for each import of a higher level, another room of the same level, or an entry point."""
        level = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
        complaints = []
        for entry in self.imports:
            if entry.target.partition(".")[0] != self.name or entry.source in self.doors:
                continue
            statement = f"{entry.source}:{entry.line} imports {entry.target}"
            if entry.target in self.doors:
                complaints.append(f"{statement}, the public face; import from the module that defines the name")
                continue
            if entry.target not in self.modules:
                if entry.target != f"{self.name}.__version__":
                    complaints.append(f"{statement}, which is no module")
                continue
            source_room, target_room = self.room(entry.source), self.room(entry.target)
            if missing := {source_room, target_room} - set(level):
                complaints.append(f"room {sorted(missing)[0]} has no level; place it in LEVELS of scripts/structure.py")
            elif (
                source_room != target_room
                and level[target_room] >= level[source_room]
                and (entry.source, entry.target) not in EXCEPTIONS
            ):
                direction = "upwards" if level[target_room] > level[source_room] else "sideways"
                complaints.append(f"{statement}, {direction} ({entry.kind} import)")
        return sorted(set(complaints))


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan 1972), each sorted."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                components.append(sorted(component))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return components


def height(graph: Mapping[str, set[str]]) -> int:
    """Return the number of levels: nodes on the longest chain of imports, a cycle counting all of its nodes."""
    member = {node: tuple(component) for component in cycles(graph) for node in component}
    heights: dict[tuple[str, ...], int] = {}

    def visit(group: tuple[str, ...]) -> int:
        if group not in heights:
            heights[group] = 0
            below = {member.get(t, (t,)) for node in group for t in graph.get(node, ())} - {group}
            heights[group] = len(group) + max((visit(other) for other in below), default=0)
        return heights[group]

    return max((visit(member.get(node, (node,))) for node in graph), default=0)


def _long_functions(tree: ast.AST) -> Iterator[str]:
    """Yield `function (lines)` for each function of more than LONG_FUNCTION lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > LONG_FUNCTION:
                yield f"{node.name} ({lines})"


def long_files(package: Package) -> list[str]:
    """Return `module (lines)` for each file of more than LONG_FILE lines."""
    sizes = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in package.modules.items()}
    return [f"{name} ({lines})" for name, lines in sizes.items() if lines > LONG_FILE]


def entries(package: Package) -> int:
    """Return the number of files and folders at the top of the package."""
    return sum(not path.name.startswith(("__pycache__", ".")) for path in package.folder.iterdir())


def measure(package: Package) -> dict[str, int]:
    """Return every metric of the structure by name."""
    rooms, files = package.graph(rooms=True), package.graph(rooms=False)
    return {
        "modules": len(package.modules),
        "entries at the top": entries(package),
        "levels by room": height(rooms),
        "levels by file": height(files),
        "cycles of rooms": len(cycles(rooms)),
        "cycles of files": len(cycles(files)),
        "exceptions": len(EXCEPTIONS),
        "breaches of the levels": len(package.breaches()),
        f"files over {LONG_FILE} lines": len(long_files(package)),
        f"functions over {LONG_FUNCTION} lines": len(package.long_functions),
    }


def at_commit(revision: str, folder: Path) -> Package:
    """Unpack the package of a commit into `folder` and read it."""
    command = ["git", "archive", "--format=tar", revision, PACKAGE]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return Package(folder / PACKAGE)


def main() -> int:
    """Print the table; return 1 if this tree breaks a rule."""
    parser = argparse.ArgumentParser(description="Measure the structure of the package.")
    parser.add_argument("--base", help="a commit to compare with")
    parser.add_argument("--list", action="store_true", help="name cycles, breaches, long files and long functions")
    arguments = parser.parse_args()
    package = Package(ROOT / PACKAGE)
    now, before = measure(package), None
    if arguments.base:
        with tempfile.TemporaryDirectory() as folder:
            before = measure(at_commit(arguments.base, Path(folder)))
    print(f"{'':28}{'before':>8}{'now':>8}{'limit':>8}" if before else f"{'':28}{'now':>8}{'limit':>8}")
    for name, value in now.items():
        columns = [*([before[name]] if before else []), value, LIMITS.get(name, "")]
        print(f"{name:28}" + "".join(f"{column:>8}" for column in columns))
    details = [*cycles(package.graph(rooms=False)), *package.breaches(), *long_files(package), *package.long_functions]
    if arguments.list:
        print(*details, sep="\n")
    broken = any(now[name] > limit for name, limit in LIMITS.items()) or bool(
        cycles(package.graph(rooms=False)) or package.breaches() or long_files(package)
    )
    return int(broken or len(package.long_functions) > 2)


if __name__ == "__main__":
    sys.exit(main())
