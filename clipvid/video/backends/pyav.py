"""The default decoder, PyAV.

Contract: frame k is always the k-th frame of a full sequential decode. The number of frames is first read from the
packets (container/demux.py), which takes milliseconds. A file is decoded from its start, unless the requested frames
can be reached from key frames (container/seek.py) and are decoded with the expected time stamps; only requested frames
are converted to RGB. If the decoded frames disagree with the packets (hidden VP9 frames, broken time stamps), the
frames are selected again by the decoded ones. PyAV silences FFmpeg's log by default, so no global state is touched.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.video.backends.base import (
    Choice,
    Clock,
    Fit,
    Keep,
    Shown,
    VideoInfo,
    in_range,
    stacked,
)
from clipvid.video.backends.limits import check_clip, check_pixels
from clipvid.video.container.colour import Converter, orientation
from clipvid.video.container.demux import BACKEND, announced, damaged, listing, opened
from clipvid.video.container.seek import Jump
from clipvid.video.container.times import Follower, FrameTimes, Timeline

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


def probe(path: str | Path) -> VideoInfo:
    """Return the metadata of a video, measured by decoding all of it without conversion to RGB."""
    timeline = listing(path).timeline  # raises VideoError for truncated files
    stamps: list[int | None] = []
    durations: list[int] = []
    frame = None
    with opened(path) as (container, stream):
        rate, codec = float(stream.average_rate or 0), stream.codec_context.codec.canonical_name
        for frame in _frames(path, container, stream):
            stamps.append(frame.pts)
            durations.append(frame.duration or 0)
    assert frame is not None
    shown = timeline.of(stamps, durations)
    times = shown.times
    if (
        times[-1] and not 0.8 < rate * times[-1] / (len(times) - 1) < 1.25
    ):  # Headers may declare 1000 frames per second.
        rate = (len(times) - 1) / times[-1]
    turned = orientation(frame)[0]
    return VideoInfo(
        path=Path(path),
        frames=len(times),
        fps=rate,
        duration=shown.end,
        height=frame.width if turned else frame.height,
        width=frame.height if turned else frame.width,
        codec=codec,
        rotation=round(frame.rotation),
        times=times,
    )


def read(path: str | Path, choice: Choice, *, fit: Fit | None = None) -> UInt8[Tensor, "t 3 h w"]:
    """Return the selected frames, upright, as uint8 (T, 3, H, W)."""
    clock = Clock(path, choice.time_limit, backend=BACKEND)
    packets_listing = listing(path, clock)
    timeline = packets_listing.timeline
    indices = choice.of(timeline.shown)
    jumps = None if packets_listing.ladder is None else packets_listing.ladder.jumps(indices)
    if (
        jumps is not None
        and (pictures_by_index := _decode_from(path, jumps, indices, fit=fit, clock=clock)) is not None
    ):
        return stacked(pictures_by_index, indices, path=path, backend=BACKEND)
    if choice.indices is not None:
        decoded = _decode(path, indices, timeline, last=max(indices), fit=fit, clock=clock)
        if missing := [i for i in indices if i not in decoded.pictures]:
            in_range(missing, path=path, frames=len(decoded.stamps), backend=BACKEND)
        return stacked(decoded.pictures, indices, path=path, backend=BACKEND)
    decoded = _decode(path, indices, timeline, until=choice.until, fit=fit, clock=clock)
    expected = bisect_left(timeline.shown.times, choice.until)
    shown = timeline.of(decoded.stamps, decoded.durations) if decoded.reached_end else None
    promised = decoded.agrees or shown is timeline.shown
    if len(decoded.stamps) != expected or (choice.by_time and not promised):
        indices = choice.of(shown or _measured(path))
        decoded = _decode(path, indices, timeline, last=max(indices), fit=fit, clock=clock)
    in_range(indices, path=path, frames=len(decoded.stamps), backend=BACKEND)
    return stacked(decoded.pictures, indices, path=path, backend=BACKEND)


def stream(path: str | Path, keep: Keep, *, fit: Fit | None = None) -> Iterator[Shown]:
    """Yield the frames selected by `keep`, holding one at a time in memory; the file is decoded to its end."""
    time_of = Follower(listing(path).timeline)  # raises VideoError for truncated files
    convert = Converter()
    with opened(path) as (container, stream):
        for index, frame in enumerate(_frames(path, container, stream)):
            time = time_of(frame.pts)
            if keep(index, time):
                picture = convert(frame)
                yield Shown(index, time, picture if fit is None else fit(picture))


def same_first_frame(path: str | Path, picture: UInt8[Tensor, "3 h w"]) -> bool:
    """Return True if `picture` is this decoder's first frame: same size and, up to rounding, the same colours."""
    clock = Clock(path, None, backend=BACKEND)
    ours = _decode(path, [0], None, last=0, fit=None, clock=clock).pictures[0]
    if ours.shape != picture.shape:
        return False
    rows = zip(ours.split(256, dim=1), picture.split(256, dim=1), strict=True)  # bounds the memory of the difference
    return sum(float((a.float() - b.float()).abs().sum(dtype=torch.float64)) for a, b in rows) <= ours.numel()


