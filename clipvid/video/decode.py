"""Reading videos: facts, chosen frames, clips. One door for three decoders, and for pictures.

Contract: path in, uint8 RGB (T, 3, H, W) out, upright, in presentation order, exactly the frames asked for. A picture
is a video of one frame, a folder of numbered pictures one of as many; a picture under a video's name is none of both.
Every failure of a file is a VideoError that names it and the cause; never a substitute frame. Knows nothing of models.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar

from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.video.backends import decord, images, pyav, torchcodec
from clipvid.video.backends.base import PIXEL_LIMIT, Choice, Fit, VideoInfo, decode_in_one_thread
from clipvid.video.backends.judged import Judged
from clipvid.video.sampling import sample

__all__ = [
    "BACKENDS",
    "PICTURE_SUFFIXES",
    "PIXEL_LIMIT",
    "VideoInfo",
    "decode_in_one_thread",
    "pictures_in",
    "probe",
    "read",
    "read_part",
    "read_video",
    "stream",
]

Rest = ParamSpec("Rest")
Result = TypeVar("Result")
_DECODERS: dict[str, Any] = {
    "pyav": pyav,
    **{
        module.BACKEND: Judged(
            module.BACKEND, objection=module.objection, opens=module.open_reader, picture=module.picture
        )
        for module in (decord, torchcodec)
    },
}
"""Decoders by name; all but PyAV are checked against it."""
BACKENDS = tuple(_DECODERS)
PICTURE_SUFFIXES = images.SUFFIXES
pictures_in = images.pictures_in


def probe(path: str | Path, *, backend: str = "pyav") -> VideoInfo:
    """The facts of a video, measured by decoding it once (fast: no frame becomes RGB).

    Headers cannot be trusted for this: they count frames that are cut away or hidden, or none at all. The other
    decoders agree with PyAV on these facts or refuse the file.
    """
    return _called(_decoder(backend, path).probe, path)


def read(
    path: str | Path,
    indices: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    *,
    backend: str = "pyav",
    fit: Fit | None = None,
    time_limit: int | float | None = None,
) -> UInt8[Tensor, "t 3 h w"]:
    """Frames of a video as uint8 RGB; all of them when `indices` is None.

    Args:
        indices: frames counted from 0, in any order, repeats allowed; or a function that gets the number of frames
            and returns them (it is called again if that number turns out to differ from what the packets promised).
        fit: applied to each frame as soon as it is decoded, so that huge frames or changing sizes stay bounded.
        time_limit: seconds after which a video that is still being decoded is an error.

    >>> read("walk.mp4", [0, 5]).shape                                                     # doctest: +SKIP
    torch.Size([2, 3, 256, 340])
    """
    if callable(indices):
        choose = indices
        choice = Choice(rule=lambda times: choose(len(times)))
    elif indices is None:
        choice = Choice()
    else:
        choice = Choice(indices=_counted(indices))
    choice = replace(choice, time_limit=_seconds(time_limit))
    return _called(_decoder(backend, path).read, path, choice, fit=fit)


def read_video(
    path: str | Path,
    frames: int = 12,
    *,
    sampler: str = "uniform",
    rng: Random | None = None,
    start: int | float | None = None,
    end: int | float | None = None,
    backend: str = "pyav",
    fit: Fit | None = None,
    time_limit: int | float | None = None,
) -> UInt8[Tensor, "t 3 h w"]:
    """A clip of `frames` frames of a video, or of its part from `start` to `end`.

    Args:
        sampler: name of a rule in `sampling.SAMPLERS`; "linspace" gives fewer frames for a shorter video.
        rng: makes the sampler random, where it can be.
        start, end: seconds relative to the first frame. Frames that begin in [start, end) count; a part too short
            for any gets the one on screen at `start`. An end after the last frame is no error, a start after it is.
        time_limit: as in `read`.
    """
    sample(sampler, 1, frames)  # a wrong name or number is an error before any file is opened
    choose = partial(sample, sampler, frames=frames, rng=rng)
    return read_part(path, choose, start=start, end=end, backend=backend, fit=fit, time_limit=time_limit)


def read_part(
    path: str | Path,
    choose: Callable[[int], Sequence[int]],
    *,
    start: int | float | None = None,
    end: int | float | None = None,
    backend: str = "pyav",
    fit: Fit | None = None,
    time_limit: int | float | None = None,
) -> UInt8[Tensor, "t 3 h w"]:
    """Frames of a video, or of its part from `start` to `end` (as in `read_video`), by a rule of your own.

    `choose` gets the number of frames of the part and returns which of them, in any order, repeats allowed. However
    many times a frame is named, it is decoded and fitted once.
    """
    _check_part(start, end)

    def rule(times: Sequence[float]) -> list[int]:
        part = _part(times, start or 0.0, math.inf if end is None else end)
        if not part:
            raise VideoError(path, f"start={start} s is after its last frame ({times[-1]:.2f} s)", backend=backend)
        return [part[i] for i in choose(len(part))]

    choice = Choice(
        rule=rule,
        by_time=start is not None or end is not None,
        until=math.inf if end is None else float(end),
        time_limit=_seconds(time_limit),
    )
    return _called(_decoder(backend, path).read, path, choice, fit=fit)


def stream(
    path: str | Path, *, every: int = 1, fps: int | float | None = None, fit: Fit | None = None
) -> Iterator[tuple[int, float | None, UInt8[Tensor, "3 h w"]]]:
    """The frames of a video of any length one by one, in constant memory: number, seconds from the first, picture.

    Wrong arguments are errors at once, those of the file when its frames are asked for.

    Args:
        every: take every so manyth frame.
        fps: or so many a second, whatever the video's own rate: of each 1/fps seconds the first frame. A video with
            fewer gives all it has.
        fit: applied to each frame as soon as it is decoded.

    Raises VideoError for a file that cannot be read to its end; frames before the damage were given by then. The time
    is None for a folder of pictures, which takes no `fps`.
    """
    if every < 1 or (fps is not None and not 0 < fps < math.inf):
        raise ValueError(f"every starts at 1 and fps is above 0, got every={every} and fps={fps}")
    if every > 1 and fps is not None:
        raise ValueError(f"take every={every} frames or fps={fps} a second, not both")
    return _stream(path, every, fps, fit)


def _stream(
    path: str | Path, every: int, fps: int | float | None, fit: Fit | None
) -> Iterator[tuple[int, float | None, UInt8[Tensor, "3 h w"]]]:
    ticks = 0

    def keep(index: int, time: float | None) -> bool:
        nonlocal ticks
        if fps is None:
            return index % every == 0
        if time is None:
            raise VideoError(path, f"pictures have no times, so fps={fps} cannot be taken; give every=")
        if time * fps < ticks - 1e-6:
            return False
        ticks = math.floor(time * fps + 1e-6) + 1
        return True

    decoder = images if images.are(path) else pyav
    try:
        yield from decoder.stream(path, keep, fit=fit)
    except VideoError as error:
        raise _alone(error) from error.__cause__


def _called(decoder: Callable[Rest, Result], *args: Rest.args, **named: Rest.kwargs) -> Result:
    """Call the decoder, and free it as soon as an error leaves it.

    The traceback of an error holds the open decoder and its threads. A batch job that keeps its errors would keep
    all of them, and a loader worker forked meanwhile would wait for threads that do not exist on its side.
    """
    try:
        return decoder(*args, **named)
    except VideoError as error:
        raise _alone(error) from error.__cause__


def _alone(error: VideoError) -> VideoError:
    for link in (error, error.__cause__, error.__context__):
        if link is not None:
            link.__traceback__ = None
    return error


def _part(times: Sequence[float], start: int | float, end: int | float) -> range:
    """Frames that begin in [start, end), or else the one on screen at `start`; empty if the video is over by then."""
    part = range(bisect_left(times, start), bisect_left(times, end))
    if part:
        return part
    shown = bisect_right(times, start) - 1
    lasts = times[-1] / max(1, len(times) - 1)  # how long the last frame stays, as far as the others tell
    return range(shown, shown + 1) if shown < len(times) - 1 or start < times[-1] + lasts else range(0)


def _check_part(start: int | float | None, end: int | float | None) -> None:
    if start is not None and not 0 <= start < math.inf:
        raise ValueError(f"start is in seconds from the first frame, 0 or more, got {start}")
    if end is not None and not (start or 0) < end:
        raise ValueError(f"end is in seconds and must come after start={start or 0}, got {end}")


def _seconds(time_limit: int | float | None) -> float | None:
    if time_limit is not None and not 0 < time_limit < math.inf:
        raise ValueError(f"time_limit is in seconds and above 0, or None, got {time_limit}")
    return None if time_limit is None else float(time_limit)


def _counted(indices: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(operator.index(i) for i in indices)
    if not chosen:
        raise ValueError("indices is empty; pass one frame or more, or None for all")
    if min(chosen) < 0:
        raise ValueError(f"indices count from 0, got {min(chosen)}; pass a function of the number of frames instead")
    return chosen


def _decoder(backend: str, path: str | Path) -> Any:
    if backend not in _DECODERS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    return images if images.are(path) else _DECODERS[backend]
