"""Frame samplers against independent versions of the rules in their papers' code, over many sizes."""

from __future__ import annotations

import doctest
from random import Random

import numpy as np
import pytest

from clipvid.video import sampling
from clipvid.video.sampling import (
    SAMPLERS,
    dense,
    linspace,
    sample,
    sample_views,
    temporal_views,
    two_clips,
    two_starts,
    uniform,
)

SIZES = [(total, frames) for total in (*range(1, 40), 97, 100, 250, 1394) for frames in (1, 2, 3, 8, 12, 16, 32)]


def segment_middles(total: int, frames: int) -> list[int]:
    """Return the frame indices of STAN's test pipeline, written out with numpy."""
    size = float(total - 1) / frames
    middles = []
    for i in range(frames):
        start, half = int(np.round(size * i)), int(size / 2)
        middles.append(start + half)
    return middles


@pytest.mark.parametrize(("total", "frames"), SIZES)
def test_uniform_takes_the_middle_of_each_segment(total, frames):
    assert uniform(total, frames) == segment_middles(total, frames)
    assert uniform(total, frames) == sorted(uniform(total, frames))


def test_uniform_of_a_hundred_frames():
    assert uniform(100, 8) == [6, 18, 31, 43, 56, 68, 80, 93]
    assert uniform(5, 12) == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]  # short: frames repeat
    assert uniform(1, 3) == [0, 0, 0]


@pytest.mark.parametrize(("total", "frames"), [(1, 4), (5, 12), (100, 8), (101, 8)])
def test_random_uniform_draws_every_frame_of_its_segment_and_no_other(total, frames):
    size = (total - 1) / frames
    segments = [set(range(round(size * i), round(size * (i + 1)) + 1)) for i in range(frames)]
    rng = Random(0)
    drawn = list(zip(*(uniform(total, frames, rng=rng) for _ in range(600)), strict=True))
    assert [set(column) for column in drawn] == segments


def test_random_sampling_repeats_with_its_seed():
    assert uniform(1000, 8, rng=Random(3)) == uniform(1000, 8, rng=Random(3)) != uniform(1000, 8, rng=Random(4))
    assert dense(1000, 8, stride=4, rng=Random(3)) == dense(1000, 8, stride=4, rng=Random(3))


@pytest.mark.parametrize(("total", "frames"), SIZES)
def test_linspace_equals_numpys_truncated(total, frames):
    expected = range(total) if total <= frames else np.linspace(0, total - 1, frames).astype(int)
    assert linspace(total, frames) == list(expected)


def test_dense_keeps_its_stride_and_is_centred():
    assert dense(100, 4, stride=8) == [37, 45, 53, 61]
    assert dense(100, 4, stride=8, start=3) == [3, 11, 19, 27]
    assert dense(25, 4, stride=8) == [0, 8, 16, 24]  # fits exactly


def test_dense_wraps_to_the_first_frame_when_the_video_is_too_short():
    assert dense(10, 4, stride=4) == [0, 4, 8, 2]
    assert dense(1, 4, stride=4) == [0, 0, 0, 0]


def test_random_dense_reaches_every_start_that_fits():
    rng = Random(0)
    clips = [dense(30, 4, stride=8, rng=rng) for _ in range(300)]
    assert {clip[0] for clip in clips} == set(range(6))
    assert {clip[-1] for clip in clips} == set(range(24, 30))


def test_one_view_is_the_plain_sample():
    assert temporal_views(100, 8, views=1) == [uniform(100, 8)]
    assert temporal_views(100, 8, views=1, stride=4) == [dense(100, 8, stride=4)]


def test_views_without_stride_divide_each_segment_evenly():
    views = np.array(temporal_views(801, 8, views=4))  # segments of 100 frames
    assert views[:, 0].tolist() == [12, 37, 62, 87]
    assert (np.diff(views, axis=1) == 100).all()


def test_dense_views_spread_from_the_first_frame_to_the_last():
    views = temporal_views(100, 4, views=3, stride=10)
    assert [view[0] for view in views] == [0, 34, 69]
    assert views[-1][-1] == 99


