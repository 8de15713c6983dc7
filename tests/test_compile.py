"""torch.compile of branches and models: no graph break, the same numbers and the same names of weights."""

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


@pytest.mark.parametrize("case", ["whole", *SLOW])
def test_compiling_has_no_graph_break_and_gives_the_same_numbers(case):
    script = Path(__file__).parent / "compiled.py"
    done = subprocess.run([sys.executable, str(script), case], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
