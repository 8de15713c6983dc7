"""Augmentation of clips: one random number decides the same change for all frames; torch's generators stay as is."""

from __future__ import annotations

import threading
from random import Random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.video.augment import CONST_CL, ContrastiveView, RandAugment, crop_box
from clipvid.video.transforms import VideoTransform

PLAIN = {"jitter": 0.0, "grey": 0.0, "blur": 0.0}


def clip_of(frames: int, height: int = 40, width: int = 48) -> torch.Tensor:
    rng = np.random.default_rng(frames * height)
    smooth = np.linspace(0, 200, width) + np.linspace(0, 30, height)[:, None]
    noise = rng.integers(0, 26, (frames, 3, height, width))
    return torch.from_numpy((smooth + noise).astype(np.uint8))


def still(frames: int) -> torch.Tensor:
    return clip_of(1).expand(frames, -1, -1, -1)


def operation(seed: int) -> str:
    """Return the operation that torchvision samples first with our seed."""
    names = tuple(v2.RandAugment._AUGMENTATION_SPACE)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(Random(seed).getrandbits(63))
        return names[int(torch.randint(len(names), ()))]


def test_every_operation_of_randaugment_changes_all_frames_of_a_clip_alike():
    operations = set()
    for seed in range(80):
        operations.add(operation(seed))
        changed = RandAugment(1, 20)(still(4), Random(seed))
        assert (changed == changed[:1]).all(), operation(seed)
    assert operations == set(v2.RandAugment._AUGMENTATION_SPACE)


def test_randaugment_changes_a_single_frame_as_it_does_within_its_clip():
    frames, augment = clip_of(3), RandAugment(2, 15)
    for seed in range(30):
        alone = torch.stack([augment(frame, Random(seed)) for frame in frames])
        assert torch.equal(augment(frames, Random(seed)), alone)


def test_randaugment_equals_torchvisions():
    frames = clip_of(2)
    for seed in range(10):
        torch.manual_seed(Random(seed).getrandbits(63))
        assert torch.equal(RandAugment(2, 9)(frames, Random(seed)), v2.RandAugment(2, 9)(frames))


