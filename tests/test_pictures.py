"""Pictures as one-frame videos and picture folders as videos: order, gaps, orientation, bit depth, damage."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import PIL.Image
import pytest
import torch
from mutations import KINDS, mutated

import clipvid
from clipvid.data.check import check
from clipvid.data.dataset import ClipDataset
from clipvid.errors import VideoError
from clipvid.registry import DECODERS
from clipvid.video.decode import probe, read, read_video
from clipvid.video.transforms import VideoTransform


def picture(path: Path, level: int, *, size: tuple[int, int] = (20, 12), **options) -> Path:
    """Save a picture of one grey level with a bright top left corner; `size` is (width, height)."""
    pixels = np.full((size[1], size[0], 3), level, np.uint8)
    pixels[:4, :4] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


def levels(clip: torch.Tensor) -> list[int]:
    return clip[:, 0, -1, -1].tolist()


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(1, 13):  # img_2 must come before img_10
        picture(tmp_path / "frames" / f"img_{number}.png", 10 * number)
    (tmp_path / "frames" / "notes.txt").write_text("not a frame")
    (tmp_path / "frames" / ".img_99.png").write_bytes(b"")
    return tmp_path / "frames"


@pytest.mark.parametrize("backend", DECODERS)
def test_a_picture_is_a_video_of_one_frame(tmp_path, backend):
    path = picture(tmp_path / "one.png", 70)
    clip = read(path, backend=backend)
    assert (clip.dtype, clip.shape, levels(clip)) == (torch.uint8, (1, 3, 12, 20), [70])
    assert int(clip[0, 0, 0, 0]) == 255
    info = probe(path, backend=backend)
    assert (info.frames, info.height, info.width, info.codec, info.fps, info.duration) == (1, 12, 20, "png", 0, 0)
    assert levels(read_video(path, 5)) == [70] * 5


def test_a_folder_of_pictures_is_a_video_in_the_order_of_their_numbers(folder):
    assert levels(read(folder)) == [10 * n for n in range(1, 13)]
    assert levels(read(folder, [11, 0, 9])) == [120, 10, 100]
    assert probe(folder).frames == 12
    assert levels(read_video(folder, 3, sampler="linspace")) == [10, 60, 120]


def test_frame_numbers_may_have_a_constant_step(tmp_path):
    for number in (0, 5, 10, 15):
        picture(tmp_path / f"v3_{number:05d}.jpg", number, quality=100)
    assert levels(read(tmp_path)) == pytest.approx([0, 5, 10, 15], abs=2)


def test_a_missing_number_is_an_error_and_not_another_frame(folder):
    (folder / "img_7.png").unlink()
    with pytest.raises(VideoError, match=r"pictures are missing between img_6.png and img_8.png"):
        read(folder, [0])
    picture(folder / "img_07.jpg", 0)
    assert len(read(folder)) == 12
    picture(folder / "img_007.jpg", 0)
    with pytest.raises(VideoError, match="have the same number"):
        probe(folder)


def test_names_without_numbers_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="a folder without pictures; give a video file"):
        read(tmp_path / "empty")
    picture(tmp_path / "two" / "cat.png", 1)
    assert len(read(tmp_path / "two")) == 1
    picture(tmp_path / "two" / "dog1.png", 1)
    with pytest.raises(VideoError, match=r"need numbers in their names, cat.png has none"):
        read(tmp_path / "two")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = picture(tmp_path / "turned.jpg", 40, exif=exif, quality=100)
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    clip, info = read(path)[0, 0], probe(path)
    assert tuple(clip.shape) == (info.height, info.width) == ((12, 20) if orientation < 5 else (20, 12))
    bright_corners = [corner for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)) if clip[corner] > 150]
    assert bright_corners == [corners[orientation]]


def test_depths_and_transparency_become_8_bit_rgb(tmp_path):
    PIL.Image.fromarray(np.full((4, 6), 200 * 257, np.uint16)).save(tmp_path / "deep.png")
    PIL.Image.fromarray(np.full((4, 6), 80, np.uint8)).save(tmp_path / "grey.png")
    PIL.Image.fromarray(np.full((4, 6, 4), (9, 8, 7, 0), np.uint8)).save(tmp_path / "clear.png")
    PIL.Image.fromarray(np.full((4, 6), 90, np.uint8)).convert("P").save(tmp_path / "palette.png")
    PIL.Image.fromarray(np.full((4, 6), 1.5, np.float32)).save(tmp_path / "real.tiff")
    pixels = {
        name: read(tmp_path / f"{name}.png")[0, :, 0, 0].tolist() for name in ("deep", "grey", "clear", "palette")
    }
    assert pixels == {"deep": [200] * 3, "grey": [80] * 3, "clear": [9, 8, 7], "palette": [90] * 3}
    PIL.Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "integer.tiff")
    for name in ("real", "integer"):
        with pytest.raises(VideoError, match="values of unknown range"):
            read(tmp_path / f"{name}.tiff")


def test_files_that_are_not_one_complete_picture_are_refused(tmp_path):
    intact = picture(tmp_path / "intact.png", 3, size=(200, 200)).read_bytes()
    (tmp_path / "cut.png").write_bytes(intact[: len(intact) // 2])
    (tmp_path / "text.jpg").write_text("hello " * 20)
    (tmp_path / "nothing.jpg").write_bytes(b"")
    (tmp_path / "noise.webp").write_bytes(bytes(range(256)) * 8)
    frames = [PIL.Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 255)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    for name, reason in {
        "cut.png": "damaged or cut off",
        "text.jpg": "plain text, not a video",
        "nothing.jpg": "an empty file",
        "noise.webp": "not a picture that Pillow can open",
        "moving.png": "2 pictures in one file",
        "absent.png": "no such file",
    }.items():
        with pytest.raises(VideoError, match=reason) as caught:
            read(tmp_path / name)
        assert caught.value.path == tmp_path / name
        with pytest.raises(VideoError, match=reason):
            probe(tmp_path / name)


def test_a_corrupted_picture_is_read_or_refused(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    kinds = {"a.png": {}, "a.jpg": {"exif": exif}, "a.tiff": {}, "a.webp": {"exif": exif}, "a.bmp": {}, "a.ppm": {}}
    refused = 0
    for name, options in kinds.items():
        intact = picture(tmp_path / name, 90, size=(40, 30), **options).read_bytes()
        for number in range(120):
            rng = Random(f"{name} {number}")
            (tmp_path / name).write_bytes(mutated(intact, KINDS[number % len(KINDS)], rng))
            for call in (probe, read):
                try:
                    call(tmp_path / name)
                except VideoError:
                    refused += 1
    assert refused > 200


def test_a_data_set_check_decodes_pictures(tmp_path):
    for number in range(3):
        intact = picture(tmp_path / "clips" / f"{number}.jpg", 60 * number, size=(80, 60)).read_bytes()
    (tmp_path / "clips" / "2.jpg").write_bytes(intact[: len(intact) * 2 // 3])
    report = check(clipvid.open_dataset("videos", tmp_path / "clips"), tmp_path / "out", workers=1)
    assert (report.readable, len(report.unreadable)) == (2, 1)


def test_pictures_have_a_time_limit_too(folder):
    with pytest.raises(VideoError, match="took more than"):
        read(folder, time_limit=1e-9)


def test_sizes_may_differ_if_fit_makes_them_equal(tmp_path):
    picture(tmp_path / "1.png", 10)
    picture(tmp_path / "2.png", 20, size=(24, 24))
    with pytest.raises(VideoError, match=r"differ in size \(20x12, 24x24\)"):
        read(tmp_path)
    assert read(tmp_path, fit=VideoTransform(8).fit).shape == (2, 3, 8, 8)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = picture(tmp_path / "big.png", 5, size=(64, 64))
    monkeypatch.setattr("clipvid.video.backends.limits.PIXEL_LIMIT", 1000)
    with pytest.raises(VideoError, match="64x64 exceed the limit"):
        read(path)


def test_pictures_have_no_times(folder):
    with pytest.raises(VideoError, match="pictures have no times; leave out start and end"):
        read_video(folder, 2, start=0.5)


def test_class_folders_may_contain_pictures_and_picture_folders(tmp_path):
    for name in ("cat", "dog"):
        for clip in ("a", "b"):
            for number in range(3):
                picture(tmp_path / name / clip / f"{number}.png", 100)
    picture(tmp_path / "dog" / "still.jpg", 100)
    data = clipvid.open_dataset("folder", tmp_path)
    assert data.classes == ("cat", "dog")
    assert [r.path.name for r in data] == ["a", "b", "a", "b", "still.jpg"]
    clips = [ClipDataset(data, frames=3, transform=VideoTransform(8))[i].video for i in range(5)]
    assert {tuple(clip.shape) for clip in clips} == {(3, 3, 8, 8)}
    assert len(clipvid.open_dataset("videos", tmp_path)) == 5


def test_a_table_and_a_protocol_find_folders_of_frames(tmp_path):
    for clip in ("video7010", "video7011"):
        for number in range(3):
            picture(tmp_path / "frames" / clip / f"{number}.png", 100)
    (tmp_path / "captions.csv").write_text("path,caption\nframes/video7010,one\nframes/video7011,two\n")
    assert len(clipvid.open_dataset("csv", tmp_path / "captions.csv")) == 2
    (tmp_path / "msrvtt.csv").write_text(
        "key,vid_key,video_id,sentence\nret0,msr7010,video7010,one\nret1,msr7011,video7011,two\n"
    )
    data = clipvid.open_dataset(
        "msrvtt-1ka", tmp_path / "frames", annotations=tmp_path / "msrvtt.csv", allow_missing=True
    )
    assert [r.path.name for r in data] == ["video7010", "video7011"]
    dotted = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    picture(tmp_path / "movies" / dotted / "0.png", 100)
    picture(tmp_path / "movies" / dotted.replace("54.129", "54.777") / "0.png", 100)
    (tmp_path / "lsmdc.csv").write_text(f"{dotted}\t0\t1\t0\t1\tShe looks up.\n")
    movies = clipvid.open_dataset(
        "lsmdc-1k", tmp_path / "movies", annotations=tmp_path / "lsmdc.csv", allow_missing=True
    )
    assert [r.path.name for r in movies] == [dotted]
    report = check(data, tmp_path / "check", workers=1)
    assert report.readable == 2
    assert report.duplicates == ((str(data[0].path), str(data[1].path)),)
