"""The measurement of one video file by a worker of the data set check, within a time limit.

Contract: a path and seconds in, a plain outcome out. Knows nothing of data sets.
"""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipvid.data.probing.content import Stamp, content_hash, stamp_of
from clipvid.errors import VideoError

DANGLING = "a link to a file that does not exist"
"""Error of a dangling link, which has no content."""


def probe_file(path: Path, limit: int | float) -> dict[str, Any]:
    """Decode one file in a worker process; return its metadata, or the reason why it cannot be read."""
    from clipvid.video.decode import probe

    outcome: dict[str, Any] = {"path": str(path), "stamp": None, "content": f"unread {path}"}
    if is_dangling(path):
        return {**outcome, "error": DANGLING}
    try:
        outcome |= {"stamp": stamp_of(path), "content": content_hash(path)}
        with _limited(limit):
            info = asdict(probe(path))
            return {**outcome, "info": {k: v for k, v in info.items() if k not in ("path", "times")}}
    except VideoError as error:
        return {**outcome, "error": error.reason}
    except OSError as error:
        return {**outcome, "error": f"cannot be read: {(error.strerror or 'unknown error').lower()}"}
    except _TookTooLongError:
        return {**outcome, "limit": limit, "error": f"took more than {limit:g} s to decode"}


class _TookTooLongError(BaseException):
    """Decoding exceeded its limit. Unlike TimeoutError this is no OSError, so no reader of files catches it."""


class _limited:  # noqa: N801  # lower case like other context managers
    """Context manager that raises _TookTooLongError after `seconds`; without effect on Windows, which has no timer."""

    def __init__(self, seconds: int | float) -> None:
        self.seconds = seconds if hasattr(signal, "setitimer") else 0.0

    def __enter__(self) -> None:
        if self.seconds:
            signal.signal(signal.SIGALRM, self._raise)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        if self.seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _raise(self, *_: object) -> None:
        raise _TookTooLongError


def is_dangling(path: Path) -> bool:
    """Return True for a link to a file that does not exist."""
    return path.is_symlink() and not path.exists()


def probe_stamp(path: Path) -> Stamp | None:
    """Return the stamp of a clip; None for one that is missing or whose attributes cannot be read."""
    try:
        return stamp_of(path)
    except OSError:
        return None
