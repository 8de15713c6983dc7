"""Batches of a ClipDataset while the last one is still in use: decoded beside the tower, which need not wait for them.

Contract: a dataset and the clips of each batch in; the batches in that order out, the same whatever decodes them. An
unreadable file is an error at its own batch, a worker that ends a WorkerError. No thread or process outlives the
iteration. What decoding took goes to the profile, if there is one. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_start_method
from threading import Event
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clipvid.data.batch import Batch, Clip, ClipSource, collate
from clipvid.errors import VideoError
from clipvid.runtime.concurrency import THREADS, end_unguarded_import, loader_death, never_started
from clipvid.runtime.prefetch import prefetch
from clipvid.runtime.profiling import awaited, beside
from clipvid.video.backends.verdicts import Entry, Key, memory
from clipvid.video.decode import decode_in_one_thread

MOST = 8
"""Threads that decode at most."""


def batches_of(
    dataset: ClipSource, plan: Sequence[Sequence[int]], *, workers: int = 0, device: torch.device | str = "cpu"
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
    dataset: ClipSource, plan: Sequence[Sequence[int]], *, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    end_unguarded_import()
    started = torch.zeros((), dtype=torch.int64).share_memory_()
    clips: Any = dataset  # DataLoader asks for a length and items alone
    loader = DataLoader(
        clips,
        batch_sampler=[list(rows) for rows in plan],
        num_workers=workers,
        collate_fn=_sent,
        worker_init_fn=partial(_begin, started, memory().entries()),
        generator=torch.Generator(),  # the loader's own draw must not move the training's random state
        pin_memory=pin,
    )
    try:
        batches: Any = iter(loader)
    except BrokenPipeError:  # under start methods other than fork, a worker ended before it was told its work
        raise never_started(THREADS) from None
    try:
        for sent in batches:
            memory().learn(sent.verdicts)
            yield sent.batch
    except RuntimeError as error:
        death = loader_death(error)
        if death is None:
            raise
        raise (death if started or get_start_method() == "fork" else never_started(THREADS)) from error
    finally:  # now, not when the last reference goes: an error that is kept would keep the processes
        batches._shutdown_workers()


def _begin(started: Tensor, verdicts: Mapping[Key, Entry], worker: int) -> None:
    """Prepare a worker: it starts from the verdicts of this process, and sends those that it adds."""
    started.fill_(1)
    memory().learn(verdicts)
    memory().news = {}


@dataclass(frozen=True)
class _Sent:
    """A batch on its way out of a worker, with the verdicts on files that it took; workers last no longer than a plan,
    and the next ones should not ask again.
    """

    batch: Batch
    verdicts: Mapping[Key, Entry]

    def pin_memory(self) -> _Sent:
        return replace(self, batch=self.batch.pin_memory())


def _sent(items: Sequence[Clip | VideoError]) -> _Sent:
    news, memory().news = memory().news or {}, {}
    return _Sent(collate(items), news)


def _by_threads(
    dataset: ClipSource, plan: Sequence[Sequence[int]], *, threads: int, pin: bool
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
        yield from prefetch(jobs(), stop=stop)


def _assembled(clips: Sequence[Future[Clip | VideoError]], *, pin: bool) -> Batch:
    batch = collate([clip.result() for clip in clips])
    return batch.pin_memory() if pin else batch
