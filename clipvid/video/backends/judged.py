"""Checked decoders: files are read by another decoder, and refused if its frames would differ from PyAV's.

Contract: the same as pyav.py. The first read of a file is slower: its packets are listed, and its first frame is
decoded with PyAV as well. The verdict is remembered (verdicts.py), so later reads of the same file call the decoder
directly. Knows nothing of any decoder but PyAV.
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
from clipvid.video.backends.limits import check_clip
from clipvid.video.backends.verdicts import Verdict, identity, memory
from clipvid.video.container.demux import Listing
from clipvid.video.container.demux import listing as listing_of


class Judged:
    """Provide `probe` and `read` of a decoder whose output is checked against PyAV.

    Args:
        backend: name of the decoder.
        objection: function that names the kind of file the decoder reads wrongly, or returns None for a listing
            of a file that it reads correctly.
        opens: function that opens a path at the given video stream; the length of the reader is its frame count.
        picture: function that returns one frame of a reader, upright.
    """

    def __init__(
        self,
        backend: str,
        *,
        objection: Callable[[Listing], str | None],
        opens: Callable[[str | Path, int], Any],
        picture: Callable[[str | Path, Any, int], UInt8[Tensor, "3 h w"]],
    ) -> None:
        self.backend = backend
        self._objection = objection
        self._opens = opens
        self._picture = picture

    def probe(self, path: str | Path) -> VideoInfo:
        """Return the metadata measured by PyAV; raise VideoError if the decoder disagrees with it."""
        info = pyav.probe(path)
        _, reader = self._accepted(path)
        if len(reader) != info.frames:
            raise VideoError(path, self._counts(len(reader), info.frames), backend=self.backend)
        return info

    def read(self, path: str | Path, choice: Choice, *, fit: Fit | None = None) -> UInt8[Tensor, "t 3 h w"]:
        """Return the selected frames, upright, as uint8 (T, 3, H, W)."""
        clock = Clock(path, choice.time_limit, backend=self.backend)
        verdict, reader = self._accepted(path)
        indices = choice.of(verdict.shown)
        in_range(indices, path=path, frames=verdict.frames, backend=self.backend)
        pictures = {}
        for index in sorted(set(indices)):
            clock.check()
            picture = self._picture(path, reader, index)
            pictures[index] = picture if fit is None else fit(picture)
            check_clip(pictures[index], frames=len(indices), path=path, backend=self.backend)
        return stacked(pictures, indices, path=path, backend=self.backend)

    def _accepted(self, path: str | Path) -> tuple[Verdict, Any]:
        """Return the verdict on a file and its reader; raise VideoError if the decoder reads the file wrongly."""
        file = identity(path)
        verdict = None if file is None else memory().get(file, self.backend)
        if verdict is not None:
            self._refuse(path, verdict)
            reader = self._opens(path, verdict.stream)
            if (
                len(reader) == verdict.frames and identity(path) == file
            ):  # Otherwise the file changed before it was opened.
                return verdict, reader
        return self._probed(path)

    def _probed(self, path: str | Path) -> tuple[Verdict, Any]:
        """Compare the decoder with PyAV, remember the verdict, and return it with the reader."""
        file = identity(path)
        listing, reader = listing_of(path), None
        if objection := self._objection(listing):
            objection = f"{self.backend} does not read {objection}; use backend='pyav'"
        else:
            reader = self._opens(path, listing.stream)
            objection = self._difference(path, reader, listing)
        verdict = Verdict.of(listing.timeline.shown, stream=listing.stream, objection=objection)
        if file is not None and file == identity(path):
            memory().put(file, self.backend, verdict)
        self._refuse(path, verdict)
        return verdict, reader

    def _refuse(self, path: str | Path, verdict: Verdict) -> None:
        if verdict.objection is not None:
            raise VideoError(path, verdict.objection, backend=self.backend)

    def _difference(self, path: str | Path, reader: Any, listing: Listing) -> str | None:
        """Return the difference between an open file and PyAV's frames, or None."""
        if len(reader) != len(listing.times):
            return self._counts(len(reader), len(listing.times))
        if not pyav.same_first_frame(path, self._picture(path, reader, 0)):
            return f"{self.backend} shows another first frame than PyAV; use backend='pyav'"
        return None

    def _counts(self, count: int, expected: int) -> str:
        return f"{self.backend} finds {count} frames, PyAV finds {expected}; use backend='pyav'"
