"""Processes beside this one: they end with it, also when it is killed, and begin where it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipvid._workers import processes

PARENT = """
import time
from clipvid._workers import processes
if __name__ == "__main__":
    pool = processes(2, loads={loads!r})
    list(pool.map(time.sleep, [0.2] * 4))
    print(*pool._processes, flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("loads", [(), ("json",)])
def test_workers_of_a_killed_process_end_with_it(tmp_path, loads):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(loads=loads))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(alive(pid) for pid in workers)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize("loads", [(), ("json",)])
def test_workers_begin_where_their_parent_is(tmp_path, monkeypatch, loads):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        with processes(1, loads=loads) as pool:
            assert pool.submit(os.getcwd).result() == str((tmp_path / folder).resolve())
