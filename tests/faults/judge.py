"""The use of a damaged file in a forked process, and a verdict: its result, refusal, error, crash, memory and time.

Contract: a function and its argument in, a verdict out; the calling process is untouched. Linux only. Knows nothing of
the files.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clipvid.errors import ClipvidError

SECONDS, PATIENCE = 20.0, 90.0
"""Longest computing time of one use, and longest time on a machine that does other work as well."""
MIB = 1024.0
"""Most memory of one use above that of the process at its start."""
RIGHT, REFUSED, EDITED = "right", "refused", "edited"
OTHER, ERROR, CRASH, MEMORY, SLOW = "silently other", "other error", "crash", "memory", "slow"
VERDICTS = (RIGHT, REFUSED, EDITED, OTHER, ERROR, CRASH, MEMORY, SLOW)
"""Verdicts; the first three are good. EDITED is a result that follows a change under a hash that is right again."""
GOOD = VERDICTS[:3]


class Use(NamedTuple):
    """Outcome of one use of a file."""

    verdict: str
    detail: str
    """Result in plain text if the verdict is RIGHT, else the message or the traceback."""
    mib: float = 0.0
    seconds: float = 0.0


def used(function: Callable[[Path], object], path: Path) -> Use:
    """Return the outcome of a function in a forked process with limited memory; RIGHT stands for any result."""
    context = get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(send, function, path), daemon=True)
    process.start()
    send.close()
    try:
        outcome = receive.recv() if receive.poll(PATIENCE) else Use(SLOW, f"no end after {PATIENCE:g} s")
    except EOFError:
        process.join()
        outcome = Use(CRASH, f"the process ended with exit code {process.exitcode}")
    process.kill()
    process.join()
    process.close()
    receive.close()
    return outcome


def compared(use: Use, expected: str, *, may_differ: bool) -> Use:
    """Return the outcome with the verdict on its result: it must be the expected one, unless it may differ."""
    if use.verdict != RIGHT or use.detail == expected:
        return use
    difference = next(
        (
            f"...{use.detail[i : i + 100]} instead of ...{expected[i : i + 100]}"
            for i in _differing(use.detail, expected)
        ),
        "cut off",
    )
    return use._replace(verdict=EDITED if may_differ else OTHER, detail=difference)


def _differing(text: str, other: str) -> Iterator[int]:
    return (max(0, i - 30) for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b)


def plain(value: Any) -> Any:
    """Return a value with hashes in place of its tensors and arrays."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous()
        digest = hashlib.sha256(data.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        return f"{tuple(data.shape)} {data.dtype} {digest}"
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _run(send: Connection, function: Callable[[Path], object], path: Path) -> None:
    try:
        send.send(_outcome(function, path))
    except BaseException:
        send.send(Use(ERROR, traceback.format_exc()[-2000:]))
    send.close()
    os._exit(0)  # handlers at exit belong to the calling process


def _outcome(function: Callable[[Path], object], path: Path) -> Use:
    _limit()
    before = _memory("VmRSS")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict, detail = RIGHT, repr(plain(function(path)))
    except BaseException as error:
        verdict, detail = _verdict_on(error)
    mib, seconds = _memory("VmHWM") - before, sum(os.times()[:2])
    if verdict in GOOD and (mib > MIB or seconds > SECONDS):
        verdict, detail = MEMORY if mib > MIB else SLOW, f"{mib:.0f} MiB, {seconds:.1f} s: {detail[:1000]}"
    return Use(verdict, detail, mib, seconds)


def _verdict_on(error: BaseException) -> tuple[str, str]:
    """Return the verdict on an error: MEMORY too if a refused allocation is its cause."""
    message = "".join(traceback.format_exception(error))[-2500:]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return MEMORY, message
        cause = cause.__cause__ or cause.__context__
    return (REFUSED, str(error)) if isinstance(error, ClipvidError) else (ERROR, message)


def _limit() -> None:
    """Limit threads, memory and core files of this process, and silence what libraries print."""
    torch.set_num_threads(1)  # a forked process lacks its parent's pool of threads, and would wait for it
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)
    size = int((_memory("VmSize") + 2 * MIB) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # a crash is a verdict here, and no reason for a report of all stacks
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
