"""Metrics agree with naive counting, average over the orders of ties, and reproduce stored MSR-VTT numbers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipvid.evaluation.metrics import (
    DualSoftmax,
    Matrix,
    QueryBank,
    bootstrap_interval,
    hubness,
    paired_bootstrap,
    ranking,
    ranks,
    recognition_metrics,
    retrieval_metrics,
    share_interval,
)
from clipvid.evaluation.metrics import scores as scores_of
from clipvid.evaluation.metrics.retrieval import ByVideo

CAP4VIDEO = Path(__file__).parents[2] / "shared" / "data" / "similarity" / "cap4video_msrvtt1ka"


def by_all_orders(scores, relevant, k):
    """Return the oracle: mean rank of the first relevant item and its share within k, over every order of the items."""
    positions = []
    for order in itertools.permutations(range(len(scores))):
        ranking = sorted(order, key=lambda item: -scores[item])  # the sort is stable: ties stay in the permuted order
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
    video_index = rng.integers(0, 23, size=60)
    expected = [naive_rank(row, item) for row, item in zip(scores, video_index, strict=True)]
    assert ranks(scores, video_index).tolist() == expected
    assert ranks(torch.tensor(scores), torch.tensor(video_index)).tolist() == expected
    assert ranks(scores, np.eye(23, dtype=bool)[video_index]).tolist() == expected


@pytest.mark.parametrize("seed", range(6))
def test_many_to_many_ranks_and_hits_are_means_over_all_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=(8, 6)).astype(np.float32)
    truth = rng.random((8, 6)) < 0.4
    truth[np.arange(8), rng.integers(0, 6, size=8)] = True
    placement = ranking.count_placement(Matrix(scores), truth)
    for k in (1, 2, 5):
        oracle = [by_all_orders(row, np.flatnonzero(true), k) for row, true in zip(scores, truth, strict=True)]
        np.testing.assert_allclose(ranks(scores, truth), [rank for rank, _ in oracle], rtol=1e-12)
        np.testing.assert_allclose(ranking.hits(placement, k), [hit for _, hit in oracle], atol=1e-12)


def test_a_collapsed_model_scores_chance_in_both_directions():
    result = retrieval_metrics(torch.zeros(200, 200), torch.arange(200))
    for direction in (result.t2v, result.v2t):
        assert [direction[f"R@{k}"] for k in (1, 5, 10)] == pytest.approx([0.5, 2.5, 5.0])
        assert direction["MnR"] == direction["MdR"] == 100.5


def test_best_and_worst_order_give_the_ends_of_the_scale():
    best = retrieval_metrics(np.eye(20), np.arange(20))
    assert best.t2v["R@1"] == best.v2t["R@1"] == 100
    assert best.t2v["MnR"] == 1
    worst = retrieval_metrics(-np.eye(20), np.arange(20))
    assert worst.t2v["R@10"] == 0
    assert worst.v2t["MdR"] == 20


def test_recall_at_more_than_the_gallery_size_is_100():
    assert retrieval_metrics(np.zeros((3, 4)), np.array([0, 2, 3])).t2v["R@5"] == 100


def test_video_to_text_takes_the_best_caption_of_every_video():
    scores = np.array([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.3, 0.1, 0.0], [0.4, 0.95, 0.0]])
    video_index = np.array([1, 0, 1, 0])  # unsorted, and video 2 has no caption
    result = retrieval_metrics(scores, video_index)
    # video 0: its best caption has 0.8, that of video 1 has 0.3: rank 1; video 1: 0.9 against 0.95: rank 2
    assert result.v2t.ranks.tolist() == [1, 2]
    assert (result.v2t.n_queries, result.v2t.n_gallery) == (2, 2)
    assert (result.t2v.n_queries, result.t2v.n_gallery) == (4, 3)
    assert result.t2v.ranks.tolist() == [1, 1, 2, 2]


def test_counting_in_blocks_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    scores, video_index = rng.integers(0, 9, size=(57, 31)) / 8, rng.integers(0, 31, size=57)
    expected = retrieval_metrics(scores, video_index, n_resamples=5)
    monkeypatch.setattr(scores_of, "BLOCK", 64)
    blocks = retrieval_metrics(scores, video_index, n_resamples=5)
    assert blocks.to_dict() == expected.to_dict()
    assert blocks.v2t.ranks.tolist() == expected.v2t.ranks.tolist()


def test_half_precision_scores_rank_as_their_float64_values_do():
    scores = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    video_index = torch.arange(40) % 30
    for dtype in (torch.bfloat16, torch.float16):
        assert ranks(scores.to(dtype), video_index).tolist() == ranks(scores.to(dtype).double(), video_index).tolist()


def test_nan_is_refused_with_its_query_and_item():
    scores = torch.zeros(3, 3)
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="query 1 and item 2 is NaN"):
        ranks(scores, torch.arange(3))


def test_infinite_scores_are_ordinary_scores():
    assert ranks(np.array([[-np.inf, -np.inf, 1.0]]), np.array([0])).tolist() == [2.5]
    assert ranks(np.array([[-np.inf, 0.0]]), np.array([[True, False]])).tolist() == [2]


@pytest.mark.parametrize(
    ("video_index", "message"),
    [([0, 3, 1], "row 1 .*, got 3"), ([0, -1, 1], "a column, got -1"), ([0, 1], "one entry per row, got 2 for 3")],
)
def test_a_wrong_video_index_is_refused_with_its_row(video_index, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(np.zeros((3, 3)), np.array(video_index))


def test_a_query_without_a_relevant_item_is_refused():
    with pytest.raises(ValueError, match="query 1 has no relevant item"):
        ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_truth_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), or \(Q,\), got \(2, 2\)"):
        ranks(np.zeros((2, 3)), np.ones((2, 2), dtype=bool))


def test_empty_scores_and_zero_k_are_refused():
    with pytest.raises(ValueError, match=r"not empty, got \(0, 4\)"):
        retrieval_metrics(np.zeros((0, 4)), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="integers >= 1"):
        retrieval_metrics(np.eye(2), np.arange(2), ks=(0,))


needs_cap4video = pytest.mark.shared_data("similarity", "cap4video_msrvtt1ka")


def reference():
    matrix = np.load(CAP4VIDEO / "msrvtt_video_matrix.npy")
    return matrix, json.loads((CAP4VIDEO / "reference_metrics.json").read_text())["video"]


def check_metrics(metrics, expected):
    for name, value in expected.items():
        assert round(metrics[name], 3) == value, name


def metrics_under(rule, counts):
    """Return metrics by the tie rules of other tools, from the number of items above and tied with each query's item.

    average takes the middle rank of the ties, and counts a hit if that rank, rounded down, is within K
    (collaborative-experts, qb-norm); optimistic and pessimistic rank the item first, or last, among its ties.
    """
    ranks = 1 + counts.above + {"optimistic": 0, "average": 0.5, "pessimistic": 1}[rule] * counts.ties
    shares = {f"R@{k}": 100 * float((np.floor(ranks) <= k).mean()) for k in (1, 5, 10, 50)}
    return shares | {"MdR": float(np.median(ranks)), "MnR": float(ranks.mean())}


@needs_cap4video
@pytest.mark.parametrize("ties", ["optimistic", "average", "pessimistic"])
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_stored_msrvtt_metrics_are_reproduced_under_each_tie_rule(direction, ties):
    matrix, stored = reference()
    counts = dict(zip(("t2v", "v2t"), ranking.count_placement_both(Matrix(matrix), np.arange(1000)), strict=True))[
        direction
    ]
    check_metrics(metrics_under(ties, counts), stored[direction][f"ties_{ties}"])


@needs_cap4video
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_the_expected_metrics_lie_between_the_best_and_the_worst_order_of_ties(direction):
    matrix, stored = reference()
    metrics = getattr(retrieval_metrics(matrix, np.arange(1000), n_resamples=1), direction)
    for name in ("R@1", "R@5", "R@10", "R@50"):
        assert stored[direction]["ties_pessimistic"][name] - 1e-9 <= metrics[name]
        assert metrics[name] <= stored[direction]["ties_optimistic"][name] + 1e-9
    assert int(np.sum(metrics.ranks % 1 != 0)) <= stored[direction]["rows_with_ties"]


@needs_cap4video
@pytest.mark.parametrize("temperature", [1.0, 10.0, 20.0, 50.0, 100.0])
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_stored_dual_softmax_metrics_are_reproduced(direction, temperature):
    matrix, stored = reference()
    adjusted = DualSoftmax(Matrix(matrix), temperature)
    scores = adjusted if direction == "t2v" else ByVideo(adjusted, np.arange(1000))
    metrics = metrics_under("average", ranking.count_placement(scores, np.arange(1000)))
    check_metrics(metrics, stored[direction]["dual_softmax_float64"][f"T={temperature:g}"])


@needs_cap4video
def test_stored_querybank_metrics_are_reproduced():
    matrix, stored = reference()
    full_bank = metrics_under(
        "average", ranking.count_placement(QueryBank(Matrix(matrix), Matrix(matrix)), np.arange(1000))
    )
    expected = stored["t2v"]["qbnorm_reference_code_bank=the_1000_test_texts_beta20_k1"]
    assert [round(full_bank[f"R@{k}"], 3) for k in (1, 5, 10, 50)] == [expected[f"R{k}"] for k in (1, 5, 10, 50)]
    assert (full_bank["MdR"], round(full_bank["MnR"], 1)) == (expected["MedR"], expected["MeanR"])
    split = stored["t2v"]["split_bank_first500_queries_last500"]
    rest = matrix[500:]
    before = metrics_under("average", ranking.count_placement(Matrix(rest), np.arange(500, 1000)))
    after = metrics_under(
        "average", ranking.count_placement(QueryBank(Matrix(rest), Matrix(matrix[:500])), np.arange(500, 1000))
    )
    check_metrics(before, split["before"])
    check_metrics(after, split["after_qbnorm_beta20_k1"])


def naive_top(row, label, k):
    above, ties = sum(row > row[label]), sum(row == row[label])
    return float(np.clip((k - above) / ties, 0, 1))


def test_recognition_agrees_with_naive_counting_under_ties():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 5, size=(80, 7)).astype(np.float32)
    labels = rng.integers(0, 6, size=80)  # class 6 never occurs
    result = recognition_metrics(torch.tensor(logits), torch.tensor(labels), n_resamples=10)
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
    with pytest.raises(ValueError, match="row 1 of video_index must be a column, got -1"):
        recognition_metrics(np.zeros((2, 3)), np.array([0, -1]))


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_its_level_says():
    covered = 0
    for trial in range(200):
        scores = np.random.default_rng(trial).random(100) < 0.3
        low, high = bootstrap_interval(scores, n_resamples=200, seed=trial)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 198


@pytest.mark.parametrize(("n", "low"), [(3, 0.438503), (30, 0.886486), (400, 0.990487)])
def test_a_share_of_all_or_none_has_wilsons_interval(n, low):
    # Wilson's score interval of n hits in n: n / (n + 1.959964^2)
    assert share_interval(np.ones(n)) == pytest.approx((low, 1.0), abs=1e-6)
    assert share_interval(np.zeros(n)) == pytest.approx((0.0, 1 - low), abs=1e-6)
    perfect = recognition_metrics(np.eye(n + 1)[:n], np.arange(n))
    assert perfect.intervals["top-1"] == pytest.approx((100 * low, 100.0), abs=1e-4)
    assert perfect.intervals["mean class"][0] <= perfect.intervals["top-1"][0] + 1e-9
    mixed = np.arange(n) > 0
    assert share_interval(mixed) == bootstrap_interval(mixed)


def test_equal_shares_from_ties_have_the_interval_of_hits_with_the_same_mean():
    n, share = 40, 0.25
    low, high = share_interval(np.full(n, share))
    drawn = [share_interval((np.random.default_rng(seed).random(n) < share).astype(float)) for seed in range(60)]
    assert high - low == pytest.approx(np.mean([b - a for a, b in drawn]), rel=0.1)
    assert share_interval(np.full(n, 1 - 1e-12)) == pytest.approx(share_interval(np.ones(n)), abs=1e-6)
    collapsed = retrieval_metrics(np.zeros((n, n)), np.arange(n)).t2v
    low, high = collapsed.intervals["R@10"]
    assert 0 < low < collapsed["R@10"] < high < 100


def test_the_bootstrap_depends_on_its_seed_alone():
    scores = np.random.default_rng(0).random(50)
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)
    with pytest.raises(ValueError, match="n_resamples >= 1, got 50 scores and n_resamples=0"):
        bootstrap_interval(scores, n_resamples=0)


def test_results_print_as_json_and_as_a_table_with_counts():
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


def quality_by_all_orders(row, true):
    """Return the oracle: mean average precision and nDCG over every order of the items that keeps better ones ahead."""
    qualities = []
    for order in itertools.permutations(range(len(row))):
        ranked = [bool(true[item]) for item in sorted(order, key=lambda item: -row[item])]
        hit_ranks = [rank for rank, relevant in enumerate(ranked, start=1) if relevant]
        precision = np.mean([(i + 1) / rank for i, rank in enumerate(hit_ranks)])
        ideal = sum(1 / np.log2(rank + 1) for rank in range(1, len(hit_ranks) + 1))
        qualities.append((precision, sum(1 / np.log2(rank + 1) for rank in hit_ranks) / ideal))
    return np.mean(qualities, axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_and_ndcg_are_means_over_all_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, size=(6, 6)).astype(np.float32)
    truth = rng.random((6, 6)) < 0.4
    truth[np.arange(6), rng.integers(0, 6, size=6)] = True
    oracle = np.array([quality_by_all_orders(row, true) for row, true in zip(values, truth, strict=True)])
    np.testing.assert_allclose(np.stack(ranking.quality(Matrix(values), truth), axis=1), oracle, atol=1e-12)
    video_index = rng.integers(0, 6, size=6)
    single = np.array(
        [quality_by_all_orders(row, np.arange(6) == item) for row, item in zip(values, video_index, strict=True)]
    )
    np.testing.assert_allclose(np.stack(ranking.quality(Matrix(values), video_index), axis=1), single, atol=1e-12)


def test_adjusted_scores_equal_their_formulas_at_any_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    values, bank = rng.normal(size=(23, 17)), rng.normal(size=(40, 17))
    for block in (1 << 25, 40):
        monkeypatch.setattr(scores_of, "BLOCK", block)
        dual_softmax = DualSoftmax(Matrix(values), 7.0)
        exponentials = np.exp(7 * values)
        np.testing.assert_allclose(
            dual_softmax.rows(slice(0, 23)), values * exponentials / exponentials.sum(axis=0), rtol=1e-12
        )
        np.testing.assert_allclose(
            dual_softmax.columns(slice(0, 17)),
            values * exponentials / exponentials.sum(axis=1, keepdims=True),
            rtol=1e-12,
        )
        hubs = set(np.argsort(-bank, axis=1)[:, :2].ravel())
        normed = [row.argmax() in hubs for row in values]
        expected = np.where(
            np.array(normed)[:, None], np.exp(5 * values) / np.exp(5 * bank).sum(axis=0), np.exp(5 * values)
        )
        query_bank = QueryBank(Matrix(values), Matrix(bank), beta=5.0, k=2).rows(slice(0, 23))
        np.testing.assert_allclose(np.exp(query_bank), expected, rtol=1e-10)
    with pytest.raises(ValueError, match="scores of both directions, got QueryBank"):
        retrieval_metrics(QueryBank(Matrix(values), Matrix(bank)), np.arange(23) % 17)
    with pytest.raises(ValueError, match="got 17 and 5 items; score the same videos"):
        QueryBank(Matrix(values[:, :5]), Matrix(bank))
    with pytest.raises(ValueError, match="must be a finite number > 0, got 0"):
        DualSoftmax(Matrix(values), 0.0)


def test_hubness_counts_how_often_each_item_is_retrieved():
    values = np.array([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 0, 2, 1]])
    result = hubness(values, k=2)
    assert (result.k, result.most, result.hub, result.never) == (2, 3, 0, 0.25)  # items retrieved 3, 2, 1 and 0 times
    assert result.skewness == pytest.approx(0.0)
    assert hubness(np.eye(5), k=1).skewness == 0
    assert hubness(np.eye(5), k=1).never == 0
    assert hubness(np.array([[1.0, 0, 0, 0]] * 4), k=1).skewness > 1


def test_the_paired_bootstrap_detects_a_real_difference_and_no_other():
    rng = np.random.default_rng(0)
    a = (rng.random(1000) < 0.5).astype(float)
    better = np.where(rng.random(1000) < 0.1, 1.0, a)
    comparison = paired_bootstrap(a, better, n_resamples=2000)
    assert comparison.p < 0.01
    assert comparison.interval[0] <= comparison.mean <= comparison.interval[1]
    assert paired_bootstrap(a, a, n_resamples=200).p == 1.0
    hits, ties = np.tile([1.0, 0.0, 0.0], 4), np.full(12, 0.333333)  # a saved result rounds a third to 0.333333
    p_exact = paired_bootstrap(hits, np.full(12, 1 / 3), n_resamples=2000).p
    assert paired_bootstrap(hits, ties, n_resamples=2000).p == pytest.approx(p_exact)
    assert p_exact > 0.9
    other = rng.permutation(a)
    assert paired_bootstrap(a, other, n_resamples=2000).p > 0.05
    with pytest.raises(ValueError, match="scores of the same queries, got"):
        paired_bootstrap(a, a[1:])


def test_p_values_are_uniform_under_no_difference():
    """About a tenth of 200 comparisons of equals has p < 0.1."""
    below = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        a, b = (rng.random(120) < 0.4).astype(float), (rng.random(120) < 0.4).astype(float)
        below += paired_bootstrap(a, b, n_resamples=300, seed=trial).p < 0.1
    assert 8 <= below <= 36
