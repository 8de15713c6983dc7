"""`import clipvid` and `clipvid --help` load no heavy library: both are fast, and neither needs an optional extra."""

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
    """Return the top-level modules that a fresh interpreter has loaded after `script`."""
    script += "\nimport sys; print('loaded', *{name.partition('.')[0] for name in sys.modules})"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.rpartition("loaded")[2].split())


def test_import_loads_nothing_heavy_not_even_torch():
    assert not loaded_by("import clipvid") & {*HEAVY, "torch", "numpy"}


def test_listing_checking_and_rendering_clips_load_no_torch():
    # Each process that renders clips, and each that starts workers which decode, would need 2 s of CPU to load it.
    script = "import clipvid.data.open, clipvid.data.check, clipvid.data.motion_shapes"
    assert not loaded_by(script) & {*HEAVY, "torch", "torchvision"}


def test_the_check_detects_a_heavy_module():
    assert "av" in loaded_by("import av")


def test_decoding_workers_load_neither_torchvision_nor_torchs_compiler():
    # With them each worker would need twice the CPU time to start.
    script = "import clipvid.data.dataset, clipvid.data.loader, sys; assert 'torch._dynamo' not in sys.modules"
    assert not loaded_by(script) & {"torchvision", "open_clip", "transformers"}


def test_help_loads_nothing_heavy():
    if importlib.util.find_spec("clipvid.cli.main") is None:
        pytest.skip("clipvid/cli/main.py does not exist yet")
    assert not loaded_by(HELP) & set(HEAVY)


def test_python_dash_m_shows_the_help_too():
    if importlib.util.find_spec("clipvid.__main__") is None:
        pytest.skip("clipvid/__main__.py does not exist yet")
    process = subprocess.run([sys.executable, "-m", "clipvid", "--help"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "usage" in process.stdout.lower()


REFUSED = {
    "train . --model nonsense": "unknown base model 'nonsense'; clipvid list models lists them",
    "eval . --model ViT-B-33": "unknown base model 'ViT-B-33'; did you mean ViT-B-32",
    "embed . --model nonsense": "unknown base model",
    "index build . --model nonsense": "unknown base model",
    "info nonsense": "unknown base model",
    "train . --branch nonsense": "--branch must be one of mean, ",
    "info clipvid-mini --branch nonsense": "--branch must be one of mean, ",
    "train nowhere": "nowhere does not exist; give videos, folders of videos, or a csv file",
    "train . --out run": "run holds a training run; give --resume to continue it, or another --out",
    "index build . --out run": "run holds other files, and an index needs a separate folder; give another --out",
    "eval . --out run/checkpoint.pt": "run/checkpoint.pt already exists; give --overwrite to replace it",
    "eval nowhere": "nowhere does not exist; give videos, folders of videos, or a csv file",
}
RUN = f"""
import contextlib, io, sys
from clipvid.cli.main import main
for words, message in {REFUSED}.items():
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert main(words.split()) in (1, 2), words
    assert message in stderr.getvalue(), stderr.getvalue()
    heavy = {{name.partition(".")[0] for name in sys.modules}} & {{*{HEAVY}, "torch", "numpy"}}
    assert not heavy, (words, heavy)
"""


def test_wrong_names_and_existing_outputs_are_refused_before_any_heavy_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").touch()
    (tmp_path / "a.mp4").touch()
    assert not loaded_by(RUN) & {*HEAVY, "torch", "numpy"}


def test_names_listed_without_imports_equal_those_of_the_libraries():
    import open_clip

    from clipvid.models.backbone import names

    assert sorted(open_clip.list_models()) == sorted(names.builtin_names())
