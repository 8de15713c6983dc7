"""VideoTransform compared with open_clip's preprocessing of the same image, which uses Pillow."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import PIL
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from clipvid.video import transforms
from clipvid.video.transforms import VideoTransform

SHAPES = [(240, 320), (321, 241), (64, 40), (33, 500), (1, 1), (2, 2), (17, 1), (300, 300), (48, 48), (720, 90)]
SIZES = [48, (48, 48), (40, 64), (64, 40)]


def pictures(height: int, width: int, *, frames: int = 1) -> torch.Tensor:
    """Return frames with smooth parts, hard edges and noise, which reveal a shift or another kernel."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([255 * y / max(1, height - 1), 255 * x / max(1, width - 1), (x + y) % 256])
    noise = rng.integers(0, 256, (frames, 3, height, width))
    mixed = np.where((x // 5 + y // 7) % 2, smooth, noise)
    return torch.from_numpy(mixed.astype(np.uint8))


def open_clip_preprocessed(frame: torch.Tensor, config: PreprocessCfg) -> torch.Tensor:
    return image_transform_v2(config, is_train=False)(Image.fromarray(frame.permute(1, 2, 0).numpy()))


def in_grey_levels(normalised: torch.Tensor, config: PreprocessCfg) -> torch.Tensor:
    return (normalised * torch.tensor(config.std)[:, None, None] + torch.tensor(config.mean)[:, None, None]) * 255


@pytest.fixture(autouse=True)
def _order_of_the_installed_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with a Pillow before 13 in its own order of passes; clipvid always has the order of Pillow 13."""
    if int(PIL.__version__.partition(".")[0]) < 13:
        monkeypatch.setattr(transforms, "_pass_order", lambda source, size: (-1, -2))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_equals_open_clip_within_two_grey_levels(interpolation, resize_mode, size):
    config = PreprocessCfg(size=size, interpolation=interpolation, resize_mode=resize_mode, fill_color=77)
    transform = VideoTransform.from_config(vars(config))
    for shape in SHAPES:
        if resize_mode == "longest" and min(shape) * 48 < 0.5 * max(shape):
            continue  # open_clip rounds the short side to 0 and fails
        if (resize_mode, shape) == ("longest", (17, 1)):
            continue
        frame = pictures(*shape)[0]
        expected = in_grey_levels(open_clip_preprocessed(frame, config), config)
        actual = in_grey_levels(transform(frame), config)
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 2.01, shape


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(16, 4096), (4096, 16), (8, 100), (3, 700), (1, 4000)], ids=str)
def test_a_narrow_strip_equals_open_clip(shape, interpolation):
    config = PreprocessCfg(size=32, interpolation=interpolation)
    frame = pictures(*shape)[0]
    actual = in_grey_levels(VideoTransform.from_config(vars(config))(frame), config)
    assert (actual - in_grey_levels(open_clip_preprocessed(frame, config), config)).abs().max() <= 2.01


def test_a_narrow_strip_is_cropped_before_it_is_resized(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("resized the entire strip")

    monkeypatch.setattr("clipvid.video.transforms.resize", refuse)
    assert VideoTransform(224).fit(pictures(16, 4096)).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_a_batch_equals_its_frames_one_by_one(resize_mode):
    transform = VideoTransform(32, resize_mode=resize_mode)
    clips = pictures(50, 70, frames=6).unflatten(0, (2, 3))  # (B, T, 3, H, W)
    each = torch.stack([transform.fit(frame) for frame in clips.flatten(0, 1)]).unflatten(0, (2, 3))
    assert transform.fit(clips).shape == (2, 3, 3, 32, 32)
    assert torch.equal(transform.fit(clips), each)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_fitting_twice_changes_nothing(resize_mode):
    transform = VideoTransform((40, 64), resize_mode=resize_mode)
    once = transform.fit(pictures(90, 70))
    assert torch.equal(transform.fit(once), once)


def test_memory_layout_of_frames_changes_only_rounding():
    frames = pictures(90, 70)
    last = frames.to(memory_format=torch.channels_last)
    transform = VideoTransform(32)
    assert (transform.fit(frames).int() - transform.fit(last).int()).abs().max() <= 1


def test_normalize_equals_its_formula():
    frames = pictures(8, 8)
    transform = VideoTransform(8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = (frames.double() / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[
        :, None, None
    ]
    torch.testing.assert_close(transform.normalize(frames).double(), expected, atol=1e-6, rtol=0)
    assert frames.dtype == torch.uint8  # the input is unchanged


def test_config_may_come_from_json():
    config = json.loads(json.dumps(vars(PreprocessCfg(size=(32, 48), mean=(0.5, 0.5, 0.5)))))
    transform = VideoTransform.from_config(config, flip=0.5)
    assert (transform.size, transform.mean, transform.flip) == ((32, 48), (0.5, 0.5, 0.5), 0.5)
    assert hash(transform) == hash(VideoTransform.from_config(config, flip=0.5))


def test_augment_without_options_equals_fit():
    frames = pictures(50, 70, frames=3)
    assert torch.equal(VideoTransform(32).augment(frames, Random(0)), VideoTransform(32).fit(frames))


def test_augment_treats_all_frames_of_a_clip_alike():
    still = pictures(60, 80).expand(4, -1, -1, -1)
    transform = VideoTransform(32, crop_scale=(0.08, 1.0), flip=0.5)
    for seed in range(20):
        clip = transform.augment(still, Random(seed))
        assert clip.shape == (4, 3, 32, 32)
        assert (clip == clip[:1]).all()


def test_augment_is_reproducible_and_draws_one_random_number():
    frames = pictures(60, 80)
    transform = VideoTransform(32, crop_scale=(0.08, 1.0), flip=0.5)
    assert torch.equal(transform.augment(frames, Random(1)), transform.augment(frames, Random(1)))
    assert not torch.equal(transform.augment(frames, Random(1)), transform.augment(frames, Random(2)))
    after = []
    for options in ({}, {"flip": 0.5}, {"crop_scale": (0.08, 1.0)}):
        rng = Random(5)
        VideoTransform(32, **options).augment(frames, rng)
        after.append(rng.random())
    assert len(set(after)) == 1


def test_flip_mirrors_with_its_probability():
    frames = pictures(32, 32)
    transform, rng = VideoTransform(32, flip=0.25), Random(0)
    mirrored = sum(torch.equal(transform.augment(frames, rng), frames.flip(-1)) for _ in range(400))
    assert 70 <= mirrored <= 130


def test_random_crops_have_areas_within_crop_scale():
    y, x = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    frames = torch.stack([y, x, x]).to(torch.uint8)
    transform, rng = VideoTransform(100, crop_scale=(0.25, 0.5)), Random(0)
    areas, lefts = [], set()
    for _ in range(100):
        crop = transform.augment(frames, rng).int()
        spans = [int(crop[i].max() - crop[i].min()) + 1 for i in (0, 1)]
        areas.append(spans[0] * spans[1] / 200**2)
        lefts.add(int(crop[1].min()))
    assert min(areas) == pytest.approx(0.25, abs=0.03)
    assert max(areas) == pytest.approx(0.5, abs=0.03)
    assert len(lefts) > 40


def test_augmenting_a_strip_falls_back_to_its_middle_square():
    strip = torch.zeros(3, 4, 400, dtype=torch.uint8)
    strip[:, :, 198:202] = 255
    assert VideoTransform(16, crop_scale=(0.9, 1.0)).augment(strip, Random(0)).min() == 255


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (48, 64), (37, 90), (33, 33)], ids=str)
def test_three_crops_are_the_ends_and_the_middle_of_the_resized_long_side(shape):
    frames = pictures(*shape, frames=2)
    size = [int(32 * side / min(shape)) for side in shape]
    resized = F.resize(frames, size, InterpolationMode.BICUBIC, antialias=True)
    middle = [round((side - 32) / 2) for side in size]
    expected = [
        resized[..., :32, :32],
        resized[..., middle[0] : middle[0] + 32, middle[1] : middle[1] + 32],
        resized[..., -32:, -32:],
    ]
    crops = VideoTransform(32).crops(frames, 3)
    assert torch.equal(crops, torch.stack(expected))


@pytest.mark.parametrize("size", [32, (24, 40)], ids=str)
@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (8, 300), (300, 8), (1, 1), (32, 32), (24, 40)], ids=str)
def test_the_middle_and_the_single_crop_equal_fit(shape, size):
    frames, transform = pictures(*shape, frames=2), VideoTransform(size)
    crops = transform.crops(frames, 3)
    assert torch.equal(crops[1], transform.fit(frames))
    assert torch.equal(transform.crops(frames, 1), transform.fit(frames)[None])
    assert crops.shape == (3, 2, 3, *transform.target)


def test_the_crops_of_a_strip_equal_crops_of_the_resized_strip():
    strip = pictures(16, 400)
    resized = F.resize(strip, [32, 800], InterpolationMode.BICUBIC, antialias=True)
    crops = VideoTransform(32).crops(strip, 3)
    for crop, expected in zip(crops, (resized[..., :32], resized[..., 384:416], resized[..., -32:]), strict=True):
        assert (crop.int() - expected.int()).abs().max() <= 1


def test_the_three_crops_of_a_square_frame_are_equal():
    crops = VideoTransform(16).crops(pictures(40, 40)[0], 3)
    assert torch.equal(crops, crops[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_other_crops_are_refused_with_the_reason(mode):
    with pytest.raises(ValueError, match=f"of resize_mode 'shortest', got '{mode}', which shows the whole frame"):
        VideoTransform(16, resize_mode=mode).crops(pictures(20, 30), 3)
    with pytest.raises(ValueError, match=r"count must be 1 \(the middle\) or 3 .* got 2"):
        VideoTransform(16).crops(pictures(20, 30), 2)


@pytest.mark.parametrize(
    ("frames", "got"),
    [
        (torch.zeros(3, 8, 8), r"got torch.float32 \(3, 8, 8\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"got torch.uint8 \(8, 8, 3\)"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), r"got torch.uint8 \(3, 0, 8\)"),
    ],
)
def test_other_tensors_are_refused_with_the_fix(frames, got):
    for act in (VideoTransform(8).fit, lambda frames: VideoTransform(8).augment(frames, Random(0))):
        with pytest.raises(ValueError, match=rf"must be uint8 \(..., 3, H, W\), {got}; values 0 to 255"):
            act(frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be .* >= 1, got 0"),
        ({"interpolation": "nearest"}, "unknown interpolation 'nearest'; choose one of bicubic, bilinear, random"),
        ({"resize_mode": "crop"}, "unknown resize_mode 'crop'; choose one of shortest, longest, squash"),
        ({"std": (1.0, 0.0, 1.0)}, "std > 0"),
        ({"crop_scale": (0.5, 1.5)}, r"in \(0, 1\], got \(0.5, 1.5\)"),
        ({"flip": 2.0}, r"in \[0, 1\], got 2.0"),
    ],
)
def test_wrong_settings_are_refused_with_value_and_choices(options, message):
    with pytest.raises(ValueError, match=message):
        VideoTransform(**options)


def test_unknown_config_entries_are_an_error():
    with pytest.raises(ValueError, match=r"unknown preprocess settings \['sizes'\]"):
        VideoTransform.from_config({"sizes": 224})
