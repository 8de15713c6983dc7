"""Jumps to key frames: they give the same frames as decoding from the start, or are not taken."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import pytest
import torch
from numbered import FRAMES, WRITTEN, seen, write, write_all

from clipvid.video.backends import pyav
from clipvid.video.container import demux, seek
from clipvid.video.container.seek import Jump, Ladder, Packet, Units, ladder, units
from clipvid.video.decode import read, read_video
from clipvid.video.sampling import sample

JUMPED_IN = ("closed.mp4", "closed.mkv", "open.mp4", "open.mkv", "refresh.mp4", "fragments.mp4", "hevc.mp4")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """60 frames with a key frame every 10."""
    folder = tmp_path_factory.mktemp("long")
    return write(folder / "long.mp4", options={"x264-params": "keyint=10:min-keyint=10:scenecut=0"})


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """A log of how files were decoded: "jump", "refused" (a jump that missed its frames) or "start"."""
    log, jump, start = [], pyav._decode_from, pyav._decode

    def from_keys(*args, **named):
        frames = jump(*args, **named)
        log.append("refused" if frames is None else "jump")
        return frames

    monkeypatch.setattr(pyav, "_decode_from", from_keys)
    monkeypatch.setattr(pyav, "_decode", lambda *a, **k: log.append("start") or start(*a, **k))
    return log


@pytest.fixture
def always(monkeypatch) -> None:
    """Jump wherever possible, even if it saves nothing."""
    monkeypatch.setattr(seek, "WORTH", float("inf"))


@pytest.mark.parametrize("name", WRITTEN)
def test_every_frame_reached_by_a_jump_is_the_right_one(written, name, decoded, always):
    for indices in ([59], [31, 9, 10, 11], [0, 29, 30, 58], list(Random(name).sample(range(FRAMES), 8))):
        decoded.clear()
        assert seen(read(written[name], indices)) == indices
        assert decoded == (["jump"] if name in JUMPED_IN else ["start"])
    times = pyav.probe(written[name]).times
    part = [i for i, time in enumerate(times) if 1.0 <= time < 1.5]
    expected = [part[i] for i in sample("uniform", len(part), 3)]
    assert seen(read_video(written[name], 3, start=1.0, end=1.5)) == expected


def test_only_independent_key_frames_are_starts(written, tmp_path):
    """x264's intra refresh renews a picture over ten frames; containers call the first of them a key frame."""
    starts = {name: demux.listing(written[name]).ladder.starts for name in JUMPED_IN}
    assert starts["closed.mp4"] == starts["closed.mkv"] == starts["fragments.mp4"] == (0, 10, 20, 30, 40, 50)
    refreshed = write(tmp_path / "refreshed.mp4", options={"x264-params": "intra-refresh=1:keyint=10:scenecut=0"})
    assert demux.listing(refreshed).ladder.starts == (0,)
    assert starts["open.mp4"] == starts["open.mkv"] == (0,)  # the later key frames are not IDR pictures
    assert len(starts["hevc.mp4"]) > 1


def test_a_jump_is_taken_when_it_saves_enough(long, decoded):
    assert seen(read(long, [59])) == [59]
    assert decoded == ["jump"]
    decoded.clear()
    assert seen(read(long, list(range(0, 60, 5)))) == list(range(0, 60, 5))
    assert decoded == ["start"]


def test_a_jump_that_misses_its_frames_falls_back_to_the_start(long, decoded, always, monkeypatch):
    actual = demux.listing(long)
    shifted = Ladder(tuple(stamp + 1 for stamp in actual.ladder.stamps), actual.ladder.starts)
    late = Ladder(
        (*actual.ladder.stamps[:55], *(stamp + 1 for stamp in actual.ladder.stamps[55:])), actual.ladder.starts
    )
    false_start = Ladder(actual.ladder.stamps, (0, 3, 10, 20, 30, 40, 50))
    for wrong, indices in ((shifted, [52]), (late, [57]), (false_start, [5])):
        decoded.clear()
        monkeypatch.setattr(pyav, "listing", lambda path, clock, wrong=wrong: replace(actual, ladder=wrong))
        assert seen(read(long, indices)) == indices
        assert decoded == ["refused", "start"]


def test_packets_that_do_not_identify_their_frames_give_no_ladder():
    def packets(stamps, alone=(True, False, False), one=(True, True, True), hidden=(False, False, False)):
        rows = zip(stamps, alone, one, hidden, strict=True)
        return [Packet(0.0, stamp, a, h, Units(o, a)) for stamp, a, o, h in rows]

    assert ladder(packets([0, 2, 1]), container="mov,mp4", codec="h264") == Ladder((0, 1, 2), (0,))
    assert ladder(packets([0, 1, 1]), container="mov,mp4", codec="h264") is None  # one stamp twice
    assert ladder(packets([0, None, 1]), container="mov,mp4", codec="h264") is None
    assert ladder(packets([1, 0, 2]), container="mov,mp4", codec="hevc") is None  # shown before the first key frame
    assert ladder(packets([0, 1, 2], (False, True, False)), container="mov,mp4", codec="h264") is None
    assert ladder(packets([0, 1, 2], one=(True, False, True)), container="mov,mp4", codec="h264") is None
    assert ladder(packets([0, 1, 2], hidden=(False, False, True)), container="mov,mp4", codec="h264") is None
    assert ladder(packets([0, 1, 2]), container="mpegts", codec="h264") is None
    assert ladder(packets([0, 1, 2]), container="matroska,webm", codec="vp9") is None
    assert ladder([], container="mov,mp4", codec="h264") is None


