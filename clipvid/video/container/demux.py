"""Opening a file with FFmpeg, and listing its packets without decoding: frame count, frame times, completeness.

Contract: a path in; its container and first real video stream, or a `Listing`, out. Raises VideoError for a file that
is not a video, is encrypted, or ends earlier than its header declares. Knows nothing of pixels.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from numbers import Rational
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvid.errors import VideoError
from clipvid.video.backends.base import Clock, decoder_threads
from clipvid.video.backends.limits import check_pixels, padded_pixel_limit
from clipvid.video.container import endings, sniff
from clipvid.video.container.seek import Ladder, Packet, ladder, units
from clipvid.video.container.times import Stamps, Timeline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

BACKEND = "pyav"
NOT_FILES = {"hls", "dash", "concat", "sdp", "rtsp", "image2", "tty"}
"""FFmpeg formats that open other files or addresses, read streams that may never end, or render text."""
TOLERANCE = 0.25
"""Seconds by which the data of a complete file may end before its declared duration."""


@dataclass(frozen=True)
class Listing:
    """Metadata of a video read from its packets, without decoding."""

    timeline: Timeline
    """Times and stamps of the frames; they nearly always equal those of the decoded frames."""
    stream: int
    """Index of the chosen video stream in the file."""
    streams: int
    """Number of video streams, not counting cover pictures."""
    container: str
    codec: str
    pixels: str
    """Pixel format. Container, codec and pixel format are named as in FFmpeg."""
    width: int
    height: int
    """Height in pixels. Width and height are those of the stored picture, before rotation."""
    hidden: bool
    """True if an edit list removes frames."""
    leading: bool
    """True if frames stored after a key frame are shown before it (open groups of pictures)."""
    reordered: bool
    """True if frames are not stored in the order in which they are shown (B-frames)."""
    ladder: Ladder | None
    """Seek points; None if the packets do not determine the index of every frame."""

    @property
    def times(self) -> tuple[float, ...]:
        """Frame times in seconds from the first frame."""
        return self.timeline.shown.times

    @property
    def deep(self) -> bool:
        """True if pixel values have more than 8 bits."""
        return re.search(r"\d(le|be)$", self.pixels) is not None


def listing(path: str | Path, clock: Clock | None = None) -> Listing:
    """Return the packet metadata of a file; raise VideoError if the file ends earlier than its header declares."""
    with opened(path) as (container, stream):
        contents = _demuxed(path, container, stream, clock)
        packets = contents.packets
        _refuse_cut_off(path, container, stream, contents)
        context = stream.codec_context
        codec = context.codec.canonical_name
        if not any(not packet.hidden for packet in packets):
            raise VideoError(path, "no frames: its video stream is empty", backend=BACKEND)
        return Listing(
            timeline=_timeline(container, stream, contents),
            stream=stream.index,
            streams=len(_videos(container)),
            container=container.format.name,
            codec=codec,
            pixels=context.pix_fmt or "",
            width=context.width,
            height=context.height,
            hidden=any(packet.hidden for packet in packets),
            leading=_leading(packets),
            reordered=bool(context.has_b_frames),
            ladder=ladder(packets, container=container.format.name, codec=codec),
        )


@dataclass
class _Contents:
    """Packets of the video stream in stored order, and the time span of all data in seconds."""

    packets: list[Packet]
    start: float = 0.0
    end: float = 0.0
    other_end: float = -math.inf
    """End of the data of all other streams."""
    first_size: int = 0
    """Size of the first packet in bytes."""


def _demuxed(path: str | Path, container: InputContainer, stream: VideoStream, clock: Clock | None) -> _Contents:
    """Return the packets of the stream, and what is needed to judge where the file ends."""
    import av.error

    contents = _Contents([])
    packets = contents.packets
    codec = "" if stream.codec_context is None else stream.codec_context.codec.canonical_name
    try:
        for packet in container.demux():
            if clock is not None:
                clock.check()
            stamp, unit = packet.pts if packet.pts is not None else packet.dts, packet.time_base
            if stamp is None and not packet.size:
                continue  # An empty packet ends each stream.
            duration, ours = packet.duration or 0, packet.stream_index == stream.index
            if stamp is not None:
                end = (stamp + duration) * unit.numerator / unit.denominator
                contents.start = min(contents.start, stamp * unit.numerator / unit.denominator)
                contents.end = max(contents.end, end)
                if not ours:
                    contents.other_end = max(contents.other_end, end)
            if not ours:
                continue
            if packet.has_sidedata("encryption_info"):  # FFmpeg would decode such packets to noise.
                raise VideoError(path, sniff.ENCRYPTED, backend=BACKEND)
            nal_properties = units(codec, packet) if codec in ("h264", "hevc") and packet.size else None
            hidden = packet.is_discard or not packet.size
            time = seconds(packet.pts, unit)
            contents.first_size = contents.first_size or packet.size
            packets.append(
                Packet(time, packet.pts, packet.is_keyframe, hidden, nal_properties, packet.dts, max(0, duration))
            )
    except av.error.FFmpegError as error:
        raise damaged(path, error, done=f"{len(packets)} of {announced(stream)} packets can be read") from error
    return contents


def _timeline(container: InputContainer, stream: VideoStream, contents: _Contents) -> Timeline:
    """Return the times of the frames; the last one lasts to the declared end of a complete Matroska or FLV file."""
    packets = [packet for packet in contents.packets if not packet.hidden]
    stamps = Stamps(
        [packet.stamp for packet in packets],
        [packet.duration for packet in packets],
        stream.time_base,
        float(stream.average_rate or 25),
        decoded=[packet.order for packet in packets],
        keys=[packet.key for packet in packets],
    )
    shown, ordered = stamps.settled()
    declared = (container.duration or 0) / 1_000_000
    first = seconds(ordered[0], stream.time_base)
    stays = 0.0 if first is None else declared - first
    shown_alone = stays > shown.end and contents.other_end < declared - TOLERANCE
    if shown_alone and _declares_duration(container) and endings.missing_bytes(container.name) == 0:
        shown = replace(shown, end=stays)
    return Timeline(shown, ordered, stream.time_base, stamps.rate, by_number=container.format.name == "avi")


def _declares_duration(container: InputContainer) -> bool:
    return any(name in container.format.name for name in ("matroska", "webm", "flv"))


def _leading(packets: list[Packet]) -> bool:
    """Return True if a packet is shown before the key frame it is stored after."""
    key = -math.inf
    for packet in packets:
        if packet.time is not None and packet.key:
            key = packet.time
        elif packet.time is not None and packet.time < key:
            return True
    return False


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and yield its container and its first video stream that is not a cover picture."""
    import av.error

    absolute = sniff.checked(path, backend=BACKEND)
    options = {"protocol_whitelist": "file", "format_whitelist": _formats()}
    if (size := sniff.gif_size(absolute)) is not None:
        check_pixels(*size, path=path, backend=BACKEND)
    decoding = {
        "max_pixels": str(padded_pixel_limit())
    }  # FFmpeg decodes frames already while it opens some files, as of GIF.
    try:
        container = av.open(absolute, options=decoding, container_options=options, **_lenient())
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
    """Return the options that accept metadata in invalid UTF-8; PyAV 19 accepts it always and has no such option."""
    import av

    return {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def _prepared(path: str | Path, stream: VideoStream) -> VideoStream:
    context = stream.codec_context
    if context is None:
        raise VideoError(path, "its codec is unknown to this FFmpeg", backend=BACKEND)
    check_pixels(context.width, context.height, path=path, backend=BACKEND)
    context.options = {"max_pixels": str(padded_pixel_limit())}  # Frames can be larger than the header declares.
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
    """Return a time stamp, counted in multiples of `unit`, in seconds; None if either is unknown."""
    # PyAV gives an unknown unit as None, or from 19 on as 0. Integer division rounds once, like float(Fraction), in a
    # fifteenth of the time.
    return None if stamp is None or not unit else stamp * int(unit.numerator) / int(unit.denominator)


def _refuse_cut_off(path: str | Path, container: InputContainer, stream: VideoStream, contents: _Contents) -> None:
    """Raise VideoError if the file ends earlier than its header or its structure declares.

    MP4 and AVI have an index with one entry per packet, and all these packets must exist. Matroska declares its number
    of bytes, and so do most FLV files; where the bytes are valid up to that number, the last frame stays for the rest
    of the declared duration. In other files, such as live recordings, the data of any stream must reach the declared
    duration within a tolerance: twice the longest gap between two frames (no packet tells how long the last frame of
    a slide show lasts), at least 0.25 s and 2 %. Durations of MP4 files are not checked: players ignore them, and edit
    lists change them.
    """
    packets, indexed, declared = contents.packets, len(stream.index_entries), (container.duration or 0) / 1_000_000
    if len(packets) < indexed:
        raise VideoError(
            path, f"cut off: {len(packets)} of {indexed} announced packets are in the file", backend=BACKEND
        )
    if "mp4" in container.format.name:
        return
    if reason := _inside(container, contents):
        raise VideoError(path, f"cut off: the file ends {reason}", backend=BACKEND)
    end = contents.end - contents.start
    missing = endings.missing_bytes(container.name) or 0
    times = sorted(packet.time for packet in packets if packet.time is not None)
    longest_gap = max((after - before for before, after in itertools.pairwise(times)), default=0.0)
    tolerance = longest_gap if missing else max(TOLERANCE, 2 * longest_gap, 0.02 * declared)
    too_short = declared - end > tolerance
    if missing or (too_short and not (_declares_duration(container) and endings.is_intact(container.name))):
        reason = f"cut off: {end:.2f} s of {declared:.2f} s are in the file, {len(packets)} video packets"
        reason += f"; its last {missing} bytes are missing" if missing else ""
        raise VideoError(path, reason, backend=BACKEND)


def _inside(container: InputContainer, contents: _Contents) -> str | None:
    """Return what the file ends in the middle of, or before; None if its structure is complete."""
    kind, name = container.format.name, container.name
    if kind == "gif" and endings.gif_ends_inside(name):
        return "in the middle of a picture"
    if kind == "yuv4mpegpipe" and endings.y4m_ends_inside(name, contents.first_size):
        return "in the middle of a picture"
    if kind == "mpegts" and endings.transport_stream_ends_inside(name):
        return "in the middle of a packet"
    if kind == "ogg" and endings.ogg_ends_inside(name):
        return "before the last page of its video stream"
    return None


def announced(stream: VideoStream) -> int | str:
    """Return the number of frames that the header declares, or a phrase for an unknown number."""
    return stream.frames or "an unknown number of"


def damaged(path: str | Path, error: Exception, *, done: str) -> VideoError:
    """Return the VideoError for a file that FFmpeg could read only up to `done`."""
    return VideoError(path, f"damaged or cut off: {done}, then {_cause(error)}", backend=BACKEND)


def _cause(error: Exception) -> str:
    """Return FFmpeg's message without the path, because VideoError already names it."""
    return str(getattr(error, "strerror", None) or error)
