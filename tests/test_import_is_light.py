"""`import clipvid` and `clipvid --help` load nothing heavy: both answer at once, and a missing extra breaks neither."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

HEAVY = (
    "open_clip", "faiss", "lightning", "lightning_fabric", "matplotlib", "transformers",
    "av", "decord", "torchcodec", "pandas", "tensorboard",
)  # fmt: skip
HELP = """
import contextlib, io, sys
from clipvid.cli.main import main
sys.argv = ["clipvid", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main()
assert "usage" in shown.getvalue().lower(), "no help came out"
"""


def loaded_by(script: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `script`."""
    script += "\nimport sys; print('loaded', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded")[2].split())


def test_import_loads_nothing_heavy_not_even_torch():
    assert not loaded_by("import clipvid") & {*HEAVY, "torch", "numpy"}


def test_the_probe_sees_a_heavy_module_where_there_is_one():
    assert "av" in loaded_by("import av")


def test_help_loads_nothing_heavy():
    if importlib.util.find_spec("clipvid.cli.main") is None:
        pytest.skip("clipvid/cli/main.py does not exist yet")
    assert not loaded_by(HELP) & set(HEAVY)


def test_python_dash_m_shows_the_help_too():
    if importlib.util.find_spec("clipvid.__main__") is None:
        pytest.skip("clipvid/__main__.py does not exist yet")
    done = subprocess.run([sys.executable, "-m", "clipvid", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train . --model nonsense", "unknown base model 'nonsense'; see open_clip.list_models()"),
        ("eval . --model ViT-B-33", "unknown base model 'ViT-B-33'; did you mean ViT-B-32"),
        ("embed . --model nonsense", "unknown base model"),
        ("index . --model nonsense", "unknown base model"),
        ("info nonsense", "unknown base model"),
        ("train . --branch nonsense", "unknown branch 'nonsense'; choose one of mean, "),
        ("info clipvid-mini --branch nonsense", "unknown branch 'nonsense'; choose one of mean, "),
        ("train nowhere", "nowhere does not exist; give a folder of videos, or a csv file"),
        ("train . --out run", "run holds a training run; give --resume true to continue it, or another --out"),
        ("index . --out run", "run holds other files, and an index needs a separate folder; give another --out"),
        ("eval . --out run/checkpoint.pt", "run/checkpoint.pt already exists; give --overwrite true to replace it"),
        ("eval nowhere", "nowhere does not exist; give a folder of videos, or a csv file"),
    ],
)
def test_what_there_is_not_or_is_already_is_refused_before_anything_heavy_is_loaded(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").touch()
    script = "import contextlib, io\nfrom clipvid.cli.main import main\n"
    script += "with contextlib.redirect_stderr(io.StringIO()) as told:\n"
    script += f"    assert main({words.split()}) == 1\nassert {said!r} in told.getvalue(), told.getvalue()"
    assert not loaded_by(script) & {*HEAVY, "torch", "numpy"}


def test_the_names_that_are_known_early_are_those_that_there_are():
    import open_clip

    from clipvid.models import branches
    from clipvid.models.backbone import names

    assert sorted(open_clip.list_models()) == sorted(names.builtin_names())
    assert tuple(branches.BRANCHES) == names.BRANCHES
