"""Loader of a ClipDataset: decodes the next batches in threads or processes while the current one is in use.

Contract: a dataset and the clip indices of each batch in; batches in that order out, identical for threads and
processes. An unreadable file raises at its own batch, a worker that dies raises WorkerError. No thread or process
outlives the iteration. Decoding times go to the active profile, if any. Knows nothing of models.
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

from clipvid.data.batches.batch import Batch, Clip, ClipSource, collate
from clipvid.errors import VideoError
from clipvid.runtime.concurrency import THREADS, end_unguarded_import, loader_death, never_started
from clipvid.runtime.prefetch import prefetch
from clipvid.runtime.profiling import awaited, beside
from clipvid.video.backends.verdicts import Entry, Key, memory
from clipvid.video.decode import decode_in_one_thread

MAX_THREADS = 8
"""Maximum number of decoding threads."""


def batches_of(
    dataset: ClipSource, batch_order: Sequence[Sequence[int]], *, workers: int = 0, device: torch.device | str = "cpu"
) -> Generator[Batch, None, None]:
    """Yield the batches of `batch_order`, decoded two ahead of their use; close the generator if you stop early.

    `workers` is the number of processes; 0 decodes in threads of this process, without copies between processes and as
    fast, since decoders and resizing release the GIL. `device` is the destination of the batches: page-locked memory is
    used for CUDA.
    """
    pin = torch.device(device).type == "cuda"
    source = (
        _by_processes(dataset, batch_order, workers=workers, pin=pin)
        if workers
        else _by_threads(dataset, batch_order, threads=_threads(torch.device(device)), pin=pin)
    )
    with closing(awaited(source)) as batches:
        for batch in batches:
            beside(**batch.durations._asdict())
            yield batch


def _threads(device: torch.device) -> int:
    """Return 1 if the tower computes on the CPU, else one thread per core up to MAX_THREADS."""
    return 1 if device.type == "cpu" else min(torch.get_num_threads(), MAX_THREADS)


def _by_processes(
    dataset: ClipSource, batch_order: Sequence[Sequence[int]], *, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    end_unguarded_import()
    started = torch.zeros((), dtype=torch.int64).share_memory_()
    clips: Any = dataset  # DataLoader asks for a length and items alone
    loader = DataLoader(
        clips,
        batch_sampler=[list(rows) for rows in batch_order],
        num_workers=workers,
        collate_fn=_collate_for_sending,
        worker_init_fn=partial(_start_worker, started, memory().entries()),
        generator=torch.Generator(),  # keeps the loader off the global random state
        pin_memory=pin,
    )
    try:
        batches: Any = iter(loader)
    except BrokenPipeError:  # a worker died before it received its arguments (start methods other than fork)
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
    finally:  # at once: a stored exception would otherwise keep the processes alive
        batches._shutdown_workers()


def _start_worker(started: Tensor, verdicts: Mapping[Key, Entry], worker: int) -> None:
    """Prepare a worker: load the verdicts of the main process and start collecting new ones."""
    started.fill_(1)
    memory().learn(verdicts)
    memory().news = {}


@dataclass(frozen=True)
class _Sent:
    """A batch sent by a worker with its new verdicts on files, so that the workers of later epochs reuse them."""

    batch: Batch
    verdicts: Mapping[Key, Entry]

    def pin_memory(self) -> _Sent:
        """Return a copy with the batch in page-locked memory; DataLoader(pin_memory=True) calls it."""
        return replace(self, batch=self.batch.pin_memory())


def _collate_for_sending(items: Sequence[Clip | VideoError]) -> _Sent:
    news, memory().news = memory().news or {}, {}
    return _Sent(collate(items), news)


def _by_threads(
    dataset: ClipSource, batch_order: Sequence[Sequence[int]], *, threads: int, pin: bool
) -> Generator[Batch, None, None]:
    stopped = Event()
    clips = dataset.stopping(stopped.is_set)
    pool = ThreadPoolExecutor(
        threads, thread_name_prefix="clipvid-decode", initializer=decode_in_one_thread if threads > 1 else None
    )

    def pending_batches() -> Iterator[Callable[[], Batch]]:
        for rows in batch_order:
            yield partial(_collate_futures, [pool.submit(clips.__getitem__, row) for row in rows], pin=pin)

    def stop() -> None:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)

    with pool:
        yield from prefetch(pending_batches(), stop=stop)


def _collate_futures(clips: Sequence[Future[Clip | VideoError]], *, pin: bool) -> Batch:
    batch = collate([clip.result() for clip in clips])
    return batch.pin_memory() if pin else batch
