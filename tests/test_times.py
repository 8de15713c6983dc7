"""Times of frames: joined recordings, last frames that stay, shifted stamps, and files that are cut anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numbered import seen, write

from clipvid.errors import VideoError
from clipvid.models.sliding_window import encode_windows
from clipvid.video.container.demux import listing
from clipvid.video.container.times import Follower, FrameTimes, Stamps, Timeline
from clipvid.video.decode import probe, read, read_part, read_video, stream

X264 = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=3:b-adapt=0"}
STEP = 1 / 25
CODECS = {  # name: suffix, codec, options, B-frames, error of a time after a join in frames
    "h264": ("ts", "libx264", X264, None, 0),
    "h264 without B-frames": ("ts", "libx264", {"tune": "zerolatency"}, 0, 0),
    "mpeg2": ("ts", "mpeg2video", {}, 2, 0),
    "program stream": ("mpg", "mpeg2video", {}, 2, 1),  # FFmpeg repeats or skips stamps where two of them are joined
    "vob": ("vob", "mpeg2video", {}, 2, 1),
}


def running_sums(numbers: Iterable[float]) -> list[float]:
    """Return the sums of the first one, two, ... numbers."""
    return np.cumsum([*numbers]).tolist()


# --- the shared files ---


@pytest.mark.shared_data("faults")
def test_joined_recordings_have_the_times_of_one_video(shared_data):
    path = shared_data / "faults" / "joined.ts"
    info = probe(path)
    assert (info.frames, info.fps) == (150, 25)
    assert info.duration == pytest.approx(6)
    assert info.times == pytest.approx([i / 25 for i in range(150)])
    assert torch.equal(read_video(path, 25, sampler="linspace", start=1, end=2), read(path, range(25, 50)))
    assert torch.equal(read_video(path, 25, sampler="linspace", start=4, end=5), read(path, range(100, 125)))
    shown = list(stream(path, fps=2))
    assert len(shown) == 12
    assert shown[-1].time == pytest.approx(5.5, abs=STEP)


@pytest.mark.shared_data("faults")
@pytest.mark.parametrize("name", ["last_frame_stays.webm", "last_frame_stays.mkv"])
def test_a_last_frame_stays_to_the_declared_end(shared_data, name):
    path = shared_data / "faults" / name
    info = probe(path)
    assert (info.frames, info.fps) == (50, 25)
    assert info.duration == pytest.approx(11.96)
    assert torch.equal(read_video(path, 2, start=5, end=6), read(path, [49, 49]))
    with pytest.raises(VideoError, match="start=12 s is after its last frame"):
        read_video(path, 2, start=12)


# --- joined recordings, written here ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", CODECS)
def test_joined_parts_follow_each_other(tmp_path, kind, seed):
    suffix, codec, options, b_frames, error = CODECS[kind]
    rng = Random(f"{kind}{seed}")
    counts = [rng.randint(4, 40) for _ in range(rng.randint(2, 3))]
    path, begin, data = tmp_path / f"joined.{suffix}", 500, b""
    for count in counts:  # A part whose stamps begin later than the part before ended would be a gap.
        begin = rng.randint(max(0, begin - 150), begin)
        write(path, codec=codec, options=options, b_frames=b_frames, stamps=range(begin, begin + count))
        data += path.read_bytes()
    path.write_bytes(data)
    total, tolerance = sum(counts), 1e-6 + error * STEP * len(counts)
    numbers = [i for count in counts for i in range(count)]
    info = probe(path)
    assert info.frames == total
    assert info.duration == pytest.approx(total / 25, abs=tolerance)
    assert info.times == pytest.approx([i / 25 for i in range(total)], abs=tolerance)
    shown = list(stream(path))
    assert [each.time for each in shown] == list(info.times)
    assert seen(torch.stack([each.picture for each in shown])) == numbers
    if not error:
        first, last = sorted(rng.sample(range(total), 2))
        part = read_part(path, range, start=(first - 0.5) / 25 if first else 0, end=(last + 0.5) / 25)
        assert seen(part) == numbers[first : last + 1]
    joins = list(running_sums(counts))[:-1]
    for join in joins:
        assert info.times[join - 1] < info.times[join] + 1e-9


def test_windows_of_a_joined_video_rise(tmp_path, tiny_clip):
    from clipvid.models.factory import attach

    path = tmp_path / "joined.ts"
    data = b"".join(write(path, options=X264, stamps=range(30)).read_bytes() for _ in range(2))
    path.write_bytes(data)
    model = attach(tiny_clip, branch="mean")
    frames = stream(path, fit=model.transform.fit, every=5)
    (windows,) = encode_windows(model, frames, window=3, stride=1)
    assert windows.starts.tolist() == pytest.approx([i / 5 for i in range(10)])
    assert windows.ends.tolist() == pytest.approx([i / 5 + 0.4 for i in range(10)])


# --- last frames, written here ---


def with_durations(path: Path, durations: list[int], *, suffix: str) -> Path:
    """Write a video whose packets have the given durations in 25ths of a second."""
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options={} if suffix == "webm" else {"tune": "zerolatency"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        begins = [0, *running_sums(durations)][: len(durations)]
        packets = []
        for i, begin in enumerate(begins):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 3 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = begin, Fraction(1, 25)
            packets += video.encode(frame)
        packets += video.encode()
        for packet in packets:
            at = begins.index(round(packet.pts * packet.time_base * 25))
            packet.duration = round(durations[at] / 25 / packet.time_base)
            container.mux(packet)
    return path


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4", "flv"])
def test_the_last_frame_lasts_as_long_as_its_file_says(tmp_path, suffix, seed):
    rng = Random(seed)
    durations = [rng.randint(1, 4) for _ in range(rng.randint(2, 20))] + [rng.randint(1, 400)]
    path = with_durations(tmp_path / f"stays.{suffix}", durations, suffix=suffix)
    info = probe(path)
    assert info.frames == len(durations)
    assert info.duration == pytest.approx(sum(durations) / 25, abs=0.002)
    assert listing(path).timeline.shown == FrameTimes(info.times, info.duration)
    last = len(durations) - 1
    on_screen = info.times[-1] + rng.random() * (info.duration - info.times[-1] - 0.001)
    assert seen(read_video(path, 2, start=on_screen, end=on_screen + 1)) == [last, last]
    with pytest.raises(VideoError, match="is after its last frame"):
        read_video(path, 2, start=info.duration + 0.001)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv"])
def test_a_cut_file_whose_last_frame_would_stay_is_refused(tmp_path, suffix):
    complete = with_durations(tmp_path / f"complete.{suffix}", [2] * 20 + [300], suffix=suffix).read_bytes()
    rng, cut = Random(suffix), tmp_path / f"cut.{suffix}"
    for size in (len(complete) - 1, *(rng.randrange(len(complete) // 4, len(complete)) for _ in range(8))):
        cut.write_bytes(complete[:size])
        with pytest.raises(VideoError, match=r"cut off|damaged|no frames|not a video that FFmpeg can open"):
            probe(cut)


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"\x47"])
def test_a_file_whose_later_bytes_are_overwritten_does_not_end_with_a_long_frame(tmp_path, suffix, filler):
    path = with_durations(tmp_path / f"complete.{suffix}", [3] * 60, suffix=suffix)
    data, rng = path.read_bytes(), Random(suffix)
    for _ in range(4):
        size = rng.randrange(len(data) // 3, len(data) * 2 // 3)
        path.write_bytes(data[:size] + filler * (len(data) - size))
        try:
            info = probe(path)
        except VideoError:
            continue
        assert suffix == "flv"  # Its filler can look like data of another stream that reach the declared duration.
        assert info.duration <= 0.12 * info.frames + 0.01


def test_a_last_frame_does_not_stay_while_sound_goes_on(tmp_path):
    """The declared end is that of the sound; nothing tells how long the last picture is meant to stay."""
    assert probe(with_sound(tmp_path / "sound.mkv", seconds=4)).duration == pytest.approx(1.6, abs=0.01)


# --- cut files ---


def cuts(path: Path, rng: Random, n: int = 8) -> list[int]:
    size = path.stat().st_size
    return [size - 1, *(rng.randrange(size // 10, size) for _ in range(n))]


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "gray"])
def test_a_cut_y4m_file_is_refused(tmp_path, pixels):
    path = tmp_path / "raw.y4m"
    with av.open(str(path), "w", format="yuv4mpegpipe") as container:
        video = container.add_stream("rawvideo", rate=25)
        video.width, video.height, video.pix_fmt = 33, 17, pixels
        for level in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((17, 33, 3), 40 * level, np.uint8), format="rgb24")
            container.mux(video.encode(frame.reformat(format=pixels)))
    assert probe(path).frames == 6
    data, rng = path.read_bytes(), Random(pixels)
    head = data.index(b"\n") + 1
    frame = (len(data) - head) // 6
    for size in cuts(path, rng):
        (tmp_path / "cut.y4m").write_bytes(data[:size])
        if (size - head) % frame:
            with pytest.raises(VideoError, match=r"cut off: the file ends in the middle of a picture|no frames"):
                probe(tmp_path / "cut.y4m")
        else:  # A file that ends between two pictures cannot be told from a shorter one.
            assert probe(tmp_path / "cut.y4m").frames == (size - head) // frame


@pytest.mark.parametrize("sound", [False, True])
def test_a_cut_ogg_file_is_refused(tmp_path, sound):
    path = with_sound(tmp_path / "complete.ogv", seconds=4 if sound else 0)
    assert probe(path).frames == 40
    data = path.read_bytes()
    for size in cuts(path, Random(int(sound))):
        (tmp_path / "cut.ogv").write_bytes(data[:size])
        if size < data.rindex(data[14:18]):  # the serial number of the pictures on their last page
            with pytest.raises(VideoError, match=r"cut off|damaged|no frames|not a video that FFmpeg can open"):
                probe(tmp_path / "cut.ogv")


def with_sound(path: Path, *, seconds: int) -> Path:
    """Write 40 frames of VP8, with that many seconds of silence unless they are 0."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libvpx", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("libopus", rate=48000, layout="mono") if seconds else None
        pictures = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
        packets = [p for each in pictures for p in video.encode(av.VideoFrame.from_ndarray(each, format="rgb24"))]
        packets += video.encode()
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000 * seconds), np.int16), layout="mono")
            silence.sample_rate = 48000
            packets += [*audio.encode(silence), *audio.encode()]
        for packet in packets:
            container.mux(packet)
    return path


