"""The survey of towers: every one that open_clip lists attaches (slow); a few of each make (always)."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "towers.py"


def survey(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=900)


def test_one_of_each_make_attaches():
    names = [
        "ViT-B-32",
        "ViT-B-16-SigLIP2",
        "EVA02-B-16",
        "convnext_tiny",
        "MobileCLIP2-S0",
        "RN50",
        "PE-Core-T-16-384",
    ]
    done = survey("--no-run", "--only", *names, "swin_base_patch4_window7_224", "vit_relpos_medium_patch16_cls_224")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9/9 towers attach" in done.stdout


@pytest.mark.slow
def test_all_towers_attach_and_each_family_runs():
    done = survey()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "144/144 towers attach" in done.stdout
    assert "8/8 families run" in done.stdout
