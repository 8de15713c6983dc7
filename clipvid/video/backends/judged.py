"""DataConfig with a decoder that PyAV judges: the file is refused where its frames would differ from PyAV's.

Contract: as _pyav. The first read of a file costs a probe beside it: its packets are listed, and its first frame is
decoded with PyAV too. The verdict is remembered (_verdicts.py), so later reads of the same file go straight to the
decoder. Knows no decoder but PyAV.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.video.backends import pyav
from clipvid.video.backends.base import Choice, Clock, Fit, VideoInfo, in_range, stacked
from clipvid.video.backends.verdicts import Verdict, identity, memory
from clipvid.video.container.demux import Listing
from clipvid.video.container.demux import listing as listing_of


class Judged:
    """The `probe` and `read` of a decoder.

    Args:
        backend: name of the decoder.
        objection: names the kind of file that the decoder gets wrong, if a listing is of one.
        opens: opens a path at the given video stream; the reader has the number of frames as its length.
        picture: gives one frame of a reader, upright.
    """

    def __init__(
        self,
        backend: str,
        *,
        objection: Callable[[Listing], str | None],
        opens: Callable[[str | Path, int], Any],
        picture: Callable[[str | Path, Any, int], UInt8[Tensor, "3 h w"]],
    ) -> None:
        self.backend, self._objection, self._opens, self._picture = backend, objection, opens, picture

    def probe(self, path: str | Path) -> VideoInfo:
        """Return PyAV's facts, where the decoder agrees with them."""
        info = pyav.probe(path)
        _, reader = self._accepted(path)
        if len(reader) != info.frames:
            raise VideoError(path, self._counts(len(reader), info.frames), backend=self.backend)
        return info

    def read(self, path: str | Path, choice: Choice, *, fit: Fit | None = None) -> UInt8[Tensor, "t 3 h w"]:
        """Return the chosen frames, upright."""
        clock = Clock(path, choice.time_limit, backend=self.backend)
        verdict, reader = self._accepted(path)
        wanted = choice.of(verdict.times)
        in_range(wanted, path=path, frames=verdict.frames, backend=self.backend)
        pictures = {}
        for index in sorted(set(wanted)):
            clock.check()
            picture = self._picture(path, reader, index)
            pictures[index] = picture if fit is None else fit(picture)
        return stacked(pictures, wanted, path=path, backend=self.backend)

    def _accepted(self, path: str | Path) -> tuple[Verdict, Any]:
        """Return the verdict on a file that the decoder reads faithfully, and the open file; else VideoError."""
        file = identity(path)
        verdict = None if file is None else memory().get(file, self.backend)
        if verdict is not None:
            self._refuse(path, verdict)
            reader = self._opens(path, verdict.stream)
            if len(reader) == verdict.frames and identity(path) == file:  # else it changed before it was opened
                return verdict, reader
        return self._probed(path)

    def _probed(self, path: str | Path) -> tuple[Verdict, Any]:
        file = identity(path)
        listing, reader = listing_of(path), None
        if objection := self._objection(listing):
            objection = f"{self.backend} does not read {objection}; use backend='pyav'"
        else:
            reader = self._opens(path, listing.stream)
            objection = self._difference(path, reader, listing)
        verdict = Verdict.of(listing.times, stream=listing.stream, objection=objection)
        if file is not None and file == identity(path):
            memory().put(file, self.backend, verdict)
        self._refuse(path, verdict)
        return verdict, reader

    def _refuse(self, path: str | Path, verdict: Verdict) -> None:
        if verdict.objection is not None:
            raise VideoError(path, verdict.objection, backend=self.backend)

    def _difference(self, path: str | Path, reader: Any, listing: Listing) -> str | None:
        """Return what an open file shows differently from PyAV, if anything."""
        if len(reader) != len(listing.times):
            return self._counts(len(reader), len(listing.times))
        if not pyav.same_first_frame(path, self._picture(path, reader, 0)):
            return f"{self.backend} shows another first frame than PyAV; use backend='pyav'"
        return None

    def _counts(self, count: int, expected: int) -> str:
        return f"{self.backend} finds {count} frames where there are {expected}; use backend='pyav'"
