"""The log of a data set check: the outcome of every file, appended as it is known, for a check that is interrupted.

Contract: outcomes in, lines of JSON with a hash out, and back. A line that was cut off or has changed is as if it had
not been written: its file is decoded again. Knows nothing of videos.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clipvid.data.probing.content import Stamp, content_hash
from clipvid.runtime.files import append_line, read_file
from clipvid.runtime.storage.manifest import hash_bytes


class _Info(msgspec.Struct):
    """Parts of a video's metadata that a report reads."""

    codec: str
    frames: int
    duration: float


class _Outcome(msgspec.Struct):
    """Content of a line."""

    path: str
    stamp: Stamp
    content: str
    error: str | None = None
    limit: float | None = None
    info: _Info | None = None

    def __post_init__(self) -> None:
        if (self.error is None) == (self.info is None):
            raise ValueError("an outcome has either an error or metadata")


class ProbeLog:
    """A file of outcomes; `outcomes` has those of earlier runs by path, and grows with `add`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, dict[str, Any]] = {}
        content = read_file(path) if path.exists() else b""
        self._start = b"" if content.endswith(b"\n") or not content else b"\n"  # after a line that was cut off
        for line in content.splitlines():
            if (outcome := _parsed(line)) is not None:
                self.outcomes[outcome["path"]] = outcome

    def add(self, outcome: dict[str, Any]) -> None:
        """Append one outcome."""
        line = json.dumps({**outcome, "check": _check(outcome)})
        append_line(self.path, self._start + f"{line}\n".encode())
        self._start = b""
        self.outcomes[outcome["path"]] = outcome

    def is_current(self, path: Path, stamp: Stamp | None, *, limit: int | float) -> bool:
        """Return True if the logged outcome is of the file's present content, and not of a shorter time limit.

        A file whose stamp has changed, or is of the last seconds, is hashed, which costs far less than decoding.
        """
        outcome = self.outcomes.get(str(path))
        if outcome is None or stamp is None or outcome["stamp"] is None or outcome.get("limit", limit) < limit:
            return False
        if tuple(outcome["stamp"]) == stamp and stamp.is_settled:
            return True
        try:
            is_same = outcome["content"] == content_hash(path)
        except OSError:
            return False
        if is_same and stamp.is_settled:
            self.add({**outcome, "stamp": list(stamp)})
        return is_same


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the outcome of a line, or None for a damaged one."""
    try:
        outcome = json.loads(line)
        check = outcome.pop("check")
        if check != _check(outcome):
            return None
        msgspec.convert(outcome, _Outcome)
        return outcome
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.MsgspecError):
        return None


def _check(outcome: Mapping[str, Any]) -> str:
    return hash_bytes(json.dumps(outcome, sort_keys=True).encode())[:16]
