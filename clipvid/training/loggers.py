"""The default logger: training curves for TensorBoard. The only file that imports tensorboard.

Contract: metrics and a step in, event files in a folder out. Curves that cannot be written, as on a full disk, are a
warning, since no result depends on them. Knows nothing of what the metrics mean.
"""

from __future__ import annotations

import platform
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clipvid.errors import ClipvidWarning, MissingExtraError
from clipvid.runtime.files import describe_os_error
from clipvid.runtime.optional import require
from clipvid.training.hooks import Logger

FLUSH_EVERY = 5.0
"""Seconds after which curves are on the disk, where TensorBoard sees them."""


class TensorBoardLogger:
    """Logger that writes TensorBoard's event files; raises MissingExtraError if tensorboard is not installed.

    The writer of torch and tensorboard is not used: its thread prints a traceback for a full disk.
    """

    def __init__(self, folder: str | Path) -> None:
        reason = {"extra": "train", "why": "writing curves for TensorBoard"}
        require("tensorboard", **reason)
        self._event: Any = require("tensorboard.compat.proto.event_pb2", **reason).Event
        self._summary: Any = require("tensorboard.compat.proto.summary_pb2", **reason).Summary
        record_writer: Any = require("tensorboard.summary.writer.record_writer", **reason)
        self._writer: Any = None
        self._last_flush = time.monotonic()
        self.path = Path(
            folder, f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{uuid.uuid4().hex[:12]}"
        )
        with self._warned():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = record_writer.RecordWriter(open(self.path, "xb"))  # noqa: SIM115  # until `close`
        self._write(file_version="brain.Event:2")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write each metric as a scalar at this step."""
        values = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._write(step=step, summary=self._summary(value=values))

    def _write(self, **content: Any) -> None:
        if self._writer is None:
            return
        with self._warned():
            self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
            if time.monotonic() - self._last_flush > FLUSH_EVERY:
                self._writer.flush()
                self._last_flush = time.monotonic()

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        if self._writer is not None:
            with self._warned():
                self._writer.close()
            self._writer = None

    @contextmanager
    def _warned(self) -> Iterator[None]:
        """Turn an OSError of the block into a warning, and write nothing from then on."""
        try:
            yield
        except OSError as error:
            if self._writer is not None:
                with suppress(OSError):  # what is buffered cannot be written either
                    self._writer.close()
            self._writer = None
            error.filename = error.filename or str(self.path)
            warnings.warn(
                f"{describe_os_error(error)}; training goes on without curves for TensorBoard",
                ClipvidWarning,
                stacklevel=4,
            )


class NoLogger:
    """Logger that writes nothing."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Ignore the metrics."""


@contextmanager
def open_logger(logger: Logger | None, folder: Path | None) -> Iterator[Logger]:
    """Yield the logger and close it after the block; without one, TensorBoard's in `folder`, if it is installed."""
    if logger is None:
        logger = _default_logger(folder)
    try:
        yield logger
    finally:
        close = getattr(logger, "close", None)
        if close is not None:
            close()


def _default_logger(folder: Path | None) -> Logger:
    if folder is None:
        return NoLogger()
    try:
        return TensorBoardLogger(folder)
    except MissingExtraError:
        return NoLogger()  # history.json has the losses and scores too
