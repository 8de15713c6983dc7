"""Reading videos: the right frames, upright and exact, of files of known content and of real files of many formats."""

from __future__ import annotations

import csv
import gc
import os
import pickle
from pathlib import Path
from random import Random

import av
import ffmpeg
import numpy as np
import pytest
import torch
from numbered import FRAMES, WRITTEN, seen, write, write_all

from clipvid.errors import MissingExtraError, VideoError
from clipvid.registry import DECODERS
from clipvid.video.decode import VideoInfo, probe, read, read_video
from clipvid.video.sampling import sample


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("written"))


@pytest.mark.parametrize("name", WRITTEN)
def test_every_index_gives_its_frame(written, name):
    assert seen(read(written[name])) == list(range(FRAMES))
    indices = [59, 0, 31, 31, 10, 9, 11, 58]
    assert seen(read(written[name], indices)) == indices


@pytest.mark.parametrize("name", WRITTEN)
def test_probe_reports_the_properties_of_a_written_video(written, name):
    info = probe(written[name])
    fps = WRITTEN[name][3]
    assert (info.frames, info.height, info.width, info.rotation) == (FRAMES, 48, 64, 0)
    assert info.fps == pytest.approx(float(fps), rel=0.01)
    assert info.duration == pytest.approx(FRAMES / fps, abs=0.01)
    assert info.times == pytest.approx([i / float(fps) for i in range(FRAMES)], abs=0.002)
    assert info.path == written[name]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_part_in_seconds_holds_its_frames(written, name):
    fps = float(WRITTEN[name][3])
    numbers = seen(read_video(written[name], 100, sampler="linspace", start=19.5 / fps, end=40.5 / fps))
    assert numbers == list(range(20, 41))
    assert seen(read_video(written[name], 3, end=8.5 / fps)) == sample("uniform", 9, 3)
    assert seen(read_video(written[name], 100, sampler="linspace", start=54.5 / fps)) == list(range(55, FRAMES))


def test_the_start_of_a_part_is_inclusive_and_its_end_exclusive(written):
    assert seen(read_video(written["closed.mp4"], 9, sampler="linspace", start=0.4, end=0.52)) == [10, 11, 12]


def test_a_part_in_which_no_frame_starts_gives_the_frame_on_screen(written):
    assert seen(read_video(written["closed.mp4"], 2, start=0.41, end=0.43)) == [10, 10]
    assert seen(read_video(written["closed.mp4"], 1, start=2.37, end=9)) == [59]


def test_a_part_after_the_end_is_an_error(written):
    with pytest.raises(VideoError, match=r"start=2.5 s is after its last frame \(2.36 s\)"):
        read_video(written["closed.mp4"], 2, start=2.5)


def test_frames_of_variable_duration_are_found_by_time(tmp_path):
    stamps = [0, 1, 2, 10, 11, 40, 41, 42, 90, 100]
    path = write(tmp_path / "variable.mp4", stamps=stamps)
    info = probe(path)
    assert info.times == pytest.approx([stamp / 25 for stamp in stamps])
    assert info.fps == pytest.approx(10 / 4, rel=0.2)
    assert seen(read_video(path, 9, sampler="linspace", start=0.4, end=1.65)) == [3, 4, 5, 6]
    assert seen(read_video(path, 1, start=1.0, end=1.1)) == [4]
    assert seen(read(path, [8, 3])) == [8, 3]


