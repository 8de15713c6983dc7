"""Broken, awkward and non-video files: each is read or refused with a clear reason, quickly, in loader workers too."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from clipvid.errors import VideoError
from clipvid.registry import DECODERS
from clipvid.video.decode import probe, read, read_video
from clipvid.video.transforms import VideoTransform

HOSTILE = Path(__file__).parents[2] / "shared" / "data" / "hostile"
FIT = VideoTransform(224).fit
SECONDS = 10
REASONS = {  # pattern of each error message; every other file in the folder must be readable
    "zero_bytes.mp4": r"an empty file \(0 bytes\)",
    "text_renamed.mp4": "plain text, not a video",
    "html_error_page.mp4": "a web page",
    "git_lfs_pointer.mp4": "git lfs pull",
    "random_bytes.mp4": r"not a video that FFmpeg can open \(Invalid data",
    "truncated_no_moov.mp4": "index .moov box. is missing, the file is incomplete",
    "truncated_faststart.mp4": "cut off: 11 of 32 announced packets",
    "truncated.mkv": "cut off: 0.52 s of 1.28 s are in the file",
    "audio_only.mp4": r"no video stream \(it has audio\)",
    "subtitles_only.mkv": r"no video stream \(it has subtitle\)",
    "no_frames.mkv": "no frames",
    "cover_art_only.mp3": r"no video stream \(it has audio\)",
    "png_renamed.mp4": "a still picture .PNG., not a video",
    "corrupted_midstream.mp4": "28 of 50 frames decode, then Invalid data",
    "invalid_bitstream.webm": "0 of an unknown number of frames decode",
    "encrypted.mp4": "encrypted",
}


def hostile() -> list[dict[str, str]]:
    if not HOSTILE.is_dir():
        return []
    with (HOSTILE / "hostile.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


ROWS = hostile()
FILES = [row["file"] for row in ROWS]


def outcome(path: Path, backend: str = "pyav") -> tuple[int, ...] | VideoError:
    try:
        return tuple(read_video(path, 12, fit=FIT, backend=backend).shape)
    except VideoError as error:
        return error


def test_the_list_names_every_file_of_the_folder(shared_data):
    assert sorted(FILES) == sorted(path.name for path in HOSTILE.iterdir() if path.name != "hostile.csv")
    assert set(REASONS) == {row["file"] for row in ROWS if row["kind"] != "valid"}


@pytest.mark.parametrize("row", ROWS, ids=FILES)
def test_each_file_is_read_or_refused_with_a_reason(shared_data, row, capfd):
    path, start = HOSTILE / row["file"], time.monotonic()
    result = outcome(path)
    assert time.monotonic() - start < SECONDS
    assert capfd.readouterr() == ("", "")  # FFmpeg writes nothing to the terminal
    if row["kind"] == "valid":
        assert result == (12, 3, 224, 224)
        assert probe(path).frames >= 1
    else:
        assert isinstance(result, VideoError)
        assert result.path == path
        assert str(path) in str(result)
        with pytest.raises(VideoError, match=REASONS[row["file"]]) as caught:
            probe(path)
        assert caught.value.reason == result.reason


BIG = pytest.mark.slow  # 35 megapixels: decord resizes frames only after it has decoded them all


@pytest.mark.parametrize("row", [pytest.param(r, marks=[BIG] if "huge" in r["file"] else []) for r in ROWS], ids=FILES)
def test_decord_reads_like_pyav_or_says_why_not(shared_data, row):
    start = time.monotonic()
    result = outcome(HOSTILE / row["file"], "decord")
    assert time.monotonic() - start < SECONDS
    if row["kind"] != "valid":
        assert isinstance(result, VideoError)
    elif isinstance(result, VideoError):
        assert "decord does not read" in result.reason
    else:
        ours, theirs = (read_video(HOSTILE / row["file"], 1, fit=FIT, backend=name) for name in list(DECODERS)[:2])
        assert (ours.int() - theirs.int()).abs().max() <= 2


class Outcomes(Dataset):
    """The outcome of each file, decided in the worker process."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, ...] | VideoError:
        return outcome(HOSTILE / self.files[index])


