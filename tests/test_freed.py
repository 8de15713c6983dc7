"""A process that keeps what it frees maps no page twice."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from clipvid.runtime.malloc import keep_freed_memory

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def step():
    a = torch.ones(2**24)  # 64 MiB each
    b = a + 1
    c = b * 2
    del a
    d = c + b
    del b, c
    d.sum()


def faults_of_five_steps():
    for _ in range(6):  # until the heap has room for all that a step holds at once
        step()
    before = faults()
    for _ in range(5):
        step()
    return faults() - before


as_it_comes = faults_of_five_steps()
assert keep_freed_memory()
print(as_it_comes, faults_of_five_steps())
"""


GLIBC = [int(part) for part in platform.libc_ver()[1].split(".")[:2]] if platform.libc_ver()[0] == "glibc" else [0, 0]


@pytest.mark.skipif(GLIBC < [2, 35], reason="a setting of glibc, of tensors of 64 MiB from 2.35 on")
def test_freed_memory_is_kept_and_not_mapped_anew():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    as_it_comes, kept = map(int, done.stdout.split())
    assert as_it_comes > 10_000
    assert kept < 500