@pytest.mark.parametrize("n_starts", [2, 7, 50])
def test_the_gap_of_two_starts_has_the_linearly_decreasing_density(n_starts):
    rng, n = Random(0), 20_000
    starts = np.array([two_starts(n_starts, rng=rng) for _ in range(n)])
    assert ((starts >= 0) & (starts < n_starts)).all()
    gap = np.abs(starts[:, 0] - starts[:, 1])
    k = np.arange(n_starts + 1)
    cumulative = np.array([(gap < edge).mean() for edge in k])
    assert np.abs(cumulative - (2 * k / n_starts - k**2 / n_starts**2)).max() < 1.63 / n**0.5  # Kolmogorov-Smirnov, 1 %


def test_two_starts_come_in_either_order_and_anywhere_their_gap_allows():
    rng = Random(1)
    starts = [two_starts(10, rng=rng) for _ in range(20_000)]
    apart = [pair for pair in starts if pair[0] != pair[1]]
    assert sum(a < b for a, b in apart) / len(apart) == pytest.approx(0.5, abs=0.02)
    earlier = [min(pair) for pair in starts if abs(pair[0] - pair[1]) == 4]
    assert np.bincount(earlier) / len(earlier) == pytest.approx(np.full(6, 1 / 6), abs=0.03)


def test_two_clips_are_dense_clips_that_fit_into_the_video():
    rng = Random(0)
    for _ in range(200):
        for clip in two_clips(40, 8, stride=3, rng=rng):
            assert clip == list(range(clip[0], clip[0] + 24, 3))
            assert clip[-1] < 40
    assert two_clips(22, 8, stride=3, rng=rng) == (dense(22, 8, stride=3, start=0),) * 2  # room for one start


def test_two_clips_of_a_short_video_wrap_to_its_first_frame():
    clips = [clip for seed in range(60) for clip in two_clips(5, 8, stride=2, rng=Random(seed))]
    assert {clip[0] for clip in clips} == set(range(5))
    assert all(clip == dense(5, 8, stride=2, start=clip[0]) for clip in clips)
    with pytest.raises(ValueError, match="n_starts must be an integer >= 1, got 0"):
        two_starts(0, rng=Random(0))


def test_sample_views_finds_the_sampler_by_name():
    assert sample_views("uniform", 100, 4, views=3) == temporal_views(100, 4, views=3)
    assert sample_views("dense", 100, 4, views=3) == temporal_views(100, 4, views=3, stride=8)
    assert sample_views("linspace", 100, 4, views=1) == [linspace(100, 4)]
    with pytest.raises(ValueError, match=r"linspace.* got 2; choose uniform or dense"):
        sample_views("linspace", 100, 4, views=2)
    with pytest.raises(ValueError, match="unknown sampler 'unifrom'"):
        sample_views("unifrom", 100, 4, views=2)


@pytest.mark.parametrize(("total", "frames"), SIZES)
def test_every_sampler_stays_within_the_video(total, frames):
    samples = [sample(name, total, frames, rng=rng) for name in SAMPLERS for rng in (None, Random(total))]
    samples += two_clips(total, frames, rng=Random(total))
    samples += temporal_views(total, frames, views=3) + temporal_views(total, frames, views=3, stride=5)
    assert all(0 <= index < total for indices in samples for index in indices)
    assert all(len(indices) == frames for indices in samples if indices != list(range(total)))


def test_sample_finds_the_sampler_by_name():
    assert sample("uniform", 100, 8) == uniform(100, 8)
    assert sample("linspace", 100, 8) == linspace(100, 8)
    assert sample("dense", 100, 8) == dense(100, 8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_video_or_a_clip_without_frames_is_an_error(name):
    with pytest.raises(ValueError, match="total must be an integer >= 1, got 0"):
        sample(name, 0, 8)
    with pytest.raises(ValueError, match="frames must be an integer >= 1, got 0"):
        sample(name, 8, 0)


def test_wrong_settings_name_the_value_and_the_allowed_ones():
    with pytest.raises(ValueError, match="unknown sampler 'unifrom'; choose one of uniform, linspace, dense"):
        sample("unifrom", 10, 2)
    with pytest.raises(ValueError, match="stride must be an integer >= 1, got 0"):
        dense(10, 2, stride=0)
    with pytest.raises(ValueError, match="start must be an integer from 0 to 9, the frames of the video, got 10"):
        dense(10, 2, stride=1, start=10)
    with pytest.raises(ValueError, match="views must be an integer >= 1, got 0"):
        temporal_views(10, 2, views=0)


def test_the_examples_of_the_docstrings_hold():
    outcome = doctest.testmod(sampling)
    assert outcome.attempted >= 5
    assert outcome.failed == 0
