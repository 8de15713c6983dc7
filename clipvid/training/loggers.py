"""The default logger: training curves for TensorBoard. The only file that imports tensorboard.

Contract: metrics and a step in, event files in a folder out. Knows nothing of what the metrics mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipvid.errors import MissingExtraError
from clipvid.runtime.optional import require
from clipvid.training.hooks import Logger


class TensorBoardLogger:
    """Logger that writes TensorBoard's event files; raises MissingExtraError if tensorboard is not installed."""

    def __init__(self, folder: str | Path) -> None:
        reason = {"extra": "train", "why": "writing curves for TensorBoard"}
        require("tensorboard", **reason)
        self.writer: Any = require("torch.utils.tensorboard", **reason).SummaryWriter(str(folder))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write each metric as a scalar at this step."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered, and close the files."""
        self.writer.close()


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
