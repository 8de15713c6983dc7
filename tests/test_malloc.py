"""keep_freed_memory: a process that keeps the memory it frees does not map those pages again."""

from __future__ import annotations

import platform
import resource

import pytest
import torch
from forked import in_a_fork

from clipvid.runtime.malloc import keep_freed_memory

GLIBC = [int(part) for part in platform.libc_ver()[1].split(".")[:2]] if platform.libc_ver()[0] == "glibc" else [0, 0]


def step() -> None:
    a = torch.ones(9 * 2**20)  # 36 MiB each; blocks up to 32 MiB may be kept without the setting
    b = a + 1
    c = b * 2
    del a
    d = c + b
    del b, c
    d.sum()


def faults_of_a_step() -> int:
    """Return the page faults of the best of four steps, after four that make the heap as large as a step needs.

    The heap of the calling process decides where a block goes: a step may need one more than the steps before.
    """
    for _ in range(4):
        step()
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults)


def faults_by_default_and_with_the_setting() -> tuple[int, int]:
    torch.set_num_threads(1)  # a forked process lacks its parent's pool of threads, and would wait for it
    by_default = faults_of_a_step()
    assert keep_freed_memory()
    return by_default, faults_of_a_step()


@pytest.mark.skipif(GLIBC < [2, 35], reason="needs glibc 2.35 or later, where the setting covers blocks of 36 MiB")
def test_freed_memory_is_kept_and_not_mapped_again():
    by_default, with_setting = in_a_fork(faults_by_default_and_with_the_setting)
    assert by_default > 10_000
    assert with_setting < 500
