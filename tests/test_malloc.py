"""keep_freed_memory: a process that keeps the memory it frees does not map those pages again."""

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
    a = torch.ones(9 * 2**20)  # 36 MiB each; blocks up to 32 MiB may be kept without the setting
    b = a + 1
    c = b * 2
    del a
    d = c + b
    del b, c
    d.sum()


def faults_of_five_steps():
    for _ in range(6):  # until the heap is as large as one step needs
        step()
    before = faults()
    for _ in range(5):
        step()
    return faults() - before


by_default = faults_of_five_steps()
assert keep_freed_memory()
print(by_default, faults_of_five_steps())
"""


GLIBC = [int(part) for part in platform.libc_ver()[1].split(".")[:2]] if platform.libc_ver()[0] == "glibc" else [0, 0]


@pytest.mark.skipif(GLIBC < [2, 35], reason="needs glibc 2.35 or later, where the setting covers blocks of 36 MiB")
def test_freed_memory_is_kept_and_not_mapped_again():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    by_default, with_setting = map(int, done.stdout.split())
    assert by_default > 10_000
    assert with_setting < 500
