"""Errors on their way out of a loader's worker process, which torch rebuilds from printed text.

Contract: a VideoError in, one with the same path, reason and backend on the other side. Knows nothing of decoding.
"""

from __future__ import annotations

import json

from clipvid.errors import VideoError


class WorkerVideoError(VideoError):
    """A VideoError on its way out of a loader worker, which must arrive as a VideoError.

    torch rebuilds a worker's exception by calling its type with the printed traceback, and makes a RuntimeError of
    types that take more. So the facts travel in the printed text, and this type finds them there.
    """

    MARK = " [clipvid] "

    def __init__(self, text: str) -> None:
        facts, _ = json.JSONDecoder().raw_decode(text.rpartition(self.MARK)[2])
        super().__init__(facts["path"], facts["reason"], backend=facts["backend"])
        if "Original Traceback" not in text:  # still in the worker: what is printed here is what will be parsed
            self.args = (text,)

    @classmethod
    def printed(cls, error: VideoError) -> str:
        facts = {"path": str(error.path), "reason": error.reason, "backend": error.backend}
        return f"{error}{cls.MARK}{json.dumps(facts)}"
