"""The public names are pinned: adding, removing or shadowing one is a decision, never an accident."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import clipvid

PACKAGE = Path(clipvid.__file__).parent
PUBLIC = [
    "VideoCLIP", "VideoDataset", "VideoIndex", "Taps", "TrainConfig", "DataConfig",
    "create_model", "attach", "load", "list_models", "list_branches", "list_protocols", "load_stan_checkpoint",
    "read_video", "open_dataset", "train", "evaluate_retrieval", "evaluate_recognition", "evaluate_zero_shot",
]  # fmt: skip


def test_public_names_are_the_pinned_ones():
    assert sorted(clipvid.__all__) == sorted(PUBLIC) == sorted(clipvid._MODULES)
    assert len(clipvid.__all__) <= 20


def test_type_checkers_see_the_same_names_from_the_same_modules():
    lines = (PACKAGE / "__init__.py").read_text().splitlines()
    imports = {line.split()[3]: line.split()[1] for line in lines if line.startswith("    from clipvid.")}
    assert imports == clipvid._MODULES


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves_and_has_a_docstring(name):
    value = getattr(clipvid, name)
    assert value.__module__.startswith("clipvid.")
    docstring = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    assert docstring, f"clipvid.{name} has no docstring"
    assert not docstring.startswith(f"{name}("), f"the docstring of clipvid.{name} is the one that dataclass generates"


def test_no_module_can_hide_a_public_name():
    modules = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    assert not modules & set(PUBLIC), "importing this module would replace the public name of the same spelling"


def test_train_stays_the_function_after_its_module_is_imported():
    importlib.import_module("clipvid.training.loop")
    assert callable(clipvid.train)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'creat_model'; public names: create_model, attach"):
        clipvid.creat_model  # noqa: B018


def test_public_modules_need_no_import_of_their_own():
    script = (
        "import clipvid; print(clipvid.registry.list_mixers('conv'), clipvid.errors.DataError.__name__, clipvid.plots)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.startswith("['conv'] DataError <module 'clipvid.plots'")


def test_public_names_of_the_registry_are_a_table_a_registration_and_a_list_of_each_seam():
    kinds = ["branch", "mixer", "decoder", "reader", "protocol", "objective", "store"]
    plurals = [{"branch": "branches"}.get(kind, f"{kind}s") for kind in kinds]
    expected = {f"register_{kind}" for kind in kinds} | {f"list_{plural}" for plural in plurals}
    expected |= {plural.upper() for plural in plurals} | {"Registry", "Names", "registries", "load_plugins"}
    assert sorted(clipvid.registry.__all__) == sorted(expected)
    for kind, plural in zip(kinds, plurals, strict=True):
        table = getattr(clipvid.registry, plural.upper())
        assert getattr(clipvid.registry, f"register_{kind}") == table.register
        assert getattr(clipvid.registry, f"list_{plural}")() == sorted(table)


def test_dir_offers_the_public_names_before_they_are_loaded():
    script = "import clipvid; print(' '.join(set(dir(clipvid)) & set(clipvid.__all__)))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert set(printed.split()) == set(PUBLIC)


def test_version_equals_that_of_pyproject():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert clipvid.__version__ == project["version"]
