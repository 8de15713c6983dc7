"""torch.compile of branches and models: no graph break, the same numbers and the same names of weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and g++ is absent"
)
CASES = ["whole attention conv_full divided", pytest.param("training", marks=COMPILER)]


@pytest.mark.parametrize("cases", CASES)
def test_compiling_has_no_graph_break_and_gives_the_same_numbers(cases):
    script = Path(__file__).parent / "compiled.py"
    done = subprocess.run([sys.executable, str(script), *cases.split()], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
