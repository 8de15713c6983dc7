"""How sure a mean over classes is, where classes are few, small or all of one kind."""

from __future__ import annotations

import numpy as np
import pytest

from clipvid.evaluation.metrics import bootstrap_interval, recognition_metrics
from clipvid.evaluation.metrics.bootstrap import class_mean


def of_classes(hits, labels):
    """Metrics of scores by which these clips are right, and the others taken for the next class."""
    return recognition_metrics(np.eye(labels.max() + 2)[np.where(hits, labels, labels + 1)], labels)


def test_a_mean_over_classes_that_resampling_cannot_vary_has_an_interval_too():
    """One class all right and one all wrong: half of either's score interval."""
    n, labels = 10, np.repeat([0, 1], 10)
    hits = labels == 0
    half = 50 * (1 - n / (n + 1.959964**2))
    assert of_classes(hits, labels)["mean class"] == 50
    assert of_classes(hits, labels).intervals["mean class"] == pytest.approx((50 - half, 50 + half), abs=1e-4)
    hits[0] = False
    drawn = bootstrap_interval(np.stack([hits, labels], axis=1).astype(float), statistic=class_mean)
    assert of_classes(hits, labels).intervals["mean class"] == pytest.approx([100 * edge for edge in drawn])


def test_a_class_of_one_clip_makes_no_mean_over_classes_sure():
    labels = np.array([0] + [1] * 999)
    low, high = of_classes(labels >= 0, labels).intervals["mean class"]
    assert high == 100
    assert low == pytest.approx(100 - 100 / 2 * (1 - 1 / (1 + 1.959964**2)), abs=0.1)


@pytest.mark.parametrize("right", [100, 60])
def test_one_clip_a_class_is_no_surer_of_its_classes_than_of_its_clips(right):
    found = of_classes(np.arange(100) < right, np.arange(100)).intervals
    assert found["mean class"][0] <= found["top-1"][0] + 3
    assert found["mean class"][1] >= found["top-1"][1] - 3
    assert found["mean class"][1] - found["mean class"][0] >= 0.8 * (found["top-1"][1] - found["top-1"][0])


@pytest.mark.parametrize("queries", [1, 7, 300])
def test_samples_drawn_many_at_a_time_are_those_drawn_one_by_one(queries):
    scores = np.random.default_rng(1).random(queries)
    one_by_one = bootstrap_interval(scores, statistic=lambda sample: float(np.mean(sample)))
    assert bootstrap_interval(scores) == one_by_one
