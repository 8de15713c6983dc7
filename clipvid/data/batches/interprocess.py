"""A VideoError that survives the way from a loader's worker process to the main process.

Contract: a VideoError raised in a worker arrives with the same path, reason and backend. Knows nothing of decoding.
"""

from __future__ import annotations

import json
from typing import Any

from clipvid.errors import VideoError


class WorkerVideoError(VideoError):
    """A VideoError that carries its fields through torch's loader as text.

    torch re-raises a worker's exception by calling its type with the printed traceback, and falls back to RuntimeError
    for types that need more arguments. The fields are therefore appended to the message as JSON and parsed from it.
    """

    MARK = " [clipvid] "

    def __init__(self, text: str) -> None:
        fields, _ = json.JSONDecoder().raw_decode(text.rpartition(self.MARK)[2])
        super().__init__(fields["path"], fields["reason"], backend=fields["backend"])
        if "Original Traceback" not in text:  # in the worker, whose printed message the main process parses
            self.args: tuple[Any, ...] = (text,)

    @classmethod
    def printed(cls, error: VideoError) -> str:
        """Return the message of `error` with its fields as JSON behind it."""
        fields = {"path": str(error.path), "reason": error.reason, "backend": error.backend}
        return f"{error}{cls.MARK}{json.dumps(fields)}"
