"""Ranking in both directions with one pass over tiles equals ranking each alone; intervals equal the bootstrap's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from clipvid.evaluation.metrics import Matrix, Products, bootstrap_interval, ranking_metrics, retrieval_metrics, tiled
from clipvid.evaluation.metrics import scores as scores_of
from clipvid.evaluation.metrics.bootstrap import ranking_intervals, share_interval
from clipvid.evaluation.metrics.ranking import count_placement, count_placement_both

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import plain_metrics
import retrieval_eval


def integer_embeddings(total, width, *, seed):
    """Return text and video embeddings whose products are exact in float32; many embeddings and products are equal."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(-1, 2, (total, width), generator=generator).float() for _ in range(2))


def check_counts(counts, expected):
    for field, values in expected._asdict().items():
        assert getattr(counts, field).tolist() == values.tolist(), field


@pytest.mark.parametrize(
    ("total", "width", "rows", "columns"),
    [(1, 3, 240, 1920), (1, 3, 7, 16), (61, 3, 240, 1920), (61, 3, 7, 16), (120, 4, 7, 16), (531, 6, 240, 1920)],
)
def test_one_pass_counts_the_same_as_two_when_most_scores_tie(total, width, rows, columns, monkeypatch):
    monkeypatch.setattr(tiled, "ROWS", rows)
    monkeypatch.setattr(tiled, "COLUMNS", columns)
    text, video = integer_embeddings(total, width, seed=total)
    partners = np.random.default_rng(total).permutation(total)
    scores = (text @ video.T).numpy()
    queries, items = count_placement(Matrix(scores), partners), count_placement(Matrix(scores.T), np.argsort(partners))
    for source in (Products(text, video), Matrix(scores), Matrix(scores.astype(np.int64))):
        of_queries, of_items = count_placement_both(source, partners)
        check_counts(of_queries, queries)
        check_counts(of_items, items)


def test_equal_embeddings_tie_whichever_tiles_they_are_in(monkeypatch):
    monkeypatch.setattr(tiled, "ROWS", 5)
    monkeypatch.setattr(tiled, "COLUMNS", 8)
    generator = torch.Generator().manual_seed(0)
    text, video = (torch.nn.functional.normalize(torch.randn(90, 33, generator=generator), dim=-1) for _ in range(2))
    text[[80, 41]], video[[88, 3, 30]] = text[2].clone(), video[17].clone()
    of_queries, of_items = count_placement_both(Products(text, video), np.arange(90))
    assert {i: int(t) for i, t in enumerate(of_queries.ties) if t} == {3: 3, 17: 3, 30: 3, 88: 3}
    assert {j: int(t) for j, t in enumerate(of_items.ties) if t} == {2: 2, 41: 2, 80: 2}
    exact = (text.double() @ video.double().T).numpy()
    partner_scores = np.diag(exact)
    assert of_queries.above.tolist() == (exact > partner_scores[:, None] + 1e-9).sum(axis=1).tolist()
    assert of_items.above.tolist() == (exact > partner_scores[None] + 1e-9).sum(axis=0).tolist()


def test_equal_rows_are_recognised_even_if_all_hashes_collide(monkeypatch):
    text, video = integer_embeddings(120, 3, seed=1)
    expected = Products(text, video).rows(slice(0, 120))
    monkeypatch.setattr(scores_of, "_hashes", lambda rows: np.zeros(len(rows), np.uint64))
    products = Products(text, video)
    assert products.rows(slice(0, 120)).tolist() == expected.tolist()
    assert len(products._queries) == len({tuple(row) for row in text.tolist()})


def test_collapsed_embeddings_score_chance():
    one = torch.nn.functional.normalize(torch.ones(200, 7), dim=-1)
    result = retrieval_metrics(Products(one, one), torch.arange(200), n_resamples=2)
    assert result.t2v["R@5"] == result.v2t["R@5"] == pytest.approx(2.5)
    assert result.t2v["MnR"] == result.v2t["MnR"] == 100.5


