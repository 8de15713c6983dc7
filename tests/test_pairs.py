"""Counting both directions in one pass gives what counting each by itself does; intervals are the bootstrap's."""

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
from clipvid.evaluation.metrics.ranking import find_both_placements, find_placement

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import plain_metrics
import retrieval_eval


def whole_numbers(total, width, *, seed):
    """Embeddings whose products are exact in float32 in any order; many are equal, and many products are."""
    made = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(-1, 2, (total, width), generator=made).float() for _ in range(2))


def same(found, expected):
    for field, counts in expected._asdict().items():
        assert getattr(found, field).tolist() == counts.tolist(), field


@pytest.mark.parametrize(("rows", "columns"), [(240, 1920), (7, 16)])
@pytest.mark.parametrize(("total", "width"), [(1, 3), (61, 3), (300, 4), (531, 6)])
def test_one_pass_counts_what_two_do_where_most_scores_tie(total, width, rows, columns, monkeypatch):
    monkeypatch.setattr(tiled, "ROWS", rows)
    monkeypatch.setattr(tiled, "COLUMNS", columns)
    text, video = whole_numbers(total, width, seed=total)
    partners = np.random.default_rng(total).permutation(total)
    scores = (text @ video.T).numpy()
    queries, items = find_placement(Matrix(scores), partners), find_placement(Matrix(scores.T), np.argsort(partners))
    for source in (Products(text, video), Matrix(scores), Matrix(scores.astype(np.int64))):
        forth, back = find_both_placements(source, partners)
        same(forth, queries)
        same(back, items)


def test_equal_embeddings_tie_in_whichever_tiles_they_stand(monkeypatch):
    monkeypatch.setattr(tiled, "ROWS", 5)
    monkeypatch.setattr(tiled, "COLUMNS", 8)
    made = torch.Generator().manual_seed(0)
    text, video = (torch.nn.functional.normalize(torch.randn(90, 33, generator=made), dim=-1) for _ in range(2))
    text[[80, 41]], video[[88, 3, 30]] = text[2].clone(), video[17].clone()
    forth, back = find_both_placements(Products(text, video), np.arange(90))
    assert {i: int(t) for i, t in enumerate(forth.ties) if t} == {3: 3, 17: 3, 30: 3, 88: 3}
    assert {j: int(t) for j, t in enumerate(back.ties) if t} == {2: 2, 41: 2, 80: 2}
    exact = (text.double() @ video.double().T).numpy()
    own = np.diag(exact)
    assert forth.above.tolist() == (exact > own[:, None] + 1e-9).sum(axis=1).tolist()
    assert back.above.tolist() == (exact > own[None] + 1e-9).sum(axis=0).tolist()


def test_equal_rows_are_found_even_if_all_hashes_agree(monkeypatch):
    text, video = whole_numbers(120, 3, seed=1)
    expected = Products(text, video).rows(slice(0, 120))
    monkeypatch.setattr(scores_of, "_hashes", lambda rows: np.zeros(len(rows), np.uint64))
    found = Products(text, video)
    assert found.rows(slice(0, 120)).tolist() == expected.tolist()
    assert len(found._queries) == len({tuple(row) for row in text.tolist()})


def test_collapsed_embeddings_score_chance():
    one = torch.nn.functional.normalize(torch.ones(200, 7), dim=-1)
    found = retrieval_metrics(Products(one, one), torch.arange(200), n_bootstrap=2)
    assert found.t2v["R@5"] == found.v2t["R@5"] == pytest.approx(2.5)
    assert found.t2v["MnR"] == found.v2t["MnR"] == 100.5


