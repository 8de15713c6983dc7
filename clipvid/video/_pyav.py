"""The default decoder, PyAV: the only file that knows `av`.

Contract: frame k is the k-th frame of a full sequential decode, always. How many there are is first read off the
packets, which costs milliseconds. A file is decoded from its start, unless a few frames of it can be reached from key
frames (_seek.py) and come with the stamps that were promised; only frames that are wanted become RGB. The count is
checked against the frames that came; where they disagree (hidden VP9 frames, broken stamps) the frames win and the
choice is made again. PyAV silences FFmpeg's own log by default, so no global state is touched.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.video import _files
from clipvid.video._convert import Converter, orientation
from clipvid.video._frames import (
    PIXEL_LIMIT,
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
from clipvid.video._seek import Jump, Ladder, Packet, ladder, units

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

BACKEND = "pyav"
NOT_FILES = {"hls", "dash", "concat", "sdp", "rtsp", "image2", "tty"}
"""Formats that open other files or addresses by name, wait for a stream that never ends, or draw text."""


@dataclass(frozen=True)
class Listing:
    """What the packets of a file promise, read without decoding."""

    times: tuple[float, ...]
    """Times of the frames, as seconds from the first; nearly always those of what decodes."""
    stream: int
    """Position of the chosen video stream in the file."""
    streams: int
    """How many video streams there are, cover pictures not counted."""
    container: str
    codec: str
    pixels: str
    """Pixel format. This and the two above as FFmpeg calls them."""
    width: int
    height: int
    """Size as stored, before any rotation."""
    hidden: bool
    """Whether an edit list cuts frames away."""
    leading: bool
    """Whether frames are shown before the key frame that they are stored after (open groups of pictures)."""
    reordered: bool
    """Whether the codec stores frames in another order than it shows them (B-frames)."""
    ladder: Ladder | None
    """Where decoding can start, if the packets say for certain which frame is which."""

    @property
    def deep(self) -> bool:
        """Whether a value of a pixel has more than 8 bits."""
        return re.search(r"\d(le|be)$", self.pixels) is not None


def probe(path: str | Path) -> VideoInfo:
    """Decode the whole video, without converting a frame to RGB, and say what came."""
    listing(path)  # refuses cut-off files
    stamps: list[float | None] = []
    frame, last = None, 0.0
    with opened(path) as (container, stream):
        rate, codec = float(stream.average_rate or 0), stream.codec_context.codec.canonical_name
        for frame in _frames(path, container, stream):
            stamps.append(_seconds(frame.pts, frame.time_base))
            last = _seconds(frame.duration, frame.time_base) or 0.0
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
            stamp = _seconds(frame.pts, frame.time_base)
            first = stamp if first is None else first
            time = index / rate if stamp is None or first is None else stamp - first
            time = sorted_times[index] if index < len(sorted_times) else time
            if keep(index, time):
                picture = convert(frame)
                yield Shown(index, time, picture if fit is None else fit(picture))


def same_first_frame(path: str | Path, picture: UInt8[Tensor, "3 h w"]) -> bool:
    """Whether another decoder's first frame is ours: upright, of that size and, but for rounding, those colours."""
    ours = read(path, Choice(indices=(0,)))[0]
    return ours.shape == picture.shape and float((ours.float() - picture.float()).abs().mean()) <= 1


def listing(path: str | Path, clock: Clock | None = None) -> Listing:
    """What the packets promise; VideoError if the file is shorter than its header says."""
    with opened(path) as (container, stream):
        packets, end = _demuxed(path, container, stream, clock)
        _refuse_cut_off(path, container, stream, packets=packets, end=end)
        context, stamps = stream.codec_context, [packet.time for packet in packets if not packet.hidden]
        codec = context.codec.canonical_name
        if not stamps:
            raise VideoError(path, "no frames: its video stream is empty", backend=BACKEND)
        return Listing(
            times=settled(stamps, rate=float(stream.average_rate or 25)),
            stream=stream.index,
            streams=len(_videos(container)),
            container=container.format.name,
            codec=codec,
            pixels=context.pix_fmt or "",
            width=context.width,
            height=context.height,
            hidden=len(stamps) < len(packets),
            leading=_leading(packets),
            reordered=bool(context.has_b_frames),
            ladder=ladder(packets, container=container.format.name, codec=codec),
        )