def test_shuffled_pairs_get_the_metrics_of_a_boolean_truth_matrix():
    rng = np.random.default_rng(3)
    values, video_index = rng.integers(0, 40, size=(70, 70)) / 8, rng.permutation(70)
    result = retrieval_metrics(values, video_index, n_resamples=20)
    from_matrix = retrieval_metrics(values, np.eye(70, dtype=bool)[video_index], n_resamples=20)
    for side in ("t2v", "v2t"):
        ours, other = getattr(result, side), getattr(from_matrix, side)
        assert ours.values == pytest.approx(other.values, rel=1e-12)
        assert ours.ranks.tolist() == other.ranks.tolist()
        assert (ours.n_queries, ours.n_gallery) == (other.n_queries, other.n_gallery)


def test_nan_is_refused_with_its_query_and_item():
    values = np.zeros((600, 600), dtype=np.float32)
    values[417, 599] = np.nan
    with pytest.raises(ValueError, match="query 417 and item 599 is NaN"):
        retrieval_metrics(values, np.arange(600))


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Set torch to three threads, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_scoring_never_sets_the_number_of_threads_and_does_not_depend_on_it(three_threads, monkeypatch):
    text, video = integer_embeddings(700, 6, seed=4)
    torch.set_num_threads(1)
    alone = count_placement_both(Products(text, video), np.arange(700))
    torch.set_num_threads(3)
    monkeypatch.setattr(torch, "set_num_threads", None)  # calling it would fail
    for counts, expected in zip(count_placement_both(Products(text, video), np.arange(700)), alone, strict=True):
        check_counts(counts, expected)


@pytest.mark.parametrize("total", [40, 41])
def test_all_intervals_equal_those_of_each_metric_alone(total):
    rng = np.random.default_rng(total)
    truth = rng.random((total, total)) < 0.05
    truth[:, 0] = True
    values = rng.integers(0, 30, size=(total, total)).astype(np.float32)
    result = ranking_metrics(values, truth, n_resamples=200, seed=5)
    for name in ("R@1", "R@10", "mAP", "nDCG"):
        interval = share_interval(result.each[name], n_resamples=200, seed=5)
        assert result.intervals[name] == pytest.approx((100 * interval[0], 100 * interval[1]), rel=1e-12)
    assert result.intervals["R@50"] == tuple(100 * edge for edge in share_interval(np.ones(total)))
    assert result.intervals["MdR"] == bootstrap_interval(result.ranks, statistic=np.median, n_resamples=200, seed=5)
    assert result.intervals["MnR"] == pytest.approx(
        bootstrap_interval(result.ranks, n_resamples=200, seed=5), rel=1e-12
    )
    with pytest.raises(ValueError, match=f"n_resamples >= 1, got {total} ranks and n_resamples=0"):
        ranking_metrics(values, truth, n_resamples=0)


def test_the_full_sort_of_the_benchmark_agrees_when_nothing_ties():
    text, video = retrieval_eval.embeddings(300, 16)
    assert retrieval_eval.largest_difference(retrieval_eval.ours(text, video), retrieval_eval.plain(text, video)) < 1e-9
    scores = np.array([[0.9, 0.8, 0.1], [0.3, 0.2, 0.1], [0.5, 0.6, 0.4]], dtype=np.float32)  # ranks 1, 2, 3
    metrics = plain_metrics.plain_metrics(scores)
    assert metrics == pytest.approx({"R@1": 100 / 3, "R@5": 100.0, "R@10": 100.0, "MdR": 2.0, "MnR": 2.0})


def test_intervals_by_multinomial_counts_equal_the_bootstraps_up_to_chance():
    rng = np.random.default_rng(2)
    ranks = rng.geometric(0.08, size=4000).astype(float)
    hits = (ranks <= 5).astype(float)
    intervals = ranking_intervals({"R@5": hits}, ranks, n_resamples=2000, seed=1)
    for name, scores, statistic in (("R@5", hits, np.mean), ("MnR", ranks, np.mean), ("MdR", ranks, np.median)):
        expected = bootstrap_interval(scores, statistic=statistic, n_resamples=2000, seed=1)
        width = expected[1] - expected[0]
        assert intervals[name] == pytest.approx(expected, abs=max(0.12 * width, 1e-9))
    assert intervals == ranking_intervals({"R@5": hits}, ranks, n_resamples=2000, seed=1)
    assert intervals != ranking_intervals({"R@5": hits}, ranks, n_resamples=2000, seed=3)
