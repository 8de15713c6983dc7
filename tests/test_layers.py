"""Imports only point down the levels of scripts/structure.py; each heavy library is imported in one part alone."""

from __future__ import annotations

import re
import sys
import tomllib
from copy import copy
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import structure  # noqa: E402  # a script, not an installed module

IMPORTERS = {
    "open_clip": {"clipvid.models.backbone.open_clip"},
    "av": {"clipvid.video", "clipvid.data.motion_shapes"},
    "PIL": {"clipvid.video"},
    "decord": {"clipvid.video.backends.decord"},
    "torchcodec": {"clipvid.video.backends.torchcodec"},
    "faiss": {"clipvid.search.stores.faiss"},
    "lightning": {"clipvid.training.loop"},
    "lightning_fabric": {"clipvid.training.loop"},
    "tensorboard": {"clipvid.training.loggers"},
    "matplotlib": {"clipvid.plots"},
    "cyclopts": {"clipvid.cli"},
    "peft": {"clipvid.models.backbone.trainable"},
    "pyarrow": {"clipvid.evaluation.saved"},
    "huggingface_hub": {"clipvid.models.checkpoint"},
    "tqdm": {"clipvid.runtime.display.progress"},
    "yaml": {"clipvid.cli.parsing.option_file"},
    "xxhash": {"clipvid.runtime.storage.manifest"},
    "filelock": {"clipvid.runtime.storage.folder_lock"},
}
"""Heavy libraries, with the modules (or packages and all their modules) that alone may import each."""


@cache
def package() -> structure.Package:
    """Read the package once, in the one test worker that runs this file."""
    return structure.Package(ROOT / "clipvid")


def misplaced_imports(imports: list[structure.Import]) -> list[str]:
    """Return a sentence for each import of a heavy library outside the modules that may import it."""
    complaints = []
    for entry in imports:
        importers = IMPORTERS.get(entry.target.partition(".")[0])
        if importers and not any(
            entry.source == importer or entry.source.startswith(f"{importer}.") for importer in importers
        ):
            complaints.append(
                f"{entry.source}:{entry.line} imports {entry.target}, which belongs to {sorted(importers)}"
            )
    return complaints


def test_imports_point_down_the_rooms():
    assert not package().breaches()


def test_the_table_of_exceptions_is_empty():
    assert not structure.EXCEPTIONS


def test_a_heavy_library_is_imported_where_it_may_be_alone():
    assert not misplaced_imports(package().imports)


def test_no_room_and_no_file_is_in_a_cycle():
    assert not structure.cycles(package().graph(rooms=True))
    assert not structure.cycles(package().graph(rooms=False))


def test_every_room_of_the_package_is_in_a_level_and_vice_versa():
    rooms = {room for level in structure.LEVELS for room in level}
    assert {package().room(name) for name in package().modules if name not in package().doors} == rooms


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("clipvid.nn.rsa", "from clipvid.models.backbone.taps import Taps", "upwards (module import)"),
        ("clipvid.nn.mixers", "def f():\n    from clipvid.models import heads", "upwards (function import)"),
        ("clipvid.models.heads", "if TYPE_CHECKING:\n    import clipvid.training.loop", "upwards (typing import)"),
        ("clipvid.data.loader", "from clipvid.models import heads", "sideways (module import)"),
        ("clipvid.nn.rsa", "from clipvid.errors import DataError", "sideways (module import)"),
        ("clipvid.search.index", "from clipvid import read_video", "the public face"),
        ("clipvid.helpers", "import clipvid.errors", "room helpers has no level"),
        ("clipvid.search.index", "import clipvid.gone", "which is no module"),
    ],
)
def test_each_kind_of_breach_is_detected(module, text, complaint):
    breached = copy(package())
    breached.imports = list(package().imports_of(module, text))
    assert complaint in " ".join(breached.breaches())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("clipvid.evaluation.results", "def f():\n    import open_clip.model"),
        ("clipvid.features.embed", 'require("faiss", why="search")'),
        ("clipvid.data.open", "import av"),
    ],
)
def test_a_heavy_library_imported_elsewhere_is_detected(module, text):
    assert misplaced_imports(list(package().imports_of(module, text)))


def test_a_cycle_is_detected_and_counts_with_all_of_its_nodes():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert structure.cycles(graph) == [["b", "c"]]
    assert structure.height(graph) == 3
    assert structure.height({"a": {"b"}, "b": set()}) == 2


def test_the_architecture_page_shows_every_room_with_its_sentence():
    rows = [
        f"| {height} | `{room}` | {sentence} |"
        for height, rooms in enumerate(structure.LEVELS)
        for room, sentence in rooms.items()
    ]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- rooms:begin -->\n")[2].partition("<!-- rooms:end -->")[0]
    assert shown.splitlines()[2:] == rows


def test_the_architecture_page_names_every_heavy_library():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = page.partition("| library | imported by |\n")[2].partition("\n\n")[0].splitlines()
    shown = " ".join(row.split("|")[1].replace("-", "_") for row in rows)
    missing = {name for name in IMPORTERS if not re.search(rf"\b{name}", shown)}
    assert not missing, "add a row to the table of heavy libraries"


def test_the_architecture_page_names_the_extra_of_a_library():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").replace("-", "_")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra, requirements in extras.items():
        for requirement in requirements:
            library = re.match(r"\w+", requirement.replace("-", "_"))[0]
            if library in IMPORTERS:
                assert f"{library} (extra `{extra}`)" in page


def test_files_that_the_architecture_page_names_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)`", page):
        folders = (ROOT, ROOT / "clipvid", ROOT / "clipvid" / "features")  # the last for a step within one room
        assert any((folder / name).exists() for folder in folders), name


def test_the_structure_stays_within_its_limits():
    measures = structure.measure(package())
    assert not {name: measures[name] for name, limit in structure.LIMITS.items() if measures[name] > limit}
    assert not structure.long_files(package())
    assert len(package().long_functions) <= 2
