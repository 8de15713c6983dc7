"""encode_windows: equal to encode_video for each window, one tower pass per frame, constant memory."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numbered import WRITTEN, write

import clipvid
from clipvid.errors import VideoError
from clipvid.models.factory import attach
from clipvid.video.decode import read, stream


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "long.mp4")  # 60 frames, 25 per second


@pytest.fixture
def model(tiny_clip) -> clipvid.VideoCLIP:
    torch.manual_seed(0)
    model = attach(tiny_clip, "stan", branch_kwargs={"depth": 2})
    for name, parameter in model.branch.named_parameters():
        if "gate" in name:
            torch.nn.init.constant_(parameter, 0.5)
    return model


def encoded(model, path, **options) -> clipvid.models.sliding_window.Windows:
    parts = list(model.encode_windows(path, precision="32-true", **options))
    return clipvid.models.sliding_window.Windows(
        *(torch.cat([getattr(p, f) for p in parts]) for f in ("video", "frames", "starts", "ends"))
    )


@torch.no_grad()
def encode_each(model, path, rows: torch.Tensor) -> torch.Tensor:
    model.eval()
    every = torch.stack([model.transform.fit(frame) for frame in read(path)])
    return torch.cat([model.encode_video(every[row][None]) for row in rows])


@pytest.mark.parametrize(
    ("window", "stride", "every", "chunk", "batch_size"),
    [(12, 1, 2, 32, 8), (8, 3, 1, 5, 2), (4, 9, 1, 7, 3), (5, 2, 3, 64, 1), (12, 12, 5, 1, 4), (60, 1, 1, 32, 8)],
)
def test_every_window_equals_encode_video_of_its_frames(model, path, window, stride, every, chunk, batch_size):
    windows = encoded(
        model, path, window=window, stride=stride, every=every, tower_batch_size=chunk, batch_size=batch_size
    )
    frames = list(range(0, 60, every))
    starts = list(range(0, len(frames) - window + 1, stride))
    if starts[-1] != len(frames) - window:
        starts.append(len(frames) - window)
    assert windows.frames.tolist() == [frames[start : start + window] for start in starts]
    torch.testing.assert_close(windows.video, encode_each(model, path, windows.frames), atol=1e-5, rtol=0)
    assert windows.starts.tolist() == pytest.approx([frames[start] / 25 for start in starts])
    assert windows.ends.tolist() == pytest.approx([frames[start + window - 1] / 25 for start in starts])


@pytest.mark.parametrize("branch", ["mean", "posterior", "divided", "vivit2", "stan-release", "timesformer"])
def test_every_kind_of_branch_encodes_windows(path, tiny_clip, branch):
    torch.manual_seed(1)
    options = {"temporal_depth": 1} if branch == "vivit2" else {}
    options |= {"depth": 1} if branch not in ("mean", "timesformer") else {}
    if branch == "timesformer":
        options = {"depth": 2, "width": 32, "heads": 2, "patch": 16, "image_size": 96, "frames": 4}
    model = attach(tiny_clip, branch, branch_kwargs=options)
    windows = encoded(model, path, window=4, stride=20, tower_batch_size=16)
    torch.testing.assert_close(windows.video, encode_each(model, path, windows.frames), atol=1e-5, rtol=0)


def test_each_frame_passes_the_tower_once(model, path, monkeypatch):
    frames, reads = [], type(model).reads
    monkeypatch.setattr(type(model), "reads", lambda self, v, **k: frames.append(v.shape[1]) or reads(self, v, **k))
    encoded(model, path, window=12, stride=1, tower_batch_size=13)
    assert sum(frames) == 60
    assert max(frames) == 13


def test_a_video_shorter_than_a_window_gives_one_masked_window(model, tmp_path):
    path = write(tmp_path / "short.mp4", stamps=range(5))
    windows = encoded(model, path, window=8)
    assert windows.frames.tolist() == [[0, 1, 2, 3, 4, 4, 4, 4]]
    clip = torch.stack([model.transform.fit(frame) for frame in read(path)])[[0, 1, 2, 3, 4, 4, 4, 4]]
    mask = torch.tensor([[True] * 5 + [False] * 3])
    with torch.no_grad():
        torch.testing.assert_close(windows.video, model.encode_video(clip[None], mask=mask), atol=1e-5, rtol=0)


def test_fps_selects_frames_at_any_frame_rate(path, tmp_path):
    assert [index for index, *_ in stream(path, fps=5)] == list(range(0, 60, 5))
    assert [index for index, *_ in stream(path, fps=2)] == [0, 13, 25, 38, 50]
    assert [index for index, *_ in stream(path, fps=100)] == list(range(60))
    slow = write(tmp_path / "vfr.mp4", stamps=[0, 1, 2, 30, 31, 60, 61, 62, 90])
    assert [index for index, *_ in stream(slow, fps=1)] == [0, 3, 5, 8]
    numbers, times, pictures = zip(*stream(path, every=20), strict=True)
    assert (numbers, times) == ((0, 20, 40), pytest.approx((0, 0.8, 1.6)))
    assert torch.equal(torch.stack(pictures), read(path, [0, 20, 40]))


def test_times_are_correct_if_a_container_stores_them_in_coding_order(tmp_path):
    codec, options, b_frames, fps = WRITTEN["b_frames.avi"]
    path = write(tmp_path / "b_frames.avi", codec=codec, options=options, b_frames=b_frames, fps=fps)
    assert [time for _, time, _ in stream(path)] == pytest.approx([i / fps for i in range(60)])
    assert [index for index, *_ in stream(path, fps=12.5)] == list(range(0, 60, 2))


def test_windows_of_pictures_have_no_times(model, tmp_path):
    import PIL.Image

    for i in range(6):
        PIL.Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    windows = encoded(model, tmp_path, window=4, stride=2)
    assert windows.frames.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert math.isnan(windows.starts[0])
    with pytest.raises(VideoError, match="pictures have no times, so fps=2 cannot be applied"):
        encoded(model, tmp_path, fps=2)


def test_wrong_options_and_damaged_files_are_refused(model, path, tmp_path, shared_data):
    for options in ({"window": 0}, {"stride": 0}, {"tower_batch_size": 0}, {"batch_size": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be an integer >= 1, got"):
            model.encode_windows(path, **options)  # raised before the first iteration
    with pytest.raises(ValueError, match="not both"):
        model.encode_windows(path, every=2, fps=3)
    with pytest.raises(ValueError, match="fps > 0"):
        model.encode_windows(path, fps=0)
    with pytest.raises(VideoError, match="28 of 50 frames decode"):
        encoded(model, shared_data / "hostile" / "corrupted_midstream.mp4")


def test_the_model_is_in_eval_mode_while_it_encodes_and_in_its_own_mode_between_windows(model, path, monkeypatch):
    modes, encode = [], type(model).encode_video
    monkeypatch.setattr(
        type(model), "encode_video", lambda self, *a, **k: modes.append(self.training) or encode(self, *a, **k)
    )
    model.train()
    model.branch.eval()
    first = model.encode_windows(path, window=8, stride=16)
    second = model.encode_windows(path, window=8, stride=16)
    next(first), next(second)
    first.close()
    assert model.training
    assert not any(part.training for part in model.branch.modules())
    assert not any(modes)
    model.eval()


def memory_mib(field: str) -> float:
    """Return the memory of this process in MiB: VmRSS (resident) or VmHWM (peak)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resets the peak of memory in /proc")
def test_an_hour_of_video_needs_constant_memory(model, tmp_path):
    path = tmp_path / "hour.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "250"})
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        for i in range(25 * 3600):
            picture = np.full((96, 128, 3), i % 200, np.uint8)
            picture[:, i % 120 : i % 120 + 8] = 255
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    for _ in model.encode_windows(write(tmp_path / "short.mp4"), window=12):
        pass  # loads everything that stays in memory
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    resident = memory_mib("VmRSS")
    windows = encoded(model, path, window=12, stride=1, fps=2)
    assert memory_mib("VmHWM") - resident < 300
    assert len(windows) == 7200 - 11
    rows = [0, 1234, 7188]
    frames = read(path, windows.frames[rows].flatten().tolist(), fit=model.transform.fit).unflatten(0, (3, 12))
    with torch.no_grad():
        torch.testing.assert_close(windows.video[rows], model.encode_video(frames), atol=1e-5, rtol=0)
