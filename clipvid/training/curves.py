"""Training curves for TensorBoard. The only file that imports tensorboard.

Contract: scalars with name and step in, event files in a folder out. Knows nothing of what the values mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class Curves:
    """Context manager that yields a function to write one scalar (name, value, step); without a folder, a no-op."""

    def __init__(self, folder: Path | None) -> None:
        self.writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder))

    def __enter__(self) -> Callable[[str, float, int], None]:
        return self._write

    def _write(self, name: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