def test_jumps_start_at_the_last_key_frame_before_each_frame():
    steps = Ladder(tuple(range(0, 4000, 2)), (0, 500, 1000, 1500))
    assert steps.jumps([1501, 1003, 1000]) == [
        Jump(1000, tuple(range(2000, 2008, 2))),
        Jump(1500, tuple(range(3000, 3004, 2))),
    ]
    assert steps.jumps([499, 999, 1499]) is None
    assert steps.jumps([2000]) is None
    assert steps.jumps([]) is None


def packet(*contents: bytes, lengths: bool = True) -> bytes:
    """Return NAL units after their lengths, as in MP4, or after start codes."""
    return b"".join((len(c).to_bytes(4, "big") if lengths else b"\0\0\0\1") + c for c in contents)


IDR, PLAIN, DELIMITER, RECOVERY = b"\x65\x88" + bytes(3), b"\x41\x9a" + bytes(3), b"\x09\xf0", b"\x06\x06\x01"
SECOND_SLICE = b"\x41\x1a" + bytes(3)  # part of the same picture: its first macroblock is not 0


def hevc(kind: int, *, first: bool = True, layer: int = 0) -> bytes:
    return bytes([kind << 1 | layer >> 5, (layer & 31) << 3 | 1, 0x80 if first else 0, 7])


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize(
    ("codec", "contents", "expected"),
    [
        ("h264", (DELIMITER, IDR), Units(one=True, alone=True)),
        ("h264", (DELIMITER, RECOVERY, PLAIN), Units(one=True, alone=False)),
        ("h264", (PLAIN, SECOND_SLICE), Units(one=True, alone=False)),
        ("h264", (PLAIN, PLAIN), Units(one=False, alone=False)),  # two fields, or two pictures
        ("h264", (PLAIN, b"\x0a"), Units(one=False, alone=False)),  # end of sequence
        ("h264", (b"\x0a",), Units(one=False, alone=False)),
        ("h264", (DELIMITER, b"\x65\x88" + bytes(300)), Units(one=True, alone=True)),
        ("h264", (b"\x65\x88" + b"\x7f" * 0x163,), Units(one=True, alone=True)),  # length bytes like a start code
        ("h264", (b"\x41\x9a" + b"\x7f" * 0x163,), Units(one=True, alone=False)),
        ("hevc", (hevc(19),), Units(one=True, alone=True)),
        ("hevc", (hevc(21),), Units(one=True, alone=True)),
        ("hevc", (hevc(1), hevc(1, first=False)), Units(one=True, alone=False)),
        ("hevc", (hevc(16),), Units(one=False, alone=False)),  # a broken link: pictures after it are dropped
        ("hevc", (hevc(1), hevc(36)), Units(one=False, alone=False)),
        ("hevc", (hevc(20), hevc(20, layer=1)), Units(one=True, alone=True)),  # the other view of a stereo video
    ],
)
def test_nal_units_tell_what_a_packet_holds(codec, contents, expected, lengths):
    assert units(codec, packet(*contents, lengths=lengths)) == expected


def test_a_truncated_or_empty_packet_holds_no_picture():
    assert units("h264", packet(IDR)[:-1]) == Units(one=False, alone=False)
    assert units("hevc", b"") == Units(one=False, alone=False)


def test_a_file_with_a_packet_that_gives_no_frame_is_decoded_from_the_start(tmp_path, decoded, always):
    """An end-of-sequence unit in a separate packet would shift the packet number of every later frame."""
    plain = write(tmp_path / "plain.mp4", options={"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=0"})
    with av.open(str(plain)) as source, av.open(str(tmp_path / "odd.mp4"), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, part in enumerate(p for p in source.demux(stream) if p.size):
            if number == 25:
                end = av.Packet(packet(b"\x0a"))
                end.pts, end.dts, end.time_base, end.stream = part.pts, part.dts, part.time_base, copy
                out.mux(end)
            part.pts, part.dts = (t + (512 if number >= 25 else 0) for t in (part.pts, part.dts))
            part.stream = copy
            out.mux(part)
    assert demux.listing(tmp_path / "odd.mp4").ladder is None
    assert seen(read(tmp_path / "odd.mp4", [45])) == [45]
    assert decoded == ["start"]


def test_jumps_into_real_videos_give_the_same_frames(shared_data, decoded, always, monkeypatch):
    for name in ("people_one_by_one.mp4", "earth_at_night.mp4", "his_girl_friday.mp4", "flipping_pancake.mkv"):
        path = shared_data / "videos" / name
        total = len(demux.listing(path).times)
        indices = sorted(Random(name).sample(range(total), 4))
        frames = read(path, indices)
        assert decoded.pop() == "jump"
        with monkeypatch.context() as patch:
            patch.setattr(pyav, "_decode_from", lambda *a, **k: None)
            assert torch.equal(frames, read(path, indices))


@pytest.mark.parametrize("unit", [None, Fraction(0, 1)], ids=["before PyAV 19", "PyAV 19"])
def test_a_time_stamp_without_a_unit_is_unknown(unit):
    assert demux.seconds(3, unit) is None


def test_a_unit_may_be_any_rational_number():
    """From PyAV 19 on, units are of a class of its own; an int is a rational number that is no Fraction, too."""
    assert demux.seconds(3, Fraction(1, 4)) == 0.75
    assert demux.seconds(3, 2) == 6.0
    assert demux.seconds(None, Fraction(1, 4)) is None
