"""Batches of a ClipDataset while the last one is still in use: decoded beside the tower, which need not wait for them.

Contract: a dataset and the clips of each batch in; the batches in that order out, the same whatever decodes them. An
unreadable file is an error at its own batch. No thread or process outlives the iteration. What decoding took goes to
the profile, if there is one. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from threading import Event
from typing import Any

import torch
from torch.utils.data import DataLoader

from clipvid._ahead import ahead
from clipvid.data.dataset import Batch, Clip, ClipDataset, collate
from clipvid.errors import VideoError
from clipvid.profile import awaited, beside
from clipvid.video.decode import decode_in_one_thread

MOST = 8
"""Threads that decode at most."""


def batches_of(
    dataset: ClipDataset, plan: Sequence[Sequence[int]], *, workers: int = 0, device: torch.device | str = "cpu"
) -> Generator[Batch, None, None]:
    """The batches that `plan` lists by the clips in them, two ahead of their use; close it where you leave it early.

    `workers` is a number of processes; 0 decodes in threads of this one, which needs no copies between processes and
    runs as fast, since decoders and resizing let go of Python's lock. `device` is where batches will go: page-locked
    memory for CUDA.
    """
    pin = torch.device(device).type == "cuda"
    source = (
        _by_processes(dataset, plan, workers=workers, pin=pin)
        if workers
        else _by_threads(dataset, plan, threads=_threads(torch.device(device)), pin=pin)
    )
    with closing(awaited(source)) as found:
        for batch in found:
            beside(**batch.spent._asdict())
            yield batch


def in_order(n: int, size: int) -> list[range]:
    """The plan of n clips in their order, `size` a batch."""
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def _threads(device: torch.device) -> int:
    """One where the tower computes on the same cores, else one a core."""
    return 1 if device.type == "cpu" else min(torch.get_num_threads(), MOST)


def _by_processes(
    dataset: ClipDataset, plan: Sequence[Sequence[int]], *, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    loader = DataLoader(
        dataset,
        batch_sampler=[list(rows) for rows in plan],
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),  # the loader's own draw must not move the training's random state
        pin_memory=pin,
    )
    batches: Any = iter(loader)
    try:
        yield from batches
    finally:  # now, not when the last reference goes: an error that is kept would keep the processes
        batches._shutdown_workers()


def _by_threads(
    dataset: ClipDataset, plan: Sequence[Sequence[int]], *, threads: int, pin: bool
) -> Generator[Batch, None, None]:
    over = Event()
    clips = dataset.stopping(over.is_set)
    pool = ThreadPoolExecutor(
        threads, thread_name_prefix="clipvid-decode", initializer=decode_in_one_thread if threads > 1 else None
    )

    def jobs() -> Iterator[Callable[[], Batch]]:
        for rows in plan:
            yield partial(_assembled, [pool.submit(clips.__getitem__, row) for row in rows], pin=pin)

    def stop() -> None:
        over.set()
        pool.shutdown(wait=False, cancel_futures=True)

    with pool:
        yield from ahead(jobs(), stop=stop)


def _assembled(clips: Sequence[Future[Clip | VideoError]], *, pin: bool) -> Batch:
    batch = collate([clip.result() for clip in clips])
    return batch.pin_memory() if pin else batch
