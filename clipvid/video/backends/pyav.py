"""The default decoder, PyAV.

Contract: frame k is the k-th frame of a full sequential decode, always. How many there are is first read off the
packets (_packets.py), which costs milliseconds. A file is decoded from its start, unless a few frames of it can be
reached from key frames (_seek.py) and come with the stamps that were promised; only frames that are wanted become RGB.
The count is checked against the frames that came; where they disagree (hidden VP9 frames, broken stamps) the frames win
and the choice is made again. PyAV silences FFmpeg's own log by default, so no global state is touched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    check_pixels,
    in_range,
    settled,
    stacked,
)
from clipvid.video.container.colour import Converter, orientation
from clipvid.video.container.demux import BACKEND, announced, damaged, listing, opened, seconds
from clipvid.video.container.seek import Jump

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


def probe(path: str | Path) -> VideoInfo:
    """Decode the whole video, without converting a frame to RGB, and say what came."""
    listing(path)  # refuses cut-off files
    stamps: list[float | None] = []
    frame, last = None, 0.0
    with opened(path) as (container, stream):
        rate, codec = float(stream.average_rate or 0), stream.codec_context.codec.canonical_name
        for frame in _frames(path, container, stream):
            stamps.append(seconds(frame.pts, frame.time_base))
            last = seconds(frame.duration, frame.time_base) or 0.0
    assert frame is not None
    times = settled(stamps, rate=rate or 25.0)
    if times[-1] and not 0.8 < rate * times[-1] / (len(times) - 1) < 1.25:  # headers may claim 1000 frames per second
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
    """The chosen frames, upright."""
    clock = Clock(path, choice.time_limit, backend=BACKEND)
    listed = listing(path, clock)
    promised = listed.times
    wanted = choice.of(promised)
    jumps = None if listed.ladder is None else listed.ladder.jumps(wanted)
    if jumps is not None and (reached := _decode_from(path, jumps, wanted, fit=fit, clock=clock)) is not None:
        return stacked(reached, wanted, path=path, backend=BACKEND)
    if choice.indices is not None:
        pictures, times, _ = _decode(path, wanted, last=max(wanted), fit=fit, clock=clock)
        if missing := [i for i in wanted if i not in pictures]:
            in_range(missing, path=path, frames=len(times), backend=BACKEND)
        return stacked(pictures, wanted, path=path, backend=BACKEND)
    pictures, times, whole = _decode(path, wanted, until=choice.until, fit=fit, clock=clock)
    foreseen = tuple(time for time in promised if time < choice.until)
    if len(times) != len(foreseen) or (choice.by_time and times != foreseen):
        wanted = choice.of(times if whole else probe(path).times)
        pictures, times, _ = _decode(path, wanted, last=max(wanted), fit=fit, clock=clock)
    in_range(wanted, path=path, frames=len(times), backend=BACKEND)
    return stacked(pictures, wanted, path=path, backend=BACKEND)


def stream(path: str | Path, keep: Keep, *, fit: Fit | None = None) -> Iterator[Shown]:
    """The frames that `keep` keeps, one after another, holding one at a time; the file is decoded to its end."""
    listed = listing(path)  # refuses cut-off files
    sorted_times = listed.times if listed.container == "avi" else ()  # it stamps frames in the order of storage
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
    """Whether another decoder's first frame is ours: upright, of that size and, but for rounding, those colours."""
    pictures, _, _ = _decode(path, [0], last=0, fit=None, clock=Clock(path, None, backend=BACKEND))
    ours = pictures[0]
    return ours.shape == picture.shape and float((ours.float() - picture.float()).abs().mean()) <= 1


def _frames(path: str | Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame in presentation order; VideoError at the first that does not decode, or if there is none."""
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
    wanted: list[int],
    *,
    last: int | None = None,
    until: float = math.inf,
    fit: Fit | None,
    clock: Clock,
) -> tuple[dict[int, Tensor], tuple[float, ...], bool]:
    """Pictures of the wanted frames, the times of all that begin before `until`, and whether the end was reached."""
    needed, pictures, stamps, convert = set(wanted), {}, [], Converter()
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
    return pictures, settled(stamps, rate=rate), last is None


def _decode_from(
    path: str | Path, jumps: Sequence[Jump], wanted: Sequence[int], *, fit: Fit | None, clock: Clock
) -> dict[int, Tensor] | None:
    """Pictures of the wanted frames, decoded from key frames; None where anything is not as the packets promised."""
    import av.error

    needed, pictures, convert = set(wanted), {}, Converter()
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
                    index += 1
                    if index == jump.first + len(jump.stamps):
                        break
                else:
                    return None
            except av.error.FFmpegError:
                return None
    return pictures


def _after(container: InputContainer, stream: VideoStream, stamp: int) -> Iterator[VideoFrame]:
    """Frames from the one of `stamp` on; none unless the next packet is that one."""
    for number, packet in enumerate(container.demux(stream)):
        if not number and packet.pts != stamp:
            return
        for frame in packet.decode():
            if frame.pts is None or frame.pts >= stamp:  # what is shown before a key frame and stored after it
                yield frame