def test_indices_may_be_a_function_of_the_number_of_frames(written):
    assert seen(read(written["open.mp4"], lambda total: [total - 1, 0, total // 2])) == [59, 0, 30]


def test_read_video_gives_the_frames_that_its_sampler_chooses(written):
    for name in ("uniform", "linspace", "dense"):
        assert seen(read_video(written["closed.mp4"], 7, sampler=name)) == sample(name, FRAMES, 7)
    random_frames = seen(read_video(written["closed.mp4"], 7, rng=Random(4)))
    assert random_frames == sample("uniform", FRAMES, 7, rng=Random(4)) != sample("uniform", FRAMES, 7)


def test_fit_is_called_once_per_distinct_frame_with_the_upright_picture(written):
    calls = []

    def half(frame: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(frame.shape))
        return frame[:, ::2, ::2]

    frames = read(written["closed.mp4"], [5, 9, 5, 2], fit=half)
    assert frames.shape == (4, 3, 24, 32)
    assert calls == [(3, 48, 64)] * 3
    assert torch.equal(frames, read(written["closed.mp4"], [5, 9, 5, 2])[:, :, ::2, ::2])


def test_an_index_past_the_end_names_the_range(written):
    with pytest.raises(VideoError, match="frame 60 was requested, it has frames 0 to 59"):
        read(written["closed.mp4"], [3, 60])
    with pytest.raises(VideoError, match="frame 99 was requested, it has frames 0 to 59"):
        read(written["closed.mp4"], lambda total: [99])


def test_wrong_arguments_are_named_before_any_file_is_opened():
    with pytest.raises(ValueError, match="indices must be integers >= 0, got -1"):
        read("absent.mp4", [-1])
    with pytest.raises(ValueError, match="indices must not be empty"):
        read("absent.mp4", [])
    with pytest.raises(ValueError, match=f"unknown backend 'opencv'; choose one of {', '.join(DECODERS)}"):
        read("absent.mp4", backend="opencv")
    with pytest.raises(ValueError, match="unknown sampler 'middle'"):
        read_video("absent.mp4", sampler="middle")
    with pytest.raises(ValueError, match="frames must be an integer >= 1, got 0"):
        read_video("absent.mp4", 0)
    with pytest.raises(ValueError, match=r"end must be a number of seconds above start=2.0, got 1.0"):
        read_video("absent.mp4", start=2.0, end=1.0)
    with pytest.raises(ValueError, match=r"start must be a number of seconds >= 0, .* got -1.0"):
        read_video("absent.mp4", start=-1.0)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_all_eight_orientations_come_upright(tmp_path, degrees, mirrored):
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :24], stored[:16, 24:], stored[16:, :24] = 60, 120, 240  # every corner differs
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    upright = np.rot90(stored, degrees // 90)
    upright = upright[:, ::-1] if mirrored else upright
    picture = read(tmp_path / "turned.mp4", [1])[0].permute(1, 2, 0).numpy()
    assert picture.shape == upright.shape
    assert np.abs(picture.astype(int) - upright).max() <= 6
    info = probe(tmp_path / "turned.mp4")
    assert (info.height, info.width) == upright.shape[:2]


def captions() -> list[tuple[str, dict[str, str]]]:
    data, rows = Path(__file__).parents[2] / "shared" / "data", []
    for folder in ("videos", "videos_formats"):
        if (data / folder / "captions.csv").is_file():
            with (data / folder / "captions.csv").open(encoding="utf-8") as file:
                rows += [(f"{folder}/{row['file']}", row) for row in csv.DictReader(file)]
    return rows


REAL = captions()
NAMES = [name for name, _ in REAL]
SMALL = [name for name, row in REAL if int(row["frames"]) * int(row["width"]) * int(row["height"]) < 15_000_000]


def test_the_real_videos_are_present(shared_data):
    assert len(REAL) == 64
    assert len(SMALL) > 15


def check_annotated(info: VideoInfo, row: dict[str, str]) -> None:
    """Compare metadata with the properties annotated in captions.csv."""
    sides = (int(row["height"]), int(row["width"]))
    assert info.frames == len(info.times) == int(row["frames"])
    assert (info.height, info.width) == (sides[::-1] if int(row["rotation"]) % 180 else sides)
    assert info.rotation % 360 == int(row["rotation"]) % 360
    assert info.codec == row["codec"]
    assert info.fps == pytest.approx(float(row["fps"]), abs=0.03)
    assert info.times[0] == 0
    assert list(info.times) == sorted(info.times)
    # the annotated duration is the container's: longer with its sound, shorter where the first frame starts late
    assert info.duration <= float(row["duration"]) + 0.15
    assert info.duration >= min(float(row["duration"]) - 0.5, 0.75 * float(row["duration"]))


def difference(frames: torch.Tensor, expected: torch.Tensor) -> int:
    assert frames.shape == expected.shape
    assert frames.dtype == expected.dtype == torch.uint8
    return int((torch.maximum(frames, expected) - torch.minimum(frames, expected)).max())


@pytest.mark.parametrize("name", SMALL)
def test_a_real_video_has_its_annotated_properties_and_the_frames_of_the_ffmpeg_program(shared_data, name):
    """`read_video` selects among the same frames; the written videos of as many formats are read by both."""
    info, rng = probe(shared_data / name), Random(name)
    check_annotated(info, dict(REAL)[name])
    indices = [rng.randrange(info.frames) for _ in range(6)] + [info.frames - 1]
    chosen = sorted(set(indices))
    expected = dict(zip(chosen, ffmpeg.frames(shared_data / name, (info.height, info.width), chosen), strict=True))
    assert difference(read(shared_data / name, indices), torch.stack([expected[k] for k in indices])) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", DECODERS)
@pytest.mark.parametrize("name", NAMES)
def test_twenty_frames_of_every_real_video_equal_those_of_the_ffmpeg_program(shared_data, name, backend):
    info = probe(shared_data / name)
    indices = sorted(Random(name).sample(range(info.frames), min(20, info.frames)))
    try:
        frames = read(shared_data / name, indices, backend=backend)
    except MissingExtraError:
        pytest.skip("the extra torchcodec, or an FFmpeg that it can load, is not installed")
    except VideoError as error:
        assert backend != "pyav"
        pytest.skip(error.reason)
    assert difference(frames, ffmpeg.frames(shared_data / name, (info.height, info.width), indices)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_frame_of_every_real_video_equals_that_of_the_ffmpeg_program(shared_data, name):
    info = probe(shared_data / name)
    check_annotated(info, dict(REAL)[name])
    for first in range(0, info.frames, 50):
        indices = list(range(first, min(first + 50, info.frames)))
        expected = ffmpeg.frames(shared_data / name, (info.height, info.width), indices)
        assert difference(read(shared_data / name, indices), expected) <= 2


def test_frames_read_one_by_one_equal_those_of_a_full_read(shared_data):
    path = shared_data / "videos_formats" / "h265_frame_numbers.mp4"
    alone = torch.cat([read(path, [k]) for k in range(10)])
    assert torch.equal(alone, read(path))
    assert len({frame.numpy().tobytes() for frame in alone}) == 10


def test_hidden_frames_are_not_counted(shared_data):
    totals = []

    def last(total: int) -> list[int]:
        totals.append(total)
        return [total - 1]

    path = shared_data / "videos_formats" / "vp9_10bit.webm"
    assert torch.equal(read(path, last)[0], read(path)[-1])
    assert totals == [80, 72]  # packets promise 80 frames, 72 are shown


def test_the_first_of_several_video_streams_is_read(shared_data):
    assert read(shared_data / "videos" / "space_telescope.mp4", [0]).shape == (1, 3, 180, 320)


AWKWARD = [
    "concat:a.mp4",
    "file:b.mp4",
    "-i",
    "%03d.mp4",
    "a|b.mp4",
    "pipe:0",
    "http:x.mp4",
    "line\nbreak",
    "~",
    "a?b=c",
]


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("name", AWKWARD)
def test_a_file_name_is_never_a_protocol_or_an_option(written, tmp_path, monkeypatch, name, backend):
    (tmp_path / name).write_bytes(written["closed.mp4"].read_bytes())
    monkeypatch.chdir(tmp_path)
    assert seen(read(name, [7], backend=backend)) == [7]  # relative
    assert seen(read(tmp_path / name, [7], backend=backend)) == [7]


def test_a_name_that_is_not_unicode_works(written, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    Path(name).write_bytes(written["closed.mp4"].read_bytes())
    assert seen(read(name, [7])) == [7]


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_path_that_is_no_readable_file_is_refused_with_the_reason(tmp_path, backend):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name, reason in {
        "absent.mp4": "no such file",
        "dangling": "no such file",
        "": "a folder without pictures",
        "pipe": "not a regular file",
        "n" * 300: "cannot be opened: File name too long",
        "nul\0": "cannot be opened",
    }.items():
        with pytest.raises(VideoError, match=reason) as caught:
            read(str(tmp_path / name), backend=backend)
        assert caught.value.path == tmp_path / name
    with pytest.raises(VideoError, match="download the address first"):
        probe("https://example.org/clip.mp4", backend=backend)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_read_permission_is_refused_with_the_reason(written, tmp_path):
    (tmp_path / "locked.mp4").write_bytes(written["closed.mp4"].read_bytes())
    (tmp_path / "locked.mp4").chmod(0)
    with pytest.raises(VideoError, match="Permission denied"):
        read(tmp_path / "locked.mp4")


def test_a_playlist_cannot_make_the_decoder_open_other_files(written, tmp_path):
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{written['closed.ts']}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile {written['closed.mp4'].name}\n",
    }
    for name, text in lists.items():
        path = written["closed.mp4"].parent / name
        path.write_text(text)
        with pytest.raises(VideoError, match="plain text, not a video"):
            read(path)


def test_frames_beyond_the_pixel_limit_are_refused(written, monkeypatch):
    monkeypatch.setattr("clipvid.video.backends.limits.PIXEL_LIMIT", 1000)
    with pytest.raises(VideoError, match="frames of 64x48 exceed the limit of 1000 pixels"):
        read(written["closed.mp4"])


def test_errors_survive_pickling(written):
    with pytest.raises(VideoError) as caught:
        read(written["closed.mp4"], [99])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path, copy.reason) == (str(caught.value), caught.value.path, caught.value.reason)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_no_decoder_outlives_its_call(written, shared_data):
    """A decoder left to the garbage collector hangs a loader worker that is forked before the collection."""
    errors = []

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    read(written["closed.mp4"], [0])  # start the threads that stay for good
    gc.collect()
    gc.disable()
    try:
        before = threads()
        for _ in range(3):
            read(written["closed.mp4"], [3])
            read_video(written["vp9.webm"], 4, end=1.0)
            probe(written["hevc.mp4"])
            for name in ("corrupted_midstream.mp4", "invalid_bitstream.webm", "resolution_change.ts"):
                with pytest.raises(VideoError) as caught:
                    read(shared_data / "hostile" / name)
                errors.append(caught.value)
        assert threads() == before
    finally:
        gc.enable()


def test_video_info_prints_its_fields_with_their_names(written):
    info = probe(written["closed.mp4"])
    assert isinstance(info, VideoInfo)
    assert "frames=60, fps=25.0, duration=2.4" in repr(info)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_video_that_takes_too_long_is_an_error(written, backend):
    for name, indices in (("closed.mp4", [50]), ("closed.mp4", [0, 20, 50]), ("mpeg4.mp4", [3])):
        with pytest.raises(VideoError, match=r"took more than 1e-09 s to decode; allow more with time_limit"):
            read(written[name], indices, backend=backend, time_limit=1e-9)
        assert len(read(written[name], indices, backend=backend, time_limit=60)) == len(indices)
    with pytest.raises(VideoError, match="took more than"):
        read_video(written["closed.mp4"], 4, start=1, time_limit=1e-9)
    with pytest.raises(ValueError, match="time_limit must be a number of seconds > 0, or None, got 0"):
        read(written["closed.mp4"], time_limit=0)


def test_every_clip_of_a_data_set_has_a_time_limit(written):
    from clipvid.config.data_config import DataConfig
    from clipvid.data.dataset import ClipDataset
    from clipvid.data.records import Record, VideoDataset
    from clipvid.video.transforms import VideoTransform

    data = VideoDataset((Record(written["closed.mp4"]),))
    with pytest.raises(VideoError, match="took more than"):
        ClipDataset(data, frames=4, transform=VideoTransform(16), time_limit=1e-9)[0]
    with pytest.raises(ValueError, match="time_limit must be a finite number of seconds >= 0, got -1"):
        DataConfig(time_limit=-1.0)