def _demuxed(
    path: str | Path, container: InputContainer, stream: VideoStream, clock: Clock | None
) -> tuple[list[Packet], float]:
    """The packets of the stream in stored order, and how many seconds the data of all streams spans."""
    import av.error

    packets, start, end = [], 0.0, 0.0
    codec = "" if stream.codec_context is None else stream.codec_context.codec.canonical_name
    try:
        for packet in container.demux():
            if clock is not None:
                clock.check()
            at = packet.pts if packet.pts is not None else packet.dts
            if at is None and not packet.size:
                continue  # the mark of the end, one per stream
            if at is not None:
                start = min(start, float(at * packet.time_base))
                end = max(end, float((at + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if packet.has_sidedata("encryption_info"):  # would decode to garbage
                raise VideoError(path, _files.ENCRYPTED, backend=BACKEND)
            facts = units(codec, packet) if codec in ("h264", "hevc") and packet.size else None
            hidden = packet.is_discard or not packet.size
            time = _seconds(packet.pts, packet.time_base)
            packets.append(Packet(time, packet.pts, packet.is_keyframe, hidden, facts))
    except av.error.FFmpegError as error:
        raise _damaged(path, error, done=f"{len(packets)} of {_announced(stream)} packets can be read") from error
    return packets, end - start


def _leading(packets: list[Packet]) -> bool:
    key = -math.inf
    for packet in packets:
        if packet.time is not None and packet.key:
            key = packet.time
        elif packet.time is not None and packet.time < key:
            return True
    return False


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The open file and its first video stream that is not a cover picture."""
    import av.error

    absolute = _files.checked(path, backend=BACKEND)
    options = {"protocol_whitelist": "file", "format_whitelist": _formats()}
    try:
        container = av.open(absolute, metadata_errors="replace", container_options=options)
    except av.error.EOFError as error:
        raise VideoError(path, "no frames: the file ends after its header", backend=BACKEND) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = _files.why_not_a_video(absolute) or f"not a video that FFmpeg can open ({_cause(error)})"
        raise VideoError(path, reason, backend=BACKEND) from error
    with container:
        videos = _videos(container)
        if not videos:
            kinds = ", ".join(sorted({stream.type for stream in container.streams if stream.type != "video"}))
            raise VideoError(path, f"no video stream (it has {kinds or 'none at all'})", backend=BACKEND)
        if container.format.name.endswith("_pipe"):
            raise VideoError(path, _files.why_not_a_video(absolute) or "a still picture, not a video", backend=BACKEND)
        yield container, _prepared(path, videos[0])


def _prepared(path: str | Path, stream: VideoStream) -> VideoStream:
    context = stream.codec_context
    if context is None:
        raise VideoError(path, "its codec is unknown to this FFmpeg", backend=BACKEND)
    check_pixels(context.width, context.height, path=path, backend=BACKEND)
    context.options = {"max_pixels": str(PIXEL_LIMIT)}  # for frames that differ from the header
    context.thread_type = "AUTO"
    context.thread_count = min(torch.get_num_threads(), 8)  # 1 in a loader worker, where the processes share the cores
    return stream


def _videos(container: InputContainer) -> list[VideoStream]:
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


@cache
def _formats() -> str:
    import av.error

    return ",".join(sorted(av.formats_available - NOT_FILES))


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
        raise _damaged(path, error, done=f"{done} of {_announced(stream)} frames decode") from error
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
            stamp = _seconds(frame.pts, frame.time_base)
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


def _seconds(stamp: int | None, unit: Fraction | None) -> float | None:
    return None if stamp is None or unit is None else float(stamp * unit)


def _refuse_cut_off(
    path: str | Path, container: InputContainer, stream: VideoStream, *, packets: list[Packet], end: float
) -> None:
    """VideoError if the file ends before its header says so.

    MP4 and AVI have an index with one entry per packet: every one must be there. The others (Matroska, FLV) declare a
    duration: their data must come near it, no matter of which stream. Near is twice the longest pause between two
    frames (the last frame of a slide show lasts, but no packet says how long), at least 0.25 s and 2 %; where the
    Matroska header also declares more bytes than there are, one pause. MP4 durations are not asked: players ignore
    them, and edit lists change them.
    """
    indexed, declared = len(stream.index_entries), (container.duration or 0) / 1_000_000
    if len(packets) < indexed:
        raise VideoError(path, f"cut off: {len(packets)} of {indexed} announced packets are there", backend=BACKEND)
    if "mp4" in container.format.name:
        return
    if container.format.name == "gif" and _files.gif_ends_inside(container.name):
        raise VideoError(path, "cut off: the file ends in the middle of a picture", backend=BACKEND)
    known = sorted(packet.time for packet in packets if packet.time is not None)
    pause = max((after - before for before, after in itertools.pairwise(known)), default=0.0)
    near = pause if _files.missing_bytes(container.name) else max(0.25, 2 * pause, 0.02 * declared)
    if declared - end > near:
        reason = f"cut off: {end:.2f} s of {declared:.2f} s are there, {len(packets)} video packets"
        raise VideoError(path, reason, backend=BACKEND)


def _announced(stream: VideoStream) -> int | str:
    return stream.frames or "an unknown number of"


def _damaged(path: str | Path, error: Exception, *, done: str) -> VideoError:
    return VideoError(path, f"damaged or cut off: {done}, then {_cause(error)}", backend=BACKEND)


def _cause(error: Exception) -> str:
    """FFmpeg's words without the path, which VideoError names already."""
    return str(getattr(error, "strerror", None) or error)
