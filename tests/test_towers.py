"""The survey of towers: every one that open_clip lists attaches (slow); one of some makes (always)."""

import logging
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "towers.py"


@pytest.fixture
def survey(monkeypatch, capsys):
    """survey(*arguments): the script's exit code and what it prints."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
        return runpy.run_path(str(SCRIPT))["main"](), capsys.readouterr().out

    level = logging.root.manager.disable  # the script silences a library for good
    yield run
    logging.disable(level)


def test_one_of_each_other_make_attaches(survey):
    """But for open_clip's own ViT, SigLIP's and EVA's, of which other tests attach and run small ones."""
    names = ["convnext_tiny", "PE-Core-T-16-384", "RN50", "swin_base_patch4_window7_224"]
    code, said = survey("--no-run", "--only", *names, "vit_relpos_medium_patch16_cls_224")
    assert code == 0, said
    assert "5/5 towers attach" in said


@pytest.mark.slow
def test_all_towers_attach_and_each_family_runs(survey):
    code, said = survey()
    assert code == 0, said
    assert "144/144 towers attach" in said
    assert "8/8 families run" in said
