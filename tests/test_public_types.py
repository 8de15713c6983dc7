"""Types of the public interface: shipped with the package, complete, and seen by a type checker at the root.

The tests that start pyright need tens of seconds and are slow; each states what it would find in a user's editor.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import clipvid

ROOT = Path(clipvid.__file__).parents[1]
SCRIPT = Path(__file__).with_name("user_script.py")


def pyright(*words: str, folder: Path) -> dict[str, Any]:
    """Run pyright outside the checkout, as a user does, and return its report; skip where it cannot start."""
    program = shutil.which("pyright") or shutil.which("pyright", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("pyright is not installed (pip install 'clipvid[dev]')")
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [program, "--outputjson", *words]
    run = subprocess.run(command, cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True)
    try:
        return json.loads(run.stdout)
    except json.JSONDecodeError:
        pytest.skip(f"pyright cannot start here: {(run.stderr or run.stdout).strip()[-200:]}")


def test_the_package_declares_its_types():
    assert (ROOT / "clipvid" / "py.typed").read_bytes() == b""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["clipvid"], "the wheel has every file of the package, py.typed among them"
    assert not {"exclude", "only-include", "include"} & set(wheel)


@pytest.mark.parametrize("name", clipvid.__all__)
def test_every_parameter_and_result_of_a_public_name_has_a_type(name):
    public = getattr(clipvid, name)
    members = [public]
    if inspect.isclass(public):
        attributes = [member for key, member in vars(public).items() if not key.startswith("_") or key == "__init__"]
        members = [getattr(member, "__func__", getattr(member, "fget", member)) for member in attributes]
    for function in filter(inspect.isfunction, members):
        signature = inspect.signature(function)
        untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
        assert set(untyped) <= {"self", "cls"}, f"{function.__qualname__}: {untyped}"
        assert signature.return_annotation is not signature.empty or function.__name__ == "__init__"


def test_the_user_script_has_every_public_name():
    text = SCRIPT.read_text(encoding="utf-8")
    assert [name for name in clipvid.__all__ if f"clipvid.{name}" not in text] == []


@pytest.mark.slow
def test_a_strict_checker_accepts_the_user_script_and_sees_its_types(tmp_path):
    script = shutil.copy(SCRIPT, tmp_path)
    text = SCRIPT.read_text(encoding="utf-8").replace(
        '"""A user', '# pyright: strict, reportMissingTypeStubs=false\n"""A', 1
    )
    Path(script).write_text(text, encoding="utf-8")
    errors = [entry for entry in pyright(script, folder=tmp_path)["generalDiagnostics"] if entry["severity"] == "error"]
    assert [f"{error['range']['start']['line'] + 1}: {error['message']}" for error in errors] == []


@pytest.mark.slow
def test_a_checker_knows_no_names_that_the_root_lacks(tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text('import clipvid\nclipvid.creat_model("x")\nclipvid.create_model(3)\n', encoding="utf-8")
    report = pyright(str(script), folder=tmp_path)
    assert [diagnostic["rule"] for diagnostic in report["generalDiagnostics"]] == [
        "reportAttributeAccessIssue",
        "reportArgumentType",
    ]


@pytest.mark.slow
def test_every_public_symbol_has_a_known_type(tmp_path):
    report = pyright("--verifytypes", "clipvid", "--ignoreexternal", folder=tmp_path)["typeCompleteness"]
    assert Path(report["packageRootDirectory"]) == ROOT / "clipvid"
    symbols = report["symbols"]
    assert [s["name"] for s in symbols if s["isExported"] and not s["isTypeKnown"]] == []
    assert report["completenessScore"] == 1