def test_a_loader_worker_has_the_same_outcomes(shared_data):
    files = [file for file in FILES if "huge" not in file]  # only slow, and read in the main process
    loader = DataLoader(Outcomes(files), batch_size=None, num_workers=1, timeout=60)
    results = dict(zip(files, loader, strict=True))
    refused = {name: result for name, result in results.items() if isinstance(result, VideoError)}
    assert set(refused) == set(REASONS)
    assert {result.path for result in refused.values()} == {HOSTILE / name for name in REASONS}
    assert {tuple(result) for name, result in results.items() if name not in refused} == {(12, 3, 224, 224)}


def test_a_single_frame_is_repeated_to_fill_the_clip(shared_data):
    clip = read_video(HOSTILE / "single_frame.mp4", 12)
    assert torch.equal(clip, clip[:1].expand(12, -1, -1, -1))
    assert read_video(HOSTILE / "single_frame.mp4", 12, sampler="linspace").shape[0] == 1  # the caller pads


def test_frames_of_different_sizes_need_fit_and_the_error_names_the_sizes(shared_data):
    with pytest.raises(VideoError, match=r"differ in size \(96x64, 160x120\); pass fit="):
        read(HOSTILE / "resolution_change.ts")
    assert read(HOSTILE / "resolution_change.ts", [0, 1]).shape == (2, 3, 120, 160)
    assert read(HOSTILE / "resolution_change.ts", [-1 % 24]).shape == (1, 3, 64, 96)


def test_timestamps_are_relative_to_the_first_frame(shared_data):
    info = probe(HOSTILE / "starts_at_one_hour.mkv")
    assert info.times == pytest.approx([i / 25 for i in range(24)], abs=0.001)
    assert info.duration == pytest.approx(0.96, abs=0.01)
    clip = read_video(HOSTILE / "starts_at_one_hour.mkv", 50, sampler="linspace", start=0.1, end=0.5)
    assert torch.equal(clip, read(HOSTILE / "starts_at_one_hour.mkv", range(3, 13)))


def test_intact_frames_before_the_damage_can_be_read_by_index(shared_data):
    path = HOSTILE / "corrupted_midstream.mp4"
    assert read(path, [0, 20]).shape[0] == 2
    with pytest.raises(VideoError, match="28 of 50 frames decode"):
        read(path, [40])


def test_black_stays_black(shared_data):
    assert int(read(HOSTILE / "all_black.mp4").max()) <= 2


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> dict[str, bytes]:
    """Bytes of small videos of noise without sound, by name: noise spreads the bytes evenly over the length."""
    folder, contents = tmp_path_factory.mktemp("intact"), {}
    rng = np.random.default_rng(0)
    for name, options in {
        "clip.mkv": {},
        "clip.avi": {},
        "clip.flv": {},
        "clip.mp4": {"movflags": "faststart"},
    }.items():
        with av.open(str(folder / name), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=25, options={"bf": "0", "g": "5"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(50):
                picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        contents[name] = (folder / name).read_bytes()
    return contents


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi", "clip.flv", "clip.mp4"])
def test_a_file_cut_anywhere_is_refused(intact, tmp_path, name, part):
    (tmp_path / name).write_bytes(intact[name])
    assert probe(tmp_path / name).frames == 50
    (tmp_path / name).write_bytes(intact[name][: int(part * len(intact[name]))])
    for call in (probe, read_video):
        with pytest.raises(VideoError, match=r"cut off|damaged"):
            call(tmp_path / name)


def test_a_live_recording_without_duration_is_not_reported_as_cut_off(intact, tmp_path):
    with av.open(str(tmp_path / "live.mkv"), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(20):
            picture = np.full((48, 64, 3), 10 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert probe(tmp_path / "live.mkv").frames == 20


def test_text_and_still_pictures_are_refused_whatever_their_suffix(tmp_path):
    (tmp_path / "notes.txt").write_text("one\ntwo\n" * 50)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(64))
    with pytest.raises(VideoError, match="plain text, not a video"):
        probe(tmp_path / "notes.txt")
    with pytest.raises(VideoError, match=r"a still picture \(JPEG\)"):
        probe(tmp_path / "photo.jpg")
