"""A process that keeps what it frees maps no page twice."""

from __future__ import annotations

import platform
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
    a = torch.ones(2**24)  # 64 MiB each
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


GLIBC = [int(part) for part in platform.libc_ver()[1].split(".")[:2]] if platform.libc_ver()[0] == "glibc" else [0, 0]


@pytest.mark.skipif(GLIBC < [2, 35], reason="a setting of glibc, of tensors of 64 MiB from 2.35 on")
def test_freed_memory_is_kept_and_not_mapped_anew():
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 500
    assert faults("as it comes") > 10_000