@pytest.mark.parametrize(
    "change",
    [RandAugment(2, 10), lambda f, rng: CONST_CL[0].crop(f, rng, size=(16, 16)), CONST_CL[1].recolour],
    ids=["RandAugment", "crop", "recolour"],
)
def test_an_augmentation_takes_one_number_from_its_rng_and_none_from_torchs(change, monkeypatch):
    def reseeded(_):
        raise AssertionError("the generators of the GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded)
    before, rng, other = torch.get_rng_state(), Random(4), Random(4)
    first = change(clip_of(2), rng)
    other.getrandbits(64)
    assert rng.random() == other.random()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(change(clip_of(2), Random(4)), first)
    assert any(not torch.equal(change(clip_of(2), Random(seed)), first) for seed in range(5, 10))


def test_a_transform_adds_randaugment_after_the_same_crop_and_mirror_image():
    plain = VideoTransform(32, crop_scale=(0.2, 1.0), flip=0.5)
    layered = VideoTransform(32, crop_scale=(0.2, 1.0), flip=0.5, rand_layers=1, rand_magnitude=0)
    frames, equal = clip_of(2, 60, 80), 0
    for seed in range(60):
        equal += torch.equal(plain.augment(frames, Random(seed)), layered.augment(frames, Random(seed)))
    # at magnitude 0, 10 of the 14 operations and Posterize to 8 bits change nothing; Solarize inverts only 255
    assert 30 < equal < 60


def test_a_transform_with_randaugment_takes_one_number_and_treats_frames_alike():
    transform, rng, other = VideoTransform(32, flip=0.5, rand_layers=2), Random(3), Random(3)
    clip = transform.augment(still(4), rng)
    assert (clip == clip[:1]).all()
    other.getrandbits(64)
    assert rng.random() == other.random()
    frames = clip_of(3)
    for seed in range(10):
        alone = torch.stack([transform.augment(frame, Random(seed)) for frame in frames])
        assert torch.equal(transform.augment(frames, Random(seed)), alone)


@pytest.mark.parametrize("aspect", [(0.5, 2.0), (3 / 4, 4 / 3)])
def test_crops_have_the_requested_area_and_aspect_ratio(aspect):
    rng = Random(0)
    boxes = [crop_box(1000, 1000, scale=(0.3, 1.0), aspect=aspect, rng=rng) for _ in range(4000)]
    areas, shapes = np.array([[h * w / 1e6, w / h] for _, _, h, w in boxes]).T
    assert [areas.min(), areas.max()] == pytest.approx([0.3, 1.0], abs=0.03)
    assert [shapes.min(), shapes.max()] == pytest.approx(aspect, rel=0.02)
    assert all(0 <= top <= 1000 - h and 0 <= left <= 1000 - w for top, left, h, w in boxes)


def test_a_view_is_cropped_to_its_size_and_mirrored_half_the_time():
    frames = clip_of(2)
    uncropped = ContrastiveView(crop_scale=(1.0, 1.0), aspect=(48 / 40, 48 / 40))
    rng, mirrored = Random(0), 0
    for _ in range(200):
        crop = uncropped.crop(frames, rng, size=(40, 48))
        mirrored += torch.equal(crop, frames.flip(-1))
        assert torch.equal(crop, frames) or torch.equal(crop, frames.flip(-1))
    assert 75 <= mirrored <= 125
    assert CONST_CL[0].crop(frames, rng, size=(16, 24)).shape == (2, 3, 16, 24)


@pytest.mark.parametrize("contrastive_view", CONST_CL, ids=["first", "second"])
def test_a_view_treats_all_frames_of_a_clip_alike(contrastive_view):
    for seed in range(20):
        view = contrastive_view.recolour(contrastive_view.crop(still(3), Random(seed), size=(32, 32)), Random(seed))
        assert (view == view[:1]).all()
        assert view.dtype == torch.uint8


def test_colours_of_a_clip_change_as_if_its_frames_were_one_picture():
    """Contrast changes about the mean of the clip, so a clip that grows brighter still does."""
    frames = torch.cat([clip_of(1) // 2, clip_of(1), clip_of(1) // 2 + 100])
    contrastive_view = ContrastiveView(blur=0.0, solarise=0.5)
    for seed in range(20):
        tall = contrastive_view.recolour(frames.transpose(0, 1).flatten(1, 2)[None], Random(seed))[0]  # (3, T·H, W)
        expected = tall.unflatten(1, (3, -1)).transpose(0, 1)
        assert torch.equal(contrastive_view.recolour(frames, Random(seed)), expected)


def test_blur_is_torchvisions_gaussian_over_a_tenth_of_the_height():
    noise = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
    blur = ContrastiveView(**{**PLAIN, "blur": 1.0})
    for seed in range(5):
        rng = Random(Random(seed).getrandbits(64))
        _ = [rng.random() for _ in range(3)]  # the decisions on jitter, grey and blur
        expected = F.gaussian_blur(noise, [7, 7], [rng.uniform(0.1, 2.0)] * 2)
        assert (blur.recolour(noise, Random(seed)).int() - expected.int()).abs().max() <= 1


def test_grey_equals_the_channels_and_solarise_inverts_bright_pixels():
    frames, rng = clip_of(2), Random(0)
    grey = ContrastiveView(**{**PLAIN, "grey": 1.0}).recolour(frames, rng)
    assert (grey == grey[:, :1]).all()
    solar = ContrastiveView(**PLAIN, solarise=1.0).recolour(frames, rng)
    assert torch.equal(solar, torch.where(frames < 128, frames, 255 - frames))


def test_jitter_of_zero_strength_changes_at_most_the_rounding():
    changed = ContrastiveView(**{**PLAIN, "jitter": 1.0}, strength=0.0).recolour(clip_of(2), Random(0))
    assert (changed.int() - clip_of(2).int()).abs().max() <= 1


def test_each_change_happens_as_often_as_its_probability_says():
    frames = clip_of(1, 20, 20)
    for name, share in (("jitter", 0.8), ("grey", 0.2), ("blur", 0.1), ("solarise", 0.2)):
        contrastive_view, rng = ContrastiveView(**{**PLAIN, name: share}), Random(0)
        changed = sum(not torch.equal(contrastive_view.recolour(frames, rng), frames) for _ in range(400))
        assert changed == pytest.approx(400 * share, abs=40), name


def test_the_two_views_have_the_settings_of_const_cl():
    first, second = CONST_CL
    assert (first.crop_scale, first.aspect, first.flip) == ((0.3, 1.0), (0.5, 2.0), 0.5)
    assert (first.jitter, first.strength, first.grey, first.blur, first.solarise) == (0.8, 1.0, 0.2, 1.0, 0.0)
    assert (second.blur, second.solarise) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandAugment(-1), "magnitude an integer from 0 to 30, got -1 and 10"),
        (lambda: VideoTransform(8, rand_magnitude=31), "magnitude an integer from 0 to 30, got 0 and 31"),
        (lambda: ContrastiveView(crop_scale=(0.5, 1.5)), r"in \(0, 1\], got \(0.5, 1.5\)"),
        (lambda: ContrastiveView(aspect=(0.0, 2.0)), r"aspect must be .* > 0, got \(0.0, 2.0\)"),
        (lambda: ContrastiveView(strength=3.0), r"strength must be in \[0, 2.5\], got 3.0"),
        (lambda: ContrastiveView(grey=1.5), r"grey must be a probability in \[0, 1\], got 1.5"),
        (lambda: TrainConfig(rand_augment=-1), "rand_augment must be an integer >= 0, got -1; give 0 or more"),
        (lambda: TrainConfig(rand_magnitude=31), "rand_magnitude must be within 0 to 30, got 31; the default is 10"),
        (lambda: TrainConfig(mixup=-0.1), "mixup must be >= 0 and finite, got -0.1"),
        (lambda: TrainConfig(mixup=float("nan")), "mixup must be >= 0 and finite, got nan"),
        (
            lambda: TrainConfig(cache_taps=True, rand_augment=2),
            "leave out rand_augment or the cache, or cache augmented views",
        ),
        (
            lambda: TrainConfig(task="recognition", cache_taps=True, mixup=0.3, flip=0.5),
            "leave out mixup, or the cache",
        ),
        (lambda: TrainConfig(mixup=0.3), "mixup is for task 'recognition', this one is 'retrieval'"),
        (lambda: TrainConfig(task="selfsup", label_smoothing=0.1), "label_smoothing is for task 'recognition'"),
        (lambda: TrainConfig(task="recognition", temperature=0.1), "temperature is for task 'retrieval'"),
        (lambda: TrainConfig(task="recognition", learn_temperature=True), "learn_temperature is for task"),
        (lambda: TrainConfig(cache_taps=True, data_config=DataConfig(spatial_views=3)), "data_config.spatial_views=3"),
    ],
)
def test_errors_name_the_wrong_value_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_randaugment_is_reproducible_while_another_thread_draws_random_numbers():
    """Decoding threads augment during a training step, and its dropout draws from torch's generator."""
    frames, finished = clip_of(1), threading.Event()
    expected = RandAugment(2, 9)(frames, Random(3))

    def drawing() -> None:
        while not finished.is_set():
            torch.rand(1)

    other = threading.Thread(target=drawing)
    other.start()
    try:
        assert all(torch.equal(RandAugment(2, 9)(frames, Random(3)), expected) for _ in range(50))
    finally:
        finished.set()
        other.join()
