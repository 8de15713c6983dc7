"""Errors that clipvid raises on purpose, in addition to ValueError for a wrong argument.

Contract: the message gives the value, what is allowed and what to do next. All errors can be pickled, so a loader
worker can return one to the main process as a value. Imports nothing of clipvid.
"""

from __future__ import annotations

from pathlib import Path


class ClipvidError(Exception):
    """Base of all errors below; the command line prints the message and exits with 1."""


class VideoError(ClipvidError):
    """A video that cannot be read, or not faithfully; names the file, the decoder and the cause."""

    def __init__(self, path: str | Path, reason: str, *, backend: str | None = None) -> None:
        self.path: Path = Path(path)
        self.reason = reason
        self.backend = backend
        super().__init__(f"{path}: {reason}" + (f" (decoder {backend})" if backend else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return _video_error, (str(self.path), self.reason, self.backend)


def _video_error(path: str, reason: str, backend: str | None) -> VideoError:
    return VideoError(path, reason, backend=backend)


class DataError(ClipvidError):
    """An annotation file or data set that violates its format; names file and line."""


class NoVideoError(DataError, ValueError):
    """A data set none of whose videos can be read; names the first with its cause."""


class BackboneError(ClipvidError):
    """A base model that cannot serve as backbone; names the tower and what is missing."""


class CheckpointError(ClipvidError):
    """A saved model, checkpoint or index that is incompatible with the object it is loaded into."""


class CacheError(ClipvidError):
    """A tap cache that cannot be written, or whose files have changed since; names folder or file."""


class WorkerError(ClipvidError):
    """A worker process that did not start or ended early; names the cause and the next step."""


class ClipvidWarning(UserWarning):
    """A warning about something likely to cost the user time; the command line prints it as a note."""


class UsageError(ClipvidError, ValueError):
    """A wrong command line; the message names the option, and the command line exits with 2."""


class MissingExtraError(ClipvidError, ImportError):
    """An optional dependency that is not installed; the message has the command that installs it."""