def test_a_cut_transport_stream_is_refused(tmp_path):
    path = write(tmp_path / "complete.ts", options=X264)
    data, rng = path.read_bytes(), Random(0)
    for size in cuts(path, rng):
        (tmp_path / "cut.ts").write_bytes(data[:size])
        if size % 188:
            with pytest.raises(VideoError, match=r"cut off: the file ends in the middle of a packet"):
                listing(tmp_path / "cut.ts")
    (tmp_path / "cut.ts").write_bytes(data[: 188 * 20])  # It cannot be told from a shorter one.
    assert listing(tmp_path / "cut.ts").times
    m2ts = b"".join(bytes(4) + data[i : i + 188] for i in range(0, len(data), 188))
    (tmp_path / "disc.m2ts").write_bytes(m2ts)
    assert probe(tmp_path / "disc.m2ts").frames == 60
    (tmp_path / "disc.m2ts").write_bytes(m2ts[:-7])
    with pytest.raises(VideoError, match="in the middle of a packet"):
        probe(tmp_path / "disc.m2ts")


# --- properties ---

UNITS = st.builds(Fraction, st.just(1), st.sampled_from([25, 1000, 12800, 90000]))
PARTS = st.lists(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 5000)), min_size=1, max_size=12), max_size=4)


def stamps_of(parts, *, unit: Fraction, begins: list[int]) -> Stamps:
    """Return stamps of parts without reordering; each part is a list of (step from the frame before, duration)."""
    shown, durations, keys = [], [], []
    for part, begin in zip(parts, begins, strict=False):
        shown += [begin + at for at in running_sums(step for step, _ in part)]
        durations += [duration for _, duration in part]
        keys += [True] + [False] * (len(part) - 1)
    return Stamps(shown, durations, unit, 25.0, decoded=shown, keys=keys)


