"""A process that keeps what it frees maps no page twice."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from clipvid._memory import keep_freed

if sys.argv[1] == "keep":
    assert keep_freed()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def step():
    a = torch.ones(2**22)  # 16 MiB each
    b = a + 1
    c = b * 2
    del a
    d = c + b
    del b, c
    d.sum()


for _ in range(12):  # until the heap has room for all that a step holds at once
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept_and_not_mapped_anew():
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 500
    assert faults("as it comes") > 10_000
