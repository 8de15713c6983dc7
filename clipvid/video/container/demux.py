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
from dataclasses import dataclass
from functools import cache
from numbers import Rational
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvid.errors import VideoError
from clipvid.video.backends.base import Clock, decoder_threads, settled
from clipvid.video.backends.limits import check_pixels, padded_pixel_limit
from clipvid.video.container import sniff
from clipvid.video.container.seek import Ladder, Packet, ladder, units

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

BACKEND = "pyav"
NOT_FILES = {"hls", "dash", "concat", "sdp", "rtsp", "image2", "tty"}
"""FFmpeg formats that open other files or addresses, read streams that may never end, or render text."""


@dataclass(frozen=True)
class Listing:
    """Metadata of a video read from its packets, without decoding."""

    times: tuple[float, ...]
    """Frame times in seconds from the first frame; they nearly always equal those of the decoded frames."""
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
    def deep(self) -> bool:
        """True if pixel values have more than 8 bits."""
        return re.search(r"\d(le|be)$", self.pixels) is not None


def listing(path: str | Path, clock: Clock | None = None) -> Listing:
    """Return the packet metadata of a file; raise VideoError if the file ends earlier than its header declares."""
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
    """Return the packets of the stream in stored order, and the time span of the data of all streams in seconds."""
    import av.error

    packets, start, end = [], 0.0, 0.0
    codec = "" if stream.codec_context is None else stream.codec_context.codec.canonical_name
    try:
        for packet in container.demux():
            if clock is not None:
                clock.check()
            stamp, unit = packet.pts if packet.pts is not None else packet.dts, packet.time_base
            if stamp is None and not packet.size:
                continue  # An empty packet ends each stream.
            if stamp is not None:
                start = min(start, stamp * unit.numerator / unit.denominator)
                end = max(end, (stamp + (packet.duration or 0)) * unit.numerator / unit.denominator)
            if packet.stream_index != stream.index:
                continue
            if packet.has_sidedata("encryption_info"):  # FFmpeg would decode such packets to noise.
                raise VideoError(path, sniff.ENCRYPTED, backend=BACKEND)
            nal_properties = units(codec, packet) if codec in ("h264", "hevc") and packet.size else None
            hidden = packet.is_discard or not packet.size
            time = seconds(packet.pts, unit)
            packets.append(Packet(time, packet.pts, packet.is_keyframe, hidden, nal_properties))
    except av.error.FFmpegError as error:
        raise damaged(path, error, done=f"{len(packets)} of {announced(stream)} packets can be read") from error
    return packets, end - start


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


def _refuse_cut_off(
    path: str | Path, container: InputContainer, stream: VideoStream, *, packets: list[Packet], end: float
) -> None:
    """Raise VideoError if the file ends earlier than its header declares.

    MP4 and AVI have an index with one entry per packet, and all these packets must exist. Other containers (Matroska,
    FLV) declare a duration, and the data of any of their streams must reach it within a tolerance: twice the longest
    gap between two frames (no packet tells how long the last frame of a slide show lasts), at least 0.25 s and 2 %.
    The tolerance is one gap if a Matroska header also declares more bytes than the file has. Durations of MP4 files
    are not checked: players ignore them, and edit lists change them.
    """
    indexed, declared = len(stream.index_entries), (container.duration or 0) / 1_000_000
    if len(packets) < indexed:
        raise VideoError(
            path, f"cut off: {len(packets)} of {indexed} announced packets are in the file", backend=BACKEND
        )
    if "mp4" in container.format.name:
        return
    if container.format.name == "gif" and sniff.gif_ends_inside(container.name):
        raise VideoError(path, "cut off: the file ends in the middle of a picture", backend=BACKEND)
    times = sorted(packet.time for packet in packets if packet.time is not None)
    longest_gap = max((after - before for before, after in itertools.pairwise(times)), default=0.0)
    tolerance = longest_gap if sniff.missing_bytes(container.name) else max(0.25, 2 * longest_gap, 0.02 * declared)
    if declared - end > tolerance:
        reason = f"cut off: {end:.2f} s of {declared:.2f} s are in the file, {len(packets)} video packets"
        raise VideoError(path, reason, backend=BACKEND)


def announced(stream: VideoStream) -> int | str:
    """Return the number of frames that the header declares, or a phrase for an unknown number."""
    return stream.frames or "an unknown number of"


def damaged(path: str | Path, error: Exception, *, done: str) -> VideoError:
    """Return the VideoError for a file that FFmpeg could read only up to `done`."""
    return VideoError(path, f"damaged or cut off: {done}, then {_cause(error)}", backend=BACKEND)


def _cause(error: Exception) -> str:
    """Return FFmpeg's message without the path, because VideoError already names it."""
    return str(getattr(error, "strerror", None) or error)