@given(PARTS.filter(len), UNITS, st.lists(st.integers(-100_000, 100_000), min_size=4, max_size=4), st.integers())
def test_times_start_at_zero_rise_and_ignore_a_shift(parts, unit, begins, shift):
    stamps = stamps_of(parts, unit=unit, begins=begins)
    shown, ordered = stamps.settled()
    assert len(shown.times) == len(ordered) == len(stamps.shown)
    assert shown.times[0] == 0
    assert list(shown.times) == sorted(shown.times)
    assert shown.end > shown.times[-1]
    assert stamps_of(parts, unit=unit, begins=[b + shift for b in begins]).settled()[0] == shown


@given(PARTS.filter(len), UNITS)
def test_parts_that_start_again_add_up(parts, unit):
    """A part that begins before the earlier part began is a new one, and the lengths of all parts add up."""
    begins = [-1_000_000 * i for i in range(len(parts))]
    complete = stamps_of(parts, unit=unit, begins=begins).settled()[0]
    alone = [stamps_of([part], unit=unit, begins=[0]).settled()[0] for part in parts]
    assert complete.end == pytest.approx(sum(each.end for each in alone))
    starts = [0.0, *running_sums(each.end for each in alone)]
    expected = [start + time for start, each in zip(starts, alone, strict=False) for time in each.times]
    assert complete.times == pytest.approx(expected)


