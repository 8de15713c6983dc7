"""The survey of towers: all that open_clip lists attach (slow test), and one each of four families (always)."""

import logging
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "towers.py"


@pytest.fixture
def survey(monkeypatch, capsys):
    """Return a function that runs the script with arguments and returns its exit code and output."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
        return runpy.run_path(str(SCRIPT))["main"](), capsys.readouterr().out

    level = logging.root.manager.disable  # the script disables logging of warnings
    yield run
    logging.disable(level)


def test_one_tower_of_each_remaining_family_attaches(survey):
    """Each gets one mixer. Other tests attach and run small ViTs of open_clip, SigLIP and EVA."""
    names_by_mixer = {
        "attention": ["convnext_tiny", "vit_relpos_medium_patch16_cls_224"],
        "conv": ["RN50", "swin_base_patch4_window7_224"],
    }
    for mixer, names in names_by_mixer.items():
        code, output = survey("--no-run", "--mixers", mixer, "--only", *names)
        assert code == 0, output
        assert f"{len(names)}/{len(names)} towers attach with {mixer}" in output


@pytest.mark.slow
def test_all_towers_attach_and_each_family_runs(survey):
    code, output = survey()
    assert code == 0, output
    assert "144/144 towers attach" in output
    assert "8/8 families run" in output