def _frames(path: str | Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield every frame in presentation order; raise VideoError at the first damaged frame, or if there is no frame."""
    import av.error

    done = 0
    try:
        for frame in container.decode(stream):
            check_pixels(frame.width, frame.height, path=path, backend=BACKEND)
            if frame.is_corrupt:
                raise VideoError(path, f"damaged: frame {done} is corrupt", backend=BACKEND)
            yield frame
            done += 1
    except av.error.FFmpegError as error:
        raise damaged(path, error, done=f"{done} of {announced(stream)} frames decode") from error
    if not done:
        raise VideoError(path, "no frames: nothing in its video stream decodes", backend=BACKEND)


class _Decoded(NamedTuple):
    """Frames decoded from the start of a file."""

    pictures: dict[int, Tensor]
    stamps: list[int | None]
    durations: list[int]
    agrees: bool
    """True if every frame has the time stamp that the packets promise."""
    reached_end: bool


def _decode(
    path: str | Path,
    indices: list[int],
    timeline: Timeline | None,
    *,
    last: int | None = None,
    until: float = math.inf,
    fit: Fit | None,
    clock: Clock,
) -> _Decoded:
    """Return the pictures of `indices`, and the stamps of all frames up to `last` that begin before `until`."""
    needed, convert = set(indices), Converter()
    decoded = _Decoded({}, [], [], agrees=False, reached_end=False)
    time_of = None if timeline is None else Follower(timeline)
    with opened(path) as (container, stream):
        frames = _frames(path, container, stream)
        for index, frame in enumerate(itertools.islice(frames, None if last is None else last + 1)):
            clock.check()
            agreed = time_of is not None and time_of.agrees
            if time_of is not None and time_of(frame.pts) >= until:
                return decoded._replace(agrees=agreed)
            decoded.stamps.append(frame.pts)
            decoded.durations.append(frame.duration or 0)
            if index in needed:
                picture = convert(frame)
                decoded.pictures[index] = picture if fit is None else fit(picture)
                check_clip(decoded.pictures[index], frames=len(indices), path=path, backend=BACKEND)
    return decoded._replace(agrees=time_of is not None and time_of.agrees, reached_end=last is None)


def _measured(path: str | Path) -> FrameTimes:
    info = probe(path)
    return FrameTimes(info.times, info.duration)


def _decode_from(
    path: str | Path, jumps: Sequence[Jump], indices: Sequence[int], *, fit: Fit | None, clock: Clock
) -> dict[int, Tensor] | None:
    """Return the pictures of `indices`, decoded from key frames; None if a frame disagrees with the packets."""
    import av.error

    needed, pictures, convert = set(indices), {}, Converter()
    with opened(path) as (container, stream):
        for jump in jumps:
            try:
                container.seek(jump.stamps[0], stream=stream)
                index = jump.first
                for frame in _after(container, stream, jump.stamps[0]):
                    clock.check()
                    if frame.pts != jump.stamps[index - jump.first] or frame.is_corrupt:
                        return None
                    if index in needed:
                        check_pixels(frame.width, frame.height, path=path, backend=BACKEND)
                        picture = convert(frame)
                        pictures[index] = picture if fit is None else fit(picture)
                        check_clip(pictures[index], frames=len(indices), path=path, backend=BACKEND)
                    index += 1
                    if index == jump.first + len(jump.stamps):
                        break
                else:
                    return None
            except av.error.FFmpegError:
                return None
    return pictures


def _after(container: InputContainer, stream: VideoStream, stamp: int) -> Iterator[VideoFrame]:
    """Yield the frames from time stamp `stamp` on; none unless the next packet has that stamp."""
    for number, packet in enumerate(container.demux(stream)):
        if not number and packet.pts != stamp:
            return
        for frame in packet.decode():
            if (
                frame.pts is None or frame.pts >= stamp
            ):  # Frames stored after the key frame but shown before it are skipped.
                yield frame
