"""Properties of frame samplers and of ranks with ties, over random examples; ranks against all orders of the ties."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, permutations
from random import Random

import numpy as np
import pytest
import test_data_properties
import test_times
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clipvid.evaluation.metrics.ranking import best_items, count_placement, hits, hubness, quality, ranks
from clipvid.evaluation.metrics.scores import as_scores
from clipvid.video.sampling import dense, linspace, sample, sample_views, temporal_views, two_clips, uniform

TOTALS = st.one_of(st.integers(1, 60), st.integers(1, 10_000_000))
FRAMES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32)


# --- sampling ---


@given(TOTALS, FRAMES, st.none() | SEEDS)
def test_uniform_takes_a_frame_of_each_segment_in_order(total, frames, seed):
    indices = uniform(total, frames, rng=None if seed is None else Random(seed))
    edges = np.linspace(0, total - 1, frames + 1)
    assert len(indices) == frames
    assert indices == sorted(indices)
    for index, low, high in zip(indices, edges, edges[1:], strict=False):
        assert low - 0.5 - 1e-6 <= index <= high + 0.5 + 1e-6
        assert 0 <= index < total


@given(TOTALS, FRAMES)
def test_linspace_takes_different_frames_from_the_first_to_the_last(total, frames):
    indices = linspace(total, frames)
    assert len(indices) == min(total, frames)
    assert all(a < b for a, b in pairwise(indices))
    assert indices[0] == 0
    assert indices[-1] == (total - 1 if frames > 1 else 0)
    gaps = [b - a for a, b in pairwise(indices)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(TOTALS, FRAMES, st.integers(1, 100), st.none() | SEEDS)
def test_dense_keeps_its_stride_and_wraps_only_where_it_must(total, frames, stride, seed):
    indices = dense(total, frames, stride=stride, rng=None if seed is None else Random(seed))
    assert len(indices) == frames
    assert all((b - a) % total == stride % total for a, b in pairwise(indices))
    assert all(0 <= index < total for index in indices)
    if (frames - 1) * stride < total:
        assert indices[-1] - indices[0] == (frames - 1) * stride
        assert seed is not None or 0 <= (total - 1 - indices[-1]) - indices[0] <= 1  # centred
    else:
        assert indices[0] == 0


@given(TOTALS, FRAMES, st.integers(1, 12), st.none() | st.integers(1, 50))
def test_views_are_shifted_copies_from_early_to_late(total, frames, views, stride):
    samples = temporal_views(total, frames, views=views, stride=stride)
    assert [len(view) for view in samples] == [frames] * views
    assert all(0 <= index < total for view in samples for index in view)
    assert samples == sorted(samples)
    if stride is None or (frames - 1) * stride < total:
        assert all(view == sorted(view) for view in samples)
        first = np.array(samples[0])
        assert all(len({*(np.array(view) - first).tolist()}) == 1 for view in samples)
    for name in ("uniform", "dense") if stride is None else ():
        assert sample_views(name, total, frames, views=1) == [sample(name, total, frames)]


@given(TOTALS, FRAMES, st.integers(1, 20), SEEDS)
def test_two_clips_are_dense_and_repeat_with_their_seed(total, frames, stride, seed):
    clips = two_clips(total, frames, stride=stride, rng=Random(seed))
    assert clips == two_clips(total, frames, stride=stride, rng=Random(seed))
    for clip in clips:
        assert clip == dense(total, frames, stride=stride, start=clip[0])
        assert total <= (frames - 1) * stride or clip == sorted(clip)


# --- ranks ---


@st.composite
def rankings(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, N) with many ties, and relevance (Q, N) with at least one relevant item per query."""
    n_queries, n_items = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    values = st.sampled_from([-math.inf, -1.5, 0.0, -0.0, 0.25, 1.0])
    rows = draw(st.lists(st.lists(values, min_size=n_items, max_size=n_items), min_size=n_queries, max_size=n_queries))
    truth = [
        [index in right for index in range(n_items)]
        for right in draw(
            st.lists(st.sets(st.integers(0, n_items - 1), min_size=1), min_size=n_queries, max_size=n_queries)
        )
    ]
    return np.array(rows), np.array(truth)


