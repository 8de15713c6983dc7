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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    settled,
    stacked,
)
from clipvid.video.backends.limits import check_clip, check_pixels
from clipvid.video.container.colour import Converter, orientation
from clipvid.video.container.demux import BACKEND, announced, damaged, listing, opened, seconds
from clipvid.video.container.seek import Jump

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


def probe(path: str | Path) -> VideoInfo:
    """Return the metadata of a video, measured by decoding all of it without conversion to RGB."""
    listing(path)  # raises VideoError for truncated files
    stamps: list[float | None] = []
    frame, last = None, 0.0
    with opened(path) as (container, stream):
        rate, codec = float(stream.average_rate or 0), stream.codec_context.codec.canonical_name
        for frame in _frames(path, container, stream):
            stamps.append(seconds(frame.pts, frame.time_base))
            last = seconds(frame.duration, frame.time_base) or 0.0
    assert frame is not None
    times = settled(stamps, rate=rate or 25.0)
    if (
        times[-1] and not 0.8 < rate * times[-1] / (len(times) - 1) < 1.25
    ):  # Headers may declare 1000 frames per second.
        rate = (len(times) - 1) / times[-1]
    turned = orientation(frame)[0]
    return VideoInfo(
        path=Path(path),
        frames=len(times),
        fps=rate,
        duration=times[-1] + (last or (1 / rate if rate else 0.0)),
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
    expected_times = packets_listing.times
    indices = choice.of(expected_times)
    jumps = None if packets_listing.ladder is None else packets_listing.ladder.jumps(indices)
    if (
        jumps is not None
        and (pictures_by_index := _decode_from(path, jumps, indices, fit=fit, clock=clock)) is not None
    ):
        return stacked(pictures_by_index, indices, path=path, backend=BACKEND)
    if choice.indices is not None:
        pictures, times, _ = _decode(path, indices, last=max(indices), fit=fit, clock=clock)
        if missing := [i for i in indices if i not in pictures]:
            in_range(missing, path=path, frames=len(times), backend=BACKEND)
        return stacked(pictures, indices, path=path, backend=BACKEND)
    pictures, times, reached_end = _decode(path, indices, until=choice.until, fit=fit, clock=clock)
    expected = tuple(time for time in expected_times if time < choice.until)
    if len(times) != len(expected) or (choice.by_time and times != expected):
        indices = choice.of(times if reached_end else probe(path).times)
        pictures, times, _ = _decode(path, indices, last=max(indices), fit=fit, clock=clock)
    in_range(indices, path=path, frames=len(times), backend=BACKEND)
    return stacked(pictures, indices, path=path, backend=BACKEND)


def stream(path: str | Path, keep: Keep, *, fit: Fit | None = None) -> Iterator[Shown]:
    """Yield the frames selected by `keep`, holding one at a time in memory; the file is decoded to its end."""
    listed = listing(path)  # raises VideoError for truncated files
    sorted_times = listed.times if listed.container == "avi" else ()  # AVI stamps frames in stored order.
    convert = Converter()
    first: float | None = None
    with opened(path) as (container, stream):
        rate = float(stream.average_rate or 25)
        for index, frame in enumerate(_frames(path, container, stream)):
            stamp = seconds(frame.pts, frame.time_base)
            first = stamp if first is None else first
            time = index / rate if stamp is None or first is None else stamp - first
            time = sorted_times[index] if index < len(sorted_times) else time
            if keep(index, time):
                picture = convert(frame)
                yield Shown(index, time, picture if fit is None else fit(picture))


def same_first_frame(path: str | Path, picture: UInt8[Tensor, "3 h w"]) -> bool:
    """Return True if `picture` is this decoder's first frame: same size and, up to rounding, the same colours."""
    pictures, _, _ = _decode(path, [0], last=0, fit=None, clock=Clock(path, None, backend=BACKEND))
    ours = pictures[0]
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


def _decode(
    path: str | Path,
    indices: list[int],
    *,
    last: int | None = None,
    until: float = math.inf,
    fit: Fit | None,
    clock: Clock,
) -> tuple[dict[int, Tensor], tuple[float, ...], bool]:
    """Return the pictures of `indices`, the times of all frames before `until`, and True if the end was reached."""
    needed, pictures, stamps, convert = set(indices), {}, [], Converter()
    with opened(path) as (container, stream):
        rate = float(stream.average_rate or 25)
        frames = _frames(path, container, stream)
        for index, frame in enumerate(itertools.islice(frames, None if last is None else last + 1)):
            clock.check()
            stamp = seconds(frame.pts, frame.time_base)
            if stamps and stamp is not None and stamps[0] is not None and stamp - stamps[0] >= until:
                return pictures, settled(stamps, rate=rate), False
            stamps.append(stamp)
            if index in needed:
                picture = convert(frame)
                pictures[index] = picture if fit is None else fit(picture)
                check_clip(pictures[index], frames=len(indices), path=path, backend=BACKEND)
    return pictures, settled(stamps, rate=rate), last is None


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
