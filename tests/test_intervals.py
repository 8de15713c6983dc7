"""Confidence intervals of a mean over classes that are few, small, or entirely right or wrong."""

from __future__ import annotations

import numpy as np
import pytest

from clipvid.evaluation.metrics import bootstrap_interval, recognition_metrics
from clipvid.evaluation.metrics.bootstrap import class_mean, class_mean_interval


def metrics_of(hits, labels):
    """Return metrics of scores that classify the `hits` correctly and put every other clip into the next class."""
    return recognition_metrics(np.eye(labels.max() + 2)[np.where(hits, labels, labels + 1)], labels)


def test_a_class_mean_that_resampling_cannot_vary_still_has_an_interval():
    """One class is all right and one all wrong: the half width is half of either class's score interval."""
    n, labels = 10, np.repeat([0, 1], 10)
    hits = labels == 0
    half = 50 * (1 - n / (n + 1.959964**2))
    assert metrics_of(hits, labels)["mean class"] == 50
    assert metrics_of(hits, labels).intervals["mean class"] == pytest.approx((50 - half, 50 + half), abs=1e-4)
    hits[0] = False
    resampled = bootstrap_interval(np.stack([hits, labels], axis=1).astype(float), statistic=class_mean)
    assert metrics_of(hits, labels).intervals["mean class"] == pytest.approx([100 * edge for edge in resampled])


def test_a_class_of_one_clip_widens_the_interval_of_the_class_mean():
    labels = np.array([0] + [1] * 999)
    low, high = metrics_of(labels >= 0, labels).intervals["mean class"]
    assert high == 100
    assert low == pytest.approx(100 - 100 / 2 * (1 - 1 / (1 + 1.959964**2)), abs=0.1)


@pytest.mark.parametrize("n_right", [100, 60])
def test_one_clip_per_class_gives_the_class_mean_an_interval_like_that_of_top_1(n_right):
    intervals = metrics_of(np.arange(100) < n_right, np.arange(100)).intervals
    assert intervals["mean class"][0] <= intervals["top-1"][0] + 3
    assert intervals["mean class"][1] >= intervals["top-1"][1] - 3
    assert intervals["mean class"][1] - intervals["mean class"][0] >= 0.8 * (
        intervals["top-1"][1] - intervals["top-1"][0]
    )


@pytest.mark.parametrize("queries", [1, 7, 300])
def test_samples_drawn_many_at_a_time_are_those_drawn_one_by_one(queries):
    scores = np.random.default_rng(1).random(queries)
    one_by_one = bootstrap_interval(scores, statistic=lambda sample: float(np.mean(sample)))
    assert bootstrap_interval(scores) == one_by_one


def test_class_means_of_samples_that_lack_classes_are_those_of_samples_drawn_one_by_one():
    rng = np.random.default_rng(0)
    labels, hits = np.arange(60) % 20, rng.random(60) < 0.5
    rows = np.stack([hits, labels], axis=1).astype(float)
    expected = bootstrap_interval(rows, statistic=class_mean, seed=3)
    assert class_mean_interval(rows[:, 0], labels, seed=3) == pytest.approx(expected, rel=1e-12)