def over_all_orders(scores: np.ndarray, truth: np.ndarray, measure: Callable[[list[bool]], float]) -> float:
    """Return the mean of a measure of the ranked relevance over all orders of the items, sorted by score."""
    values = []
    for order in permutations(range(len(scores))):
        ranked = sorted(order, key=lambda item: -scores[item])
        values.append(measure([bool(truth[item]) for item in ranked]))
    return float(np.mean(values))


def average_precision(ranked: list[bool]) -> float:
    positions = [rank for rank, right in enumerate(ranked, start=1) if right]
    return float(np.mean([number / rank for number, rank in enumerate(positions, start=1)]))


def gain(ranked: list[bool]) -> float:
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, sum(ranked) + 1))
    return sum(1 / math.log2(rank + 1) for rank, right in enumerate(ranked, start=1) if right) / ideal


@given(rankings(), st.integers(1, 6))
def test_ranks_hits_and_quality_are_means_over_all_orders_of_ties(ranking, k):
    scores, truth = ranking
    placement, measured = count_placement(as_scores(scores), truth), quality(as_scores(scores), truth)
    columns = {
        "rank": (ranks(scores, truth), lambda ranked: 1 + ranked.index(True)),
        "hit": (hits(placement, k), lambda ranked: float(any(ranked[:k]))),
        "precision": (measured.precision, average_precision),
        "gain": (measured.gain, gain),
    }
    for name, (values, measure) in columns.items():
        expected = [over_all_orders(row, right, measure) for row, right in zip(scores, truth, strict=True)]
        assert values == pytest.approx(expected, abs=1e-12), name


@given(rankings(), SEEDS, st.integers(1, 6))
def test_the_order_of_queries_and_items_changes_no_value(ranking, seed, k):
    scores, truth = ranking
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(scores)), rng.permutation(scores.shape[1])
    moved, right = scores[rows][:, columns], truth[rows][:, columns]
    placement, other = count_placement(as_scores(scores), truth), count_placement(as_scores(moved), right)
    assert all((a[rows] == b).all() for a, b in zip(placement, other, strict=True))
    assert hits(placement, k)[rows].tolist() == hits(other, k).tolist()
    for a, b in zip(quality(as_scores(scores), truth), quality(as_scores(moved), right), strict=True):
        assert a[rows] == pytest.approx(b, abs=1e-12)


@given(rankings())
def test_one_relevant_item_may_be_an_index_or_a_row_of_booleans(ranking):
    scores, truth = ranking
    index = truth.argmax(axis=1)
    matrix = np.eye(scores.shape[1], dtype=bool)[index]
    assert ranks(scores, index).tolist() == ranks(scores, matrix).tolist()
    for a, b in zip(quality(as_scores(scores), index), quality(as_scores(scores), matrix), strict=True):
        assert a == pytest.approx(b, abs=1e-12)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_equal_scores_are_at_chance(n_items, n_relevant, k):
    assume(n_relevant <= n_items)
    truth = np.arange(n_items)[None] < n_relevant
    placement = count_placement(as_scores(np.zeros((1, n_items))), truth)
    misses = math.comb(n_items - n_relevant, min(k, n_items)) / math.comb(n_items, min(k, n_items))
    assert hits(placement, k)[0] == pytest.approx(1 - misses, abs=1e-12)


@given(rankings(), st.integers(1, 5))
def test_best_items_are_sorted_with_ties_in_order_and_hubs_count_them(ranking, k):
    scores, _ = ranking
    k = min(k, scores.shape[1])
    best = best_items(scores, k)
    for row, items in zip(scores, best, strict=True):
        assert items.tolist() == sorted(range(len(row)), key=lambda item: (-row[item], item))[:k]
    counts = np.bincount(best.ravel(), minlength=scores.shape[1])
    hubs = hubness(scores, k=k)
    assert (hubs.most, hubs.hub, hubs.never) == (counts.max(), counts.argmax(), (counts == 0).mean())


# --- many examples ---

PROPERTIES = [
    value
    for names in (globals(), vars(test_data_properties), vars(test_times))
    for value in [*names.values()]
    if hasattr(value, "hypothesis")
]


@pytest.mark.slow
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_properties_hold_for_many_random_examples(check):
    settings(max_examples=600, derandomize=False, print_blob=True)(check)()
