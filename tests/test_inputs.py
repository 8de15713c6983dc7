"""Inputs of encode_video, encode_image and read_video: the same frames give the same bits, unclear input is refused."""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
import torch.nn.functional as F

import clipvid
from clipvid.config.data_config import DataConfig
from clipvid.errors import VideoError
from clipvid.models.factory import attach, create_model
from clipvid.models.inputs import clips_from_files, features, images_as_clips
from clipvid.video.inputs import as_clips, check_preprocessed, describe_source, local_file

FOUR = DataConfig(frames=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    created = create_model("clipvid-mini", branch_kwargs={"depth": 1})
    torch.nn.init.normal_(created.branch.fusion.gate.weight)
    return created


@pytest.fixture(scope="module")
def path(tmp_path_factory, write_video):
    frames = np.random.default_rng(0).integers(0, 255, (9, 60, 80, 3), dtype=np.uint8)
    return write_video(tmp_path_factory.mktemp("videos") / "a 100%.mp4", frames)


@pytest.fixture(scope="module")
def frames(path):
    return clipvid.read_video(path, 4)  # (T, 3, H, W)


@pytest.fixture(scope="module")
def expected(model, frames):
    with torch.no_grad():
        return model.encode_video(model.transform.fit(frames)[None])


@pytest.fixture
def memory_only(tmp_path, monkeypatch):
    """Return the folder of temporary files, empty, and let every test end with it empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_file_gives_the_embedding_of_its_frames_in_every_form(model, path, expected, memory_only):
    data = path.read_bytes()
    with open(path, "rb") as file:
        file.seek(7)
        for source in (path, str(path), path.as_uri(), data, bytearray(data), memoryview(data), io.BytesIO(data), file):
            assert torch.equal(model.encode_video(source, data_config=FOUR), expected)
        assert file.tell() == 7


def test_read_video_gives_the_same_frames_in_every_form(path, frames, memory_only):
    data = path.read_bytes()
    for source in (path.as_uri(), "FILE://localhost" + path.as_uri()[7:], data, io.BytesIO(data)):
        assert torch.equal(clipvid.read_video(source, 4), frames)


class Pipe:
    """A file object that cannot seek, such as a socket's."""

    def __init__(self, data):
        self.rest = io.BytesIO(data)

    def read(self, size=-1):
        return self.rest.read(size)


@torch.no_grad()
def test_a_list_of_files_is_encoded_in_batches_of_the_data_config(model, path, expected, monkeypatch):
    sizes, data = [], path.read_bytes()
    reads = model.reads
    monkeypatch.setattr(model, "reads", lambda clips, mask=None: sizes.append(len(clips)) or reads(clips, mask=mask))
    embedding = model.encode_video([path, Pipe(data), data], data_config=replace(FOUR, batch_size=2))
    assert sizes == [2, 1]
    torch.testing.assert_close(embedding, expected.expand(3, -1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_layout_of_an_array_gives_the_same_bits(model, frames, expected):
    last = frames.permute(0, 2, 3, 1)  # (T, H, W, 3), not contiguous
    preprocessed = model.transform(frames)
    arrays = [
        frames,
        frames[None],
        last,
        last[None],
        last.numpy(),
        np.asfortranarray(last.numpy()),
        last.numpy()[::-1, :, ::-1].copy()[::-1, :, ::-1],  # negative strides
        np.stack([last.numpy()] * 2)[::-1][:1],
        preprocessed,
        preprocessed.permute(0, 2, 3, 1).numpy(),
        preprocessed.numpy().astype(">f4"),
        preprocessed.double(),
        list(last.numpy()),  # frames
        [PIL.Image.fromarray(frame) for frame in last.numpy()],
        [last.numpy()],  # clips
    ]
    for array in arrays:
        assert torch.equal(model.encode_video(array), expected)
    read_only = last.numpy().copy()
    read_only.flags.writeable = False
    assert torch.equal(model.encode_video(read_only), expected)
    assert torch.equal(
        model.encode_video(np.stack([last.numpy()] * 2)), model.encode_video(frames[None].repeat(2, 1, 1, 1, 1))
    )


REFUSED = {
    "pixels in 0..1": (
        torch.rand(1, 2, 3, 48, 48),
        r"look like pixels; multiply by 255 and give uint8, or .*model.prep",
    ),
    "pixels in 0..255 as floats": (torch.rand(2, 3, 48, 48) * 255, "look like pixels; convert them to uint8"),
    "floats of another size": (
        torch.randn(1, 2, 3, 40, 40),
        r"frames are \(40, 40\), this base model takes \(48, 48\)",
    ),
    "NaN": (torch.full((1, 2, 3, 48, 48), float("nan")), "must be finite, got NaN"),
    "two axes": (np.zeros((5, 5), np.uint8), r"one clip, .*, got \(5, 5\); reshape it"),
    "one frame": (np.zeros((48, 48, 3), np.uint8), r"got \(48, 48, 3\); add the axis of frames with video\[None\]"),
    "six axes": (torch.zeros(1, 1, 1, 3, 48, 48, dtype=torch.uint8), r"got \(1, 1, 1, 3, 48, 48\)"),
    "colours in two places": (np.zeros((5, 3, 48, 3), np.uint8), "3 colours in one axis only, got"),
    "colours in no place": (np.zeros((5, 48, 48, 4), np.uint8), "convert grey or RGBA frames to RGB"),
    "objects": (np.array(["a.mp4", None]), r"a list of paths, got an array of object; give list\(paths\)"),
    "strings": (np.array(["a.mp4"]), r"must be an array of pixels or .*, got an array of <U5; give list\(paths\)"),
    "other integers": (np.zeros((5, 48, 48, 3), np.int64), r"got int64; convert pixels with \.astype\('uint8'\)"),
    "other integers of torch": (torch.zeros(5, 3, 48, 48, dtype=torch.int32), "got torch.int32"),
    "no frames": (np.zeros((0, 48, 48, 3), np.uint8), r"holds no frame, its shape is \(0, 48, 48, 3\)"),
    "an empty list": ([], "at least one clip, got an empty list; give one path or array"),
    "a list of both": (["a.mp4", np.zeros((5, 48, 48, 3), np.uint8)], "got str; give files and arrays separately"),
    "clips of two sizes": (
        [np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 9, 8, 3), np.uint8)],
        "of one size and dtype, got .* encode clips of different sizes one by one",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unclear_array_is_refused_with_its_shape_and_the_next_step(model, name):
    video, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        model.encode_video(video)


def test_floats_of_two_sizes_are_no_batch_of_images(model):
    images = [torch.randn(3, 48, 48), torch.randn(3, 40, 40)]
    with pytest.raises(ValueError, match=r"one size .*, got \(40, 40\), \(48, 48\); give uint8 for any size"):
        model.encode_image(images)


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"must be an array or a file .*, got int; convert it with numpy\.asarray"):
        as_clips(3)
    with pytest.raises(ValueError, match=r"or a list of either, got \w+; make a list of it, with list\(\)"):
        as_clips(Path().glob("*.mp4"))
    with pytest.raises(ValueError, match=r"got an array of object; give list\(paths\)"):
        as_clips(pd.Series(["a.mp4"], dtype=object))


def test_a_constant_float_clip_and_negative_values_are_no_pixels():
    for video in (
        torch.zeros(1, 1, 3, 4, 4),
        torch.linspace(-0.1, 1, 48).view(1, 1, 3, 4, 4),
        torch.zeros(2, dtype=torch.uint8),
    ):
        check_preprocessed(video)


def test_settings_that_do_not_apply_are_refused(model, path, frames):
    with pytest.raises(ValueError, match="data_config must be None for arrays"):
        model.encode_video(frames, data_config=FOUR)
    with pytest.raises(ValueError, match="mask must be None for files"):
        model.encode_video(path, mask=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="must have one view per video, got 3"):
        model.encode_video(path, data_config=DataConfig(frames=4, temporal_views=3))


def test_damaged_files_in_memory_are_named_and_leave_nothing_behind(model, memory_only):
    with pytest.raises(VideoError, match=r"<14 bytes>: plain text") as raised:
        model.encode_video(b"not a video...")
    assert str(memory_only) not in str(raised.value)
    with pytest.raises(VideoError, match=r"<BytesIO>: an empty file"):
        clipvid.read_video(io.BytesIO())
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ValueError, match="must be open, got the closed <BytesIO>"):
        clipvid.read_video(closed)
    with pytest.raises(ValueError, match="must be binary, got <StringIO>, which reads text; open it with mode 'rb'"):
        clipvid.read_video(io.StringIO("text"))
    with pytest.raises(ValueError, match=r"file URL of this machine, .* got 'file://server/clip\.mp4'"):
        clipvid.read_video("file://server/clip.mp4")
    with pytest.raises(VideoError, match="download the address first"):
        model.encode_video("https://example.org/clip.mp4")


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_the_temporary_file_is_private(memory_only):
    with local_file(b"data") as temporary:
        assert os.stat(os.path.dirname(temporary)).st_mode & 0o077 == 0


def test_a_picture_in_memory_is_a_video_of_one_frame(memory_only):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    for kind in ("PNG", "BMP", "TIFF", "WEBP"):
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
        frames = clipvid.read_video(file, 1)
        assert np.array_equal(frames[0].permute(1, 2, 0).numpy(), pixels)


def test_sources_are_described_by_their_name(path):
    with open(path, "rb") as file:
        assert describe_source(file) == f"<file {path}>"
    assert describe_source(str(path)) == str(path)


@torch.no_grad()
def test_short_videos_are_padded_and_masked_with_linspace(model, path):
    linspace = DataConfig(frames=12, sampler="linspace")
    clips, mask = clips_from_files([path], linspace, model.transform)
    assert (clips.shape[1], mask) == (9, None)
    assert torch.equal(model.encode_video(path, data_config=linspace), model.encode_video(clips))


def test_files_are_read_as_in_training_by_default(model, path):
    trained = attach(model.backbone, branch_kwargs={"depth": 1})
    assert trained.data_config == DataConfig()
    trained.training_record = {"data_config": {"frames": 3, "sampler": "dense", "tokens": None, "backend": "decord"}}
    assert trained.data_config == DataConfig(frames=3, sampler="dense")
    (read,) = features(trained, path)
    assert read.frames.shape[:2] == (1, 3)


@torch.no_grad()
def test_embeddings_are_normalised_only_when_asked_for(model, frames):
    video, text = model.encode_video(frames), model.encode_text(["a red circle", "a star"])
    image = model.encode_image(frames)
    for plain, unit in (
        (video, model.encode_video(frames, normalize=True)),
        (text, model.encode_text(["a red circle", "a star"], normalize=True)),
        (image, model.encode_image(frames, normalize=True)),
    ):
        assert not torch.allclose(plain.norm(dim=-1), torch.ones(len(plain)), atol=0.01)
        assert torch.equal(unit, F.normalize(plain, dim=-1))
    similarity = model.similarity(7 * video, text)
    assert similarity.shape == (1, 2)
    torch.testing.assert_close(similarity, F.cosine_similarity(video, text)[None])
    assert torch.equal(model(frames), video)
    assert float(model.logit_scale.exp()) == pytest.approx(model.backbone.logit_scale)
    assert model.logit_scale is model.backbone.clip.logit_scale


@torch.no_grad()
def test_encode_image_equals_open_clip_in_every_form(model, frames, tmp_path):
    pictures = [PIL.Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).numpy()]
    pictures[0].save(tmp_path / "a.png")
    preprocessed = torch.stack([model.preprocess(picture) for picture in pictures])
    clip = model.backbone.clip.encode_image(preprocessed)
    assert torch.equal(model.encode_image(preprocessed), clip)
    assert torch.equal(model.encode_image(pictures), clip)
    resized_by_torch = model.backbone.clip.encode_image(model.transform(frames))
    for images in (frames, frames.permute(0, 2, 3, 1).numpy(), list(frames)):
        assert torch.equal(model.encode_image(images), resized_by_torch)
    torch.testing.assert_close(resized_by_torch, clip, atol=5e-3, rtol=0)  # some pixels are rounded otherwise
    torch.testing.assert_close(model.encode_image(pictures[0]), clip[:1])
    for image in (tmp_path / "a.png", frames[0]):
        torch.testing.assert_close(model.encode_image(image), resized_by_torch[:1])


def test_encode_image_refuses_videos_and_other_objects(model, path):
    for images, message in (
        (path, r"must be the path of a picture .*; embed videos with encode_video"),
        ([], "at least one image, got an empty list"),
        (np.zeros((4, 4), np.uint8), r"must be a Pillow image, .* got shape \(4, 4\)"),
        (3, "got int; convert it"),
        (np.random.default_rng(0).random((48, 48, 3), np.float32), "look like pixels"),
        ([np.zeros((9, 9, 3), np.uint8), torch.randn(3, 40, 40)], "must have one size if they are preprocessed"),
    ):
        with pytest.raises(ValueError, match=message):
            images_as_clips(images, model.transform, model.preprocess)
