"""Metrics agree with counting by hand, break ties as chance would, and reproduce stored MSR-VTT numbers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipvid import metrics
from clipvid.metrics import bootstrap_interval, ranks, recognition_metrics, retrieval_metrics

CAP4VIDEO = Path(__file__).parents[2] / "shared" / "data" / "similarity" / "cap4video_msrvtt1ka"


def by_all_orders(scores, relevant, k):
    """Oracle: mean rank of the first relevant item, and share of it within k, over every order of the items."""
    positions = []
    for order in itertools.permutations(range(len(scores))):
        ranking = sorted(order, key=lambda item: -scores[item])  # stable: ties stay in the drawn order
        positions.append(1 + min(ranking.index(item) for item in relevant))
    return np.mean(positions), np.mean([position <= k for position in positions])


def naive_rank(scores, item):
    above = sum(float(score) > float(scores[item]) for score in scores)
    ties = sum(float(score) == float(scores[item]) for score in scores) - 1
    return 1 + above + ties / 2


@pytest.mark.parametrize("seed", range(4))
def test_ranks_agree_with_naive_counting_when_most_scores_tie(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(60, 23)) / 4
    owner = rng.integers(0, 23, size=60)
    expected = [naive_rank(row, item) for row, item in zip(scores, owner, strict=True)]
    assert ranks(scores, owner).tolist() == expected
    assert ranks(torch.tensor(scores), torch.tensor(owner)).tolist() == expected
    assert ranks(scores, np.eye(23, dtype=bool)[owner]).tolist() == expected


@pytest.mark.parametrize("seed", range(6))
def test_many_to_many_ranks_and_hits_are_the_mean_over_all_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=(8, 6)).astype(np.float32)
    truth = rng.random((8, 6)) < 0.4
    truth[np.arange(8), rng.integers(0, 6, size=8)] = True
    place = metrics._place(scores, truth)
    for k in (1, 2, 5):
        oracle = [by_all_orders(row, np.flatnonzero(true), k) for row, true in zip(scores, truth, strict=True)]
        np.testing.assert_allclose(ranks(scores, truth), [rank for rank, _ in oracle], rtol=1e-12)
        np.testing.assert_allclose(metrics._expected_hits(place, k), [hit for _, hit in oracle], atol=1e-12)


def test_a_collapsed_model_scores_chance_in_both_directions():
    result = retrieval_metrics(torch.zeros(200, 200), torch.arange(200))
    for direction in (result.t2v, result.v2t):
        assert [direction[f"R@{k}"] for k in (1, 5, 10)] == pytest.approx([0.5, 2.5, 5.0])
        assert direction["MnR"] == direction["MdR"] == 100.5


def test_perfect_and_worst_order_give_the_ends_of_the_scale():
    best = retrieval_metrics(np.eye(20), np.arange(20))
    assert best.t2v["R@1"] == best.v2t["R@1"] == 100
    assert best.t2v["MnR"] == 1
    worst = retrieval_metrics(-np.eye(20), np.arange(20))
    assert worst.t2v["R@10"] == 0
    assert worst.v2t["MdR"] == 20


def test_recall_at_more_than_the_gallery_is_certain():
    assert retrieval_metrics(np.zeros((3, 4)), np.array([0, 2, 3])).t2v["R@5"] == 100


def test_video_to_text_takes_the_best_caption_of_every_video():
    scores = np.array([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.3, 0.1, 0.0], [0.4, 0.95, 0.0]])
    owner = np.array([1, 0, 1, 0])  # unsorted, and video 2 has no caption
    result = retrieval_metrics(scores, owner)
    # video 0: own best 0.8 against 0.3 of video 1 -> rank 1; video 1: own 0.9 against 0.95 -> rank 2
    assert result.v2t.ranks.tolist() == [1, 2]
    assert (result.v2t.n_queries, result.v2t.n_gallery) == (2, 2)
    assert (result.t2v.n_queries, result.t2v.n_gallery) == (4, 3)
    assert result.t2v.ranks.tolist() == [1, 1, 2, 2]


def test_chunked_counting_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    scores, owner = rng.integers(0, 9, size=(57, 31)) / 8, rng.integers(0, 31, size=57)
    whole = retrieval_metrics(scores, owner, n_bootstrap=5)
    monkeypatch.setattr(metrics, "CHUNK", 64)
    parts = retrieval_metrics(scores, owner, n_bootstrap=5)
    assert parts.to_dict() == whole.to_dict()
    assert parts.v2t.ranks.tolist() == whole.v2t.ranks.tolist()


def test_half_precision_scores_rank_as_their_float64_values_do():
    scores = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    owner = torch.arange(40) % 30
    for dtype in (torch.bfloat16, torch.float16):
        assert ranks(scores.to(dtype), owner).tolist() == ranks(scores.to(dtype).double(), owner).tolist()


def test_not_a_number_is_refused_by_place():
    scores = torch.zeros(3, 3)
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="query 1 and item 2 is NaN"):
        ranks(scores, torch.arange(3))


def test_infinite_scores_are_ordinary_scores():
    assert ranks(np.array([[-np.inf, -np.inf, 1.0]]), np.array([0])).tolist() == [2.5]
    assert ranks(np.array([[-np.inf, 0.0]]), np.array([[True, False]])).tolist() == [2]


@pytest.mark.parametrize(
    ("owner", "message"),
    [([0, 3, 1], "row 1 belongs to column 3"), ([0, -1, 1], "column -1"), ([0, 1], "one index a row, got 2 for 3")],
)
def test_wrong_owners_are_refused_by_row(owner, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(np.zeros((3, 3)), np.array(owner))


def test_a_query_without_a_relevant_item_is_refused():
    with pytest.raises(ValueError, match="query 1 has no relevant item"):
        ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_truth_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), or \(Q,\), got \(2, 2\)"):
        ranks(np.zeros((2, 3)), np.ones((2, 2), dtype=bool))


def test_empty_scores_and_zero_k_are_refused():
    with pytest.raises(ValueError, match=r"not empty, got \(0, 4\)"):
        retrieval_metrics(np.zeros((0, 4)), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="from 1"):
        retrieval_metrics(np.eye(2), np.arange(2), ks=(0,))


@pytest.mark.skipif(not CAP4VIDEO.exists(), reason="needs the stored similarity matrices of ../shared/data")
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_stored_msrvtt_metrics_are_reproduced_with_averaged_ties(direction):
    scores = np.load(CAP4VIDEO / "msrvtt_video_matrix.npy")
    reference = json.loads((CAP4VIDEO / "reference_metrics.json").read_text())["video"][direction]
    result = getattr(retrieval_metrics(scores, np.arange(1000), n_bootstrap=20), direction)
    averaged = reference["ties_average"]
    assert result["MdR"] == averaged["MdR"]
    assert round(result["MnR"], 3) == averaged["MnR"]
    # The reference counts a hit where the averaged rank, rounded down, is within K; clipvid counts its chance, which
    # lies between the reference's worst and best order of ties.
    for k in (1, 5, 10):
        assert round(100 * float(np.mean(np.floor(result.ranks) <= k)), 6) == averaged[f"R@{k}"]
        assert reference["ties_pessimistic"][f"R@{k}"] - 1e-9 <= result[f"R@{k}"]
        assert result[f"R@{k}"] <= reference["ties_optimistic"][f"R@{k}"] + 1e-9
    assert int(np.sum(result.ranks % 1 != 0)) <= reference["rows_with_ties"]


def naive_top(row, label, k):
    above, ties = sum(row > row[label]), sum(row == row[label])
    return float(np.clip((k - above) / ties, 0, 1))


def test_recognition_agrees_with_naive_counting_under_ties():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 5, size=(80, 7)).astype(np.float32)
    labels = rng.integers(0, 6, size=80)  # class 6 never occurs
    result = recognition_metrics(torch.tensor(logits), torch.tensor(labels), n_bootstrap=10)
    top1 = np.array([naive_top(row, label, 1) for row, label in zip(logits, labels, strict=True)])
    top5 = [naive_top(row, label, 5) for row, label in zip(logits, labels, strict=True)]
    assert result["top-1"] == pytest.approx(100 * top1.mean())
    assert result["top-5"] == pytest.approx(100 * np.mean(top5))
    assert result["mean class"] == pytest.approx(100 * np.mean([top1[labels == c].mean() for c in range(6)]))
    assert result.confusion.sum(axis=1).tolist() == pytest.approx(np.bincount(labels, minlength=7).tolist())
    assert np.trace(result.confusion) == pytest.approx(top1.sum())


def test_a_constant_classifier_scores_chance_even_on_one_class():
    result = recognition_metrics(torch.zeros(50, 10), torch.zeros(50, dtype=torch.int64))
    assert result["top-1"] == pytest.approx(10)
    assert result["top-5"] == pytest.approx(50)


def test_class_mean_weighs_rare_classes_like_common_ones():
    logits = np.zeros((10, 2))
    logits[:, 0] = 1
    labels = np.array([0] * 9 + [1])
    result = recognition_metrics(logits, labels)
    assert (result["top-1"], result["mean class"], result["top-2"]) == (90, 50, 100)


def test_unlabelled_clips_are_refused():
    with pytest.raises(ValueError, match="row 1 belongs to column -1"):
        recognition_metrics(np.zeros((2, 3)), np.array([0, -1]))


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    covered = 0
    for trial in range(200):
        scores = np.random.default_rng(trial).random(100) < 0.3
        low, high = bootstrap_interval(scores, n=200, seed=trial)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 198


def test_bootstrap_is_repeatable_and_the_seed_counts():
    scores = np.random.default_rng(0).random(50)
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)
    with pytest.raises(ValueError, match=r"level=2\.0"):
        bootstrap_interval(scores, level=2.0)


def test_reports_are_json_and_a_table_with_counts():
    rng = np.random.default_rng(0)
    result = retrieval_metrics(rng.random((30, 10)), np.arange(30) % 10)
    loaded = json.loads(json.dumps(result.to_dict()))
    assert loaded["t2v"]["queries"] == 30
    assert loaded["v2t"]["queries"] == 10
    low, high = loaded["t2v"]["intervals"]["R@5"]
    assert low <= loaded["t2v"]["R@5"] <= high
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines] == ["R@1", "t2v", "v2t"]
    assert lines[1].split()[-2:] == ["30", "10"]
    recognition = recognition_metrics(rng.random((30, 10)), np.arange(30) % 10)
    assert json.loads(json.dumps(recognition.to_dict()))["videos"] == 30
    assert "30 videos, 10 classes" in str(recognition)
