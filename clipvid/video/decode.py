"""Reading videos: metadata, selected frames, clips. The single interface to three decoders and to pictures.

Contract: path in, uint8 RGB (T, 3, H, W) out, upright, in presentation order, exactly the requested frames. A picture
is a video of one frame, a folder of numbered pictures a video of that many; a picture with a video's file extension is
an error. Every failure of a file is a VideoError that names the file and the cause; no frame is ever substituted. Knows
nothing of models.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar

from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.registry import DECODERS
from clipvid.video.backends import images
from clipvid.video.backends.base import Choice, Fit, VideoInfo, decode_in_one_thread
from clipvid.video.backends.images import pictures_in
from clipvid.video.backends.limits import PIXEL_LIMIT
from clipvid.video.container.times import FrameTimes
from clipvid.video.inputs import VideoSource, is_source, local_file
from clipvid.video.sampling import sample

__all__ = [
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
PICTURE_SUFFIXES = images.SUFFIXES
"""File extensions of pictures, in lower case."""


def probe(path: str | Path, *, backend: str = "pyav") -> VideoInfo:
    """Return the metadata of a video, measured by decoding it once (fast: no frame is converted to RGB).

    Headers are not used because they may count frames that are cut away or hidden, or none at all. The other decoders
    agree with PyAV on the metadata or refuse the file. Raises VideoError for a file that cannot be read.
    """
    return _call(_decoder(backend, path).probe, path)


def read(
    path: str | Path,
    indices: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    *,
    backend: str = "pyav",
    fit: Fit | None = None,
    time_limit: int | float | None = None,
) -> UInt8[Tensor, "t 3 h w"]:
    """Return frames of a video as uint8 RGB; all of them when `indices` is None.

    Args:
        indices: frames counted from 0, in any order, repeats allowed; or a function that takes the number of frames
            and returns them. It is called again if the decoded number differs from the number of packets.
        fit: function applied to each frame as soon as it is decoded, which bounds the memory of large frames and gives
            all frames one size.
        time_limit: seconds of decoding after which VideoError is raised.

    Raises VideoError for a file that cannot be read or lacks a requested frame, and for frames that take more memory
    than the limits allow (docs/videos.md); ValueError for wrong arguments.

    >>> read("walk.mp4", [0, 5]).shape                                                     # doctest: +SKIP
    torch.Size([2, 3, 256, 340])
    """
    if callable(indices):
        select = indices
        choice = Choice(rule=lambda shown: select(len(shown.times)))
    elif indices is None:
        choice = Choice()
    else:
        choice = Choice(indices=_checked_indices(indices))
    choice = replace(choice, time_limit=_checked_time_limit(time_limit))
    return _call(_decoder(backend, path).read, path, choice, fit=fit)


def read_video(
    path: VideoSource,
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
    """Return a clip of `frames` frames of a video, or of its part from `start` to `end`.

    Args:
        path: a path or file:// URL, the bytes of a file, or an open binary file, read from its start if it can seek.
        sampler: key of `sampling.SAMPLERS`; "linspace" returns fewer frames for a shorter video.
        rng: randomness of the sampler; None, or a sampler without random positions, is deterministic.
        start, end: seconds relative to the first frame. The part has all frames that begin in [start, end), or the one
            on screen at `start` if there are none. An end after the last frame is allowed, a start after it is not.
        time_limit: as in `read`.

    Raises VideoError for a file that cannot be read or a start after its last frame, ValueError for wrong arguments.
    """
    if not is_source(path):
        must = "a path, the bytes of a file or a binary file object"
        raise ValueError(f"path must be {must}, got {path!r:.80}; arrays are videos already")
    sample(sampler, 1, frames)  # raises for a wrong name or number before any file is opened
    choose = partial(sample, sampler, frames=frames, rng=rng)
    with local_file(path) as file:
        return read_part(file, choose, start=start, end=end, backend=backend, fit=fit, time_limit=time_limit)


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
    """Return frames of a video, or of its part from `start` to `end` (as in `read_video`), selected by a function.

    `choose` takes the number of frames of the part and returns indices in any order, repeats allowed; a repeated frame
    is decoded and fitted once. Raises as `read_video`.
    """
    _check_part(start, end)

    def rule(shown: FrameTimes) -> list[int]:
        part = shown.between(start or 0.0, math.inf if end is None else end)
        if not part:
            reason = f"start={start} s is after its last frame ({shown.times[-1]:.2f} s)"
            raise VideoError(path, reason, backend=backend)
        return [part[i] for i in choose(len(part))]

    choice = Choice(
        rule=rule,
        by_time=start is not None or end is not None,
        until=math.inf if end is None else float(end),
        time_limit=_checked_time_limit(time_limit),
    )
    return _call(_decoder(backend, path).read, path, choice, fit=fit)


def stream(
    path: str | Path, *, every: int = 1, fps: int | float | None = None, fit: Fit | None = None
) -> Iterator[tuple[int, float | None, UInt8[Tensor, "3 h w"]]]:
    """Yield the frames of a video of any length in constant memory: index, seconds from the first frame, picture.

    The time is None for a folder of pictures, which does not support `fps`.

    Args:
        every: step between frames: every n-th is returned.
        fps: alternative to `every`, in frames per second: the first frame of each interval of 1/fps seconds, at most
            all frames of the video.
        fit: function applied to each frame as soon as it is decoded.

    Raises ValueError for wrong arguments at the call, and VideoError during iteration for a file that cannot be read to
    its end, after the frames before the damage.
    """
    if every < 1 or (fps is not None and not 0 < fps < math.inf):
        raise ValueError(
            f"every must be an integer >= 1 and fps > 0, got every={every} and fps={fps}; raise the one that is too low"
        )
    if every > 1 and fps is not None:
        raise ValueError(f"got every={every} and fps={fps}; pass one of them, not both")
    return _stream(path, every, fps, fit)


def _stream(
    path: str | Path, every: int, fps: int | float | None, fit: Fit | None
) -> Iterator[tuple[int, float | None, UInt8[Tensor, "3 h w"]]]:
    next_tick = 0

    def selected(index: int, time: float | None) -> bool:
        nonlocal next_tick
        if fps is None:
            return index % every == 0
        if time is None:
            raise VideoError(path, f"pictures have no times, so fps={fps} cannot be applied; pass every instead")
        if time * fps < next_tick - 1e-6:
            return False
        next_tick = math.floor(time * fps + 1e-6) + 1
        return True

    decoder = _decoder("pyav", path)
    try:
        yield from decoder.stream(path, selected, fit=fit)
    except VideoError as error:
        raise _without_tracebacks(error) from error.__cause__


def _call(decoder: Callable[Rest, Result], *args: Rest.args, **options: Rest.kwargs) -> Result:
    """Call a function of a decoder, and release the decoder if it raises.

    The traceback of an error references the open decoder and its threads. A batch job that stores its errors would
    hold all of them open, and a loader worker forked meanwhile would wait for threads that it does not have.
    """
    try:
        return decoder(*args, **options)
    except VideoError as error:
        raise _without_tracebacks(error) from error.__cause__


def _without_tracebacks(error: VideoError) -> VideoError:
    """Remove the tracebacks of an error, its cause and its context."""
    for link in (error, error.__cause__, error.__context__):
        if link is not None:
            link.__traceback__ = None
    return error


def _check_part(start: int | float | None, end: int | float | None) -> None:
    if start is not None and not 0 <= start < math.inf:
        raise ValueError(
            f"start must be a number of seconds >= 0, counted from the first frame, got {start}; "
            "0 is the start of the video"
        )
    if end is not None and not (start or 0) < end:
        raise ValueError(f"end must be a number of seconds above start={start or 0}, got {end}; None reads to the end")


def _checked_time_limit(time_limit: int | float | None) -> float | None:
    is_number = isinstance(time_limit, int | float)
    if time_limit is not None and not (is_number and 0 < time_limit < math.inf):
        raise ValueError(f"time_limit must be a number of seconds > 0, or None, got {time_limit!r}; None sets no limit")
    return None if time_limit is None else float(time_limit)


def _checked_indices(indices: Sequence[int]) -> tuple[int, ...]:
    integers = tuple(operator.index(i) for i in indices)
    if not integers:
        raise ValueError("indices must not be empty; pass one frame or more, or None for all")
    if min(integers) < 0:
        raise ValueError(
            f"indices must be integers >= 0, got {min(integers)}; to count from the end, pass a function of the number "
            "of frames"
        )
    return integers


def _decoder(backend: str, path: str | Path) -> Any:
    decoder = DECODERS.lookup(backend)
    return images if images.handles(path) else decoder