@given(st.lists(st.one_of(st.none(), st.integers(-(2**33), 2**33)), min_size=1, max_size=30), UNITS)
def test_any_stamps_give_times_that_never_fall(shown, unit):
    stamps = Stamps(shown, [0] * len(shown), unit, 25.0, decoded=shown, keys=[False] * len(shown))
    times, ordered = stamps.settled()
    follower = Follower(Timeline(times, ordered, unit, 25.0))
    followed = [follower(stamp) for stamp in shown]
    assert list(times.times) == sorted(times.times)
    assert followed == sorted(followed)
    assert times.end > times.times[-1]
    follower = Follower(Timeline(times, ordered, unit, 25.0))
    assert [follower(stamp) for stamp in ordered] == list(times.times)
    assert follower.agrees


@pytest.mark.parametrize("shift", [3, 2**40, 2**61])
def test_a_part_after_a_mean_duration_that_is_no_integer_ignores_a_shift(shift):
    """The first part ends at 5/3 + 5 units, which a float near a large stamp cannot hold."""
    shown = [0, 1, 3, 5, 0, 1, 2]
    near, far = (
        Stamps(stamps, [0] * 7, Fraction(1, 25), 25.0, decoded=stamps, keys=[True, *[False] * 3, True, False, False])
        for stamps in (shown, [stamp + shift for stamp in shown])
    )
    assert far.settled()[0] == near.settled()[0]


@given(st.permutations(range(8)))
def test_stamps_in_coding_order_are_sorted(order):
    stamps = Stamps(order, [1] * 8, Fraction(1, 25), 25.0, decoded=range(8), keys=[True] + [False] * 7)
    assert stamps.settled()[0] == FrameTimes(tuple(i / 25 for i in range(8)), 8 / 25)


@given(PARTS.filter(len), UNITS, st.floats(0, 500), st.floats(0.001, 100))
def test_a_part_has_the_frames_that_begin_in_it_or_the_one_on_screen(parts, unit, start, length):
    shown = stamps_of(parts, unit=unit, begins=[0, 0, 0, 0]).settled()[0]
    begun = [i for i, time in enumerate(shown.times) if start <= time < start + length]
    on_screen = [i for i, time in enumerate(shown.times) if time <= start][-1:] if start < shown.end else []
    assert list(shown.between(start, start + length)) == (begun or on_screen)


def test_unexpected_frames_follow_their_own_stamps():
    """A frame that no packet promised ends the agreement; later stamps that start again go on after it."""
    unit = Fraction(1, 25)
    promised = FrameTimes((0.0, 0.04, 0.08, 0.12), 0.16)
    follower = Follower(Timeline(promised, (10, 11, 12, 13), unit, 25.0))
    times = [follower(stamp) for stamp in (10, 11, 13, 14, 50, 2, 3)]
    assert times == pytest.approx([0, 0.04, 0.12, 0.16, 1.6, 1.64, 1.68])
    assert not follower.agrees