def test_shuffled_pairs_get_the_figures_of_a_table_of_what_is_right():
    rng = np.random.default_rng(3)
    values, video_index = rng.integers(0, 40, size=(70, 70)) / 8, rng.permutation(70)
    found = retrieval_metrics(values, video_index, n_bootstrap=20)
    table = retrieval_metrics(values, np.eye(70, dtype=bool)[video_index], n_bootstrap=20)
    for side in ("t2v", "v2t"):
        ours, other = getattr(found, side), getattr(table, side)
        assert ours.values == pytest.approx(other.values, rel=1e-12)
        assert ours.ranks.tolist() == other.ranks.tolist()
        assert (ours.n_queries, ours.n_gallery) == (other.n_queries, other.n_gallery)


def test_not_a_number_is_refused_by_place():
    values = np.zeros((600, 600), dtype=np.float32)
    values[417, 599] = np.nan
    with pytest.raises(ValueError, match="query 417 and item 599 is NaN"):
        retrieval_metrics(values, np.arange(600))


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Torch's number of threads is three, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_scoring_leaves_the_processs_threads_alone_and_counts_the_same(three_threads, monkeypatch):
    text, video = whole_numbers(700, 6, seed=4)
    torch.set_num_threads(1)
    alone = find_both_placements(Products(text, video), np.arange(700))
    torch.set_num_threads(3)
    monkeypatch.setattr(torch, "set_num_threads", None)  # calling it would fail
    for counts, expected in zip(find_both_placements(Products(text, video), np.arange(700)), alone, strict=True):
        same(counts, expected)


@pytest.mark.parametrize("total", [40, 41])
def test_all_intervals_are_those_of_each_figure_alone(total):
    rng = np.random.default_rng(total)
    truth = rng.random((total, total)) < 0.05
    truth[:, 0] = True
    values = rng.integers(0, 30, size=(total, total)).astype(np.float32)
    found = ranking_metrics(values, truth, n_bootstrap=200, seed=5)
    for name in ("R@1", "R@10", "mAP", "nDCG"):
        alone = share_interval(found.each[name], n=200, seed=5)
        assert found.intervals[name] == pytest.approx((100 * alone[0], 100 * alone[1]), rel=1e-12)
    assert found.intervals["R@50"] == tuple(100 * edge for edge in share_interval(np.ones(total)))
    assert found.intervals["MdR"] == bootstrap_interval(found.ranks, statistic=np.median, n=200, seed=5)
    assert found.intervals["MnR"] == pytest.approx(bootstrap_interval(found.ranks, n=200, seed=5), rel=1e-12)
    with pytest.raises(ValueError, match=f"n >= 1, got {total} ranks, n=0"):
        ranking_metrics(values, truth, n_bootstrap=0)


def test_the_plain_full_sort_agrees_where_nothing_ties():
    text, video = retrieval_eval.embeddings(300, 16)
    assert retrieval_eval.largest_difference(retrieval_eval.ours(text, video), retrieval_eval.plain(text, video)) < 1e-9
    scores = np.array([[0.9, 0.8, 0.1], [0.3, 0.2, 0.1], [0.5, 0.6, 0.4]], dtype=np.float32)  # ranks 1, 2, 3
    figures = plain_metrics.plain_metrics(scores)
    assert figures == pytest.approx({"R@1": 100 / 3, "R@5": 100.0, "R@10": 100.0, "MdR": 2.0, "MnR": 2.0})


def test_intervals_of_many_queries_of_few_kinds_are_the_bootstraps_but_for_chance():
    rng = np.random.default_rng(2)
    ranks = rng.geometric(0.08, size=4000).astype(float)
    hits = (ranks <= 5).astype(float)
    found = ranking_intervals({"R@5": hits}, ranks, n=2000, seed=1)
    for name, scores, statistic in (("R@5", hits, np.mean), ("MnR", ranks, np.mean), ("MdR", ranks, np.median)):
        wanted = bootstrap_interval(scores, statistic=statistic, n=2000, seed=1)
        width = wanted[1] - wanted[0]
        assert found[name] == pytest.approx(wanted, abs=max(0.12 * width, 1e-9))
    assert found == ranking_intervals({"R@5": hits}, ranks, n=2000, seed=1)
    assert found != ranking_intervals({"R@5": hits}, ranks, n=2000, seed=3)
