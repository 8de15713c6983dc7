"""decord and torchcodec give PyAV's frames or refuse the file with the reason; neither ever gives a wrong frame."""

from __future__ import annotations

from pathlib import Path

import pytest
from numbered import WRITTEN, seen, write_all

from clipvid.errors import MissingExtraError, VideoError
from clipvid.registry import DECODERS
from clipvid.video.decode import probe, read, read_video


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("written"))


FAITHFUL = ("closed.mp4", "closed.mkv", "refresh.mp4", "fragments.mp4", "mpeg4.mp4", "motion.avi")


@pytest.mark.parametrize("name", WRITTEN)
def test_decord_gives_the_right_frames_or_refuses(written, name):
    try:
        frames = read(written[name], [59, 0, 31, 31, 10, 9], backend="decord")
    except VideoError as error:
        refusal = error
    else:
        refusal = None
        assert (frames.int() - read(written[name], [59, 0, 31, 31, 10, 9]).int()).abs().max() <= 2
    assert (refusal is None) == (name in FAITHFUL)
    assert refusal is None or (refusal.backend, refusal.reason[-20:]) == ("decord", "; use backend='pyav'")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("videos/bears.mp4", "edit lists"),
        ("videos/classroom.gif", "GIF"),
        ("videos/space_telescope.mp4", "several video streams"),
        ("videos/flower_opening.webm", "VP8"),
        ("videos_formats/vp9_10bit.webm", "VP9"),
        ("videos_formats/av1_test_card.mkv", "AV1"),
        ("videos_formats/one_pixel.mp4", "a side below 16 pixels"),
        ("videos_formats/h264_10bit.mp4", "more than 8 bits"),
        ("videos_formats/h265_frame_numbers.mp4", "open groups of pictures"),
    ],
)
def test_decord_refuses_files_that_it_would_read_wrongly_and_says_why(shared_data, name, kind):
    for call in (probe, read, read_video):
        with pytest.raises(VideoError, match=f"decord does not read .*{kind}") as caught:
            call(shared_data / name, backend="decord")
        assert caught.value.backend == "decord"


DECORD_READS = ["videos/cleaning_pool_part0.mp4", "videos/pelicans.avi", "videos/paper_rot90.mp4", "videos/asl_eat.mkv"]


@pytest.mark.parametrize("name", [*DECORD_READS, "videos_formats/rot_270.mov"])
def test_decord_agrees_with_pyav_on_plain_files(shared_data, name):
    path = shared_data / name
    ours = read_video(path, 12)
    assert (read_video(path, 12, backend="decord").int() - ours.int()).abs().max() <= 2
    assert probe(path, backend="decord") == probe(path)
    clip = read_video(path, 3, start=0.05, end=0.4, backend="decord").int() - read_video(path, 3, start=0.05, end=0.4)
    assert clip.abs().max() <= 2


def torchcodec_works() -> bool:
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ModuleNotFoundError("No module named 'torchcodec'"), r"pip install 'clipvid\[torchcodec\]'"),
        (RuntimeError("Could not load libtorchcodec.\nand much more"), r"\(Could not load libtorchcodec.\); install"),
    ],
)
def test_without_torchcodec_or_its_ffmpeg_the_error_says_what_to_install(written, monkeypatch, error, advice):
    def fail(name: str) -> None:
        raise error

    assert DECODERS["torchcodec"]  # clipvid's own module must be imported before imports fail
    monkeypatch.setattr("clipvid.runtime.optional.importlib.import_module", fail)
    with pytest.raises(MissingExtraError, match=advice):
        read(written["closed.mp4"], backend="torchcodec")


@pytest.mark.parametrize("name", WRITTEN)
def test_torchcodec_gives_the_right_frames_or_refuses(written, name):
    if not torchcodec_works():
        pytest.skip("the extra torchcodec, or an FFmpeg that it can load, is not installed")
    try:
        frames = read(written[name], [59, 0, 31, 31, 10, 9], backend="torchcodec")
    except VideoError as error:
        refusal = error
    else:
        refusal = None
        assert seen(frames) == [59, 0, 31, 31, 10, 9]
    assert (refusal is not None) == (
        name in ("b_frames.avi", "mpeg4.avi", "mpeg2.mpg", "closed.ts", "vp8.webm", "vp9.webm")
    )
    assert refusal is None or "torchcodec does not read" in refusal.reason


@pytest.mark.parametrize("name", ["videos/bears.mp4", "videos/paper_rot90.mp4", "videos_formats/av1_test_card.mkv"])
def test_torchcodec_agrees_with_pyav_on_edits_rotation_and_av1(shared_data, name):
    if not torchcodec_works():
        pytest.skip("the extra torchcodec, or an FFmpeg that it can load, is not installed")
    path = shared_data / name
    assert probe(path, backend="torchcodec") == probe(path)
    difference = read_video(path, 12, backend="torchcodec").float() - read_video(path, 12).float()
    assert difference.abs().mean() < 0.2
