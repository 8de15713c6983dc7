"""A file opened by FFmpeg, and what its packets say without decoding: how many frames, when, and whether all are there.

Contract: a path in; its container and first real video stream, or a Listing, out. VideoError for what is no video, is
encrypted, or ends before its header says so. Knows nothing of pictures.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from numbers import Rational
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvid.errors import VideoError
from clipvid.video.backends.base import PIXEL_LIMIT, Clock, check_pixels, decoder_threads, settled
from clipvid.video.container import sniff
from clipvid.video.container.seek import Ladder, Packet, ladder, units

if TYPE_CHECKING:
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
                raise VideoError(path, sniff.ENCRYPTED, backend=BACKEND)
            facts = units(codec, packet) if codec in ("h264", "hevc") and packet.size else None
            hidden = packet.is_discard or not packet.size
            time = seconds(packet.pts, packet.time_base)
            packets.append(Packet(time, packet.pts, packet.is_keyframe, hidden, facts))
    except av.error.FFmpegError as error:
        raise damaged(path, error, done=f"{len(packets)} of {announced(stream)} packets can be read") from error
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

    absolute = sniff.checked(path, backend=BACKEND)
    options = {"protocol_whitelist": "file", "format_whitelist": _formats()}
    try:
        container = av.open(absolute, container_options=options, **_lenient())
    except av.error.EOFError as error:
        raise VideoError(path, "no frames: the file ends after its header", backend=BACKEND) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = sniff.why_not_a_video(absolute) or f"not a video that FFmpeg can open ({_cause(error)})"
        raise VideoError(path, reason, backend=BACKEND) from error
    with container:
        videos = _videos(container)
        if not videos:
            kinds = ", ".join(sorted({stream.type for stream in container.streams if stream.type != "video"}))
            raise VideoError(path, f"no video stream (it has {kinds or 'none at all'})", backend=BACKEND)
        if container.format.name.endswith("_pipe"):
            raise VideoError(path, sniff.why_not_a_video(absolute) or "a still picture, not a video", backend=BACKEND)
        yield container, _prepared(path, videos[0])


@cache
def _lenient() -> dict[str, Any]:
    """Titles that are no UTF-8 are no reason to refuse a video; PyAV 19 knows that, and has no option for it."""
    import av

    return {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def _prepared(path: str | Path, stream: VideoStream) -> VideoStream:
    context = stream.codec_context
    if context is None:
        raise VideoError(path, "its codec is unknown to this FFmpeg", backend=BACKEND)
    check_pixels(context.width, context.height, path=path, backend=BACKEND)
    context.options = {"max_pixels": str(PIXEL_LIMIT)}  # for frames that differ from the header
    context.thread_type = "AUTO"
    context.thread_count = decoder_threads()
    return stream


def _videos(container: InputContainer) -> list[VideoStream]:
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


@cache
def _formats() -> str:
    import av.error

    return ",".join(sorted(av.formats_available - NOT_FILES))


def seconds(stamp: int | None, unit: Rational | None) -> float | None:
    return None if stamp is None or unit is None else float(stamp * Fraction(unit))


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
    if container.format.name == "gif" and sniff.gif_ends_inside(container.name):
        raise VideoError(path, "cut off: the file ends in the middle of a picture", backend=BACKEND)
    known = sorted(packet.time for packet in packets if packet.time is not None)
    pause = max((after - before for before, after in itertools.pairwise(known)), default=0.0)
    near = pause if sniff.missing_bytes(container.name) else max(0.25, 2 * pause, 0.02 * declared)
    if declared - end > near:
        reason = f"cut off: {end:.2f} s of {declared:.2f} s are in the file, {len(packets)} video packets"
        raise VideoError(path, reason, backend=BACKEND)


def announced(stream: VideoStream) -> int | str:
    return stream.frames or "an unknown number of"


def damaged(path: str | Path, error: Exception, *, done: str) -> VideoError:
    return VideoError(path, f"damaged or cut off: {done}, then {_cause(error)}", backend=BACKEND)


def _cause(error: Exception) -> str:
    """FFmpeg's words without the path, which VideoError names already."""
    return str(getattr(error, "strerror", None) or error)
