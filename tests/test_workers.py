"""Worker processes end with their parent, even if it is killed, and start in its working directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipvid.errors import WorkerError
from clipvid.runtime.concurrency import loader_death, process_pool

PARENT = """
import time
from clipvid.runtime.concurrency import process_pool
if __name__ == "__main__":
    pool = process_pool(2, loads={loads!r})
    list(pool.map(time.sleep, [0.2] * 4))
    print(*pool._processes, flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Return False for a process that has ended, also between the two calls, or that only waits to be reaped."""
    try:
        os.kill(pid, 0)
        return sys.platform != "linux" or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("loads", [(), ("json",)])
def test_workers_end_with_a_killed_parent(tmp_path, loads):
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
    survivors = [pid for pid in workers if alive(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert not survivors


@pytest.mark.parametrize("loads", [(), ("json",)])
def test_workers_start_in_the_directory_of_their_parent(tmp_path, monkeypatch, loads):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        with process_pool(1, loads=loads) as pool:
            assert pool.submit(os.getcwd).result() == str((tmp_path / folder).resolve())


def test_a_worker_that_cannot_start_raises_before_any_work():
    with pytest.raises(WorkerError, match="worker processes ended as they started"):
        processes_of_a_script_that_fails()


def processes_of_a_script_that_fails() -> None:
    main = sys.modules["__main__"]
    original = getattr(main, "__file__", None), main.__spec__
    main.__file__, main.__spec__ = __file__.replace(".py", "_no_such_script.py"), None
    try:
        process_pool(1)
    finally:
        main.__file__, main.__spec__ = original


@pytest.mark.parametrize("text", ["DataLoader worker (pid 7) is killed by signal: Killed. ", "out of memory"])
def test_only_the_message_of_torch_about_a_dead_worker_is_recognised(text):
    death = loader_death(RuntimeError(text))
    assert (death is None) == (text == "out of memory")
    assert death is None or "workers=0" in str(death)


UNGUARDED = """
import sys
from pathlib import Path
from clipvid.data.motion_shapes import write_dataset
write_dataset(Path(sys.argv[1]) / "shapes", "test", 6, workers=2)
"""


def test_rendering_in_a_script_without_main_guard_raises_a_clear_error(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(UNGUARDED)
    command = [sys.executable, str(script), str(tmp_path)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert completed.returncode == 1
    assert completed.stderr.count("Traceback") == 1
    assert completed.stderr.splitlines()[-1].startswith(
        "clipvid.errors.WorkerError: worker processes ended as they started"
    )
