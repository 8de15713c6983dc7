"""torch.compile takes branches and models whole: no break in the graph, the same numbers, names of weights kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and g++ is absent"
)
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("attention", "conv_full", "divided")]
SLOW += [pytest.param("training", marks=[pytest.mark.slow, COMPILER])]


@pytest.mark.parametrize("what", ["whole", *SLOW])
def test_it_compiles_without_a_break_and_computes_the_same(what):
    script = Path(__file__).parent / "compiled.py"
    done = subprocess.run([sys.executable, str(script), what], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
