"""Tables of results: queries against a full sort of the similarities, metrics, and what is saved."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from clipvid.config.data_config import DataConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import ProtocolSpec, Record, VideoDataset
from clipvid.errors import CheckpointError
from clipvid.evaluation.metrics import Matrix
from clipvid.evaluation.per_query import RecognitionQueries, RetrievalQueries
from clipvid.evaluation.recognition import evaluate_recognition
from clipvid.evaluation.results import read_result
from clipvid.evaluation.retrieval import check_dual_softmax, check_retrieval, evaluate_retrieval
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.models.factory import create_model

DATA_CONFIG = DataConfig(frames=2, batch_size=8, precision="32-true")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 12)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("clipvid-mini", branch="mean").eval()


@pytest.fixture(scope="module")
def result(model, data):
    return evaluate_retrieval(model, data, DATA_CONFIG, dual_softmax=100.0, bank=["a red circle"])


def videos(captions: list[tuple[str, ...]], **protocol) -> VideoDataset:
    records = tuple(Record(Path(f"clips/{i}.mp4"), texts) for i, texts in enumerate(captions))
    return VideoDataset(records, protocol_spec=ProtocolSpec(**protocol))


def test_each_caption_has_the_rank_of_its_video_and_the_video_that_came_first(model, data, result):
    frame = result.per_query()
    video = F.normalize(embed_videos(model, data, DATA_CONFIG).video, dim=-1)
    similarity = (embed_texts(model, [r.captions[0] for r in data], precision="32-true") @ video.T).double().numpy()
    order = np.argsort(-similarity, axis=1, kind="stable")  # the oracle: a sort of every row
    assert frame["path"].tolist() == [str(record.path) for record in data]
    assert frame["caption"].tolist() == [record.captions[0] for record in data]
    assert frame["rank"].tolist() == [1 + row.tolist().index(i) for i, row in enumerate(order)]
    assert frame["score"].to_numpy() == pytest.approx(np.diag(similarity), abs=1e-6)
    assert frame["retrieved_path"].tolist() == [str(data[int(i)].path) for i in order[:, 0]]
    assert frame["retrieved_caption"].tolist() == [data[int(i)].captions[0] for i in order[:, 0]]
    assert frame["retrieved_score"].to_numpy() == pytest.approx(similarity.max(axis=1), abs=1e-6)
    back = result.per_query("v2t")
    order = np.argsort(-similarity.T, axis=1, kind="stable")
    assert back["rank"].tolist() == [1 + row.tolist().index(i) for i, row in enumerate(order)]
    assert back["retrieved_caption"].tolist() == [data[int(i)].captions[0] for i in order[:, 0]]
    assert back["retrieved_path"].tolist() == [str(data[int(i)].path) for i in order[:, 0]]
    for direction in ("t2v", "v2t"):
        ranks = getattr(result.metrics, direction).ranks.tolist()
        assert result.per_query(direction)["rank"].tolist() == ranks
    with pytest.raises(ValueError, match="direction must be one of t2v, v2t, got 'text'"):
        result.per_query("text")
    with pytest.raises(ValueError, match="without scores per query; get one from"):
        replace(result, queries=None).per_query()


def test_a_video_with_several_captions_is_ranked_by_its_best_one():
    """A video without a caption is in the gallery of captions' queries, and asks nothing itself."""
    data = videos([("a", "b"), (), ("c",), ("d", "e", "f")])
    truth = torch.tensor([0, 0, 2, 3, 3, 3])
    scores = np.random.default_rng(0).normal(size=(6, 4))
    queries = RetrievalQueries(Matrix(scores), list("abcdef"), truth, data)
    frame, back = queries.frame(), queries.frame("v2t")
    assert frame["path"].tolist() == [str(data[int(i)].path) for i in truth.tolist()]
    assert frame["rank"].tolist() == [1 + (scores[m] > scores[m, v]).sum() for m, v in enumerate(truth.tolist())]
    first = scores.argmax(axis=1)
    assert frame["retrieved_caption"].fillna("none").tolist() == [(*data[int(i)].captions, "none")[0] for i in first]
    assert back["path"].tolist() == [str(data[int(i)].path) for i in (0, 2, 3)]
    best = {v: max(scores[m, w] for m, w in [(m, v) for m in np.flatnonzero(truth.numpy() == v)]) for v in (0, 2, 3)}
    assert back["score"].tolist() == [best[v] for v in (0, 2, 3)]
    for row, v in enumerate((0, 2, 3)):
        rivals = [max(scores[m, v] for m in np.flatnonzero(truth.numpy() == w)) for w in (0, 2, 3)]
        assert back["rank"][row] == 1 + sum(rival > best[v] for rival in rivals)
        assert back["caption"][row] == "abcdef"[max(np.flatnonzero(truth.numpy() == v), key=lambda m: scores[m, v])]
        assert back["retrieved_caption"][row] == "abcdef"[scores[:, v].argmax()]


def test_a_shared_caption_is_right_for_its_best_ranked_video_and_ties_are_averaged():
    data = videos([("up",), ("down",), ("up",)], shared=True)
    truth = torch.tensor([[True, False, True], [False, True, False]])
    scores = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5]])
    frame = RetrievalQueries(Matrix(scores), ["up", "down"], truth, data).frame()
    assert frame["path"].tolist() == ["clips/2.mp4", "clips/1.mp4"]
    assert frame["rank"].tolist() == [2, 2]
    assert frame["retrieved_path"].tolist() == ["clips/1.mp4", "clips/0.mp4"]
    back = RetrievalQueries(Matrix(scores), ["up", "down"], truth, data).frame("v2t")
    assert back["rank"].tolist() == [2, 2, 1.5]
    assert back["caption"].tolist() == ["up", "down", "up"]


def test_parts_of_files_are_told_apart_by_their_times():
    data = videos([("a",), ("b",)])
    data = replace(data, records=(replace(data[0], end=2.0), replace(data[1], path=data[0].path, start=2.0)))
    frame = RetrievalQueries(Matrix(np.eye(2)[::-1].copy()), ["a", "b"], torch.arange(2), data).frame()
    assert frame.columns[:3].tolist() == ["path", "start", "end"]
    assert frame["end"].tolist()[0] == frame["retrieved_end"].tolist()[1] == 2.0
    assert frame["retrieved_start"].tolist()[0] == 2.0


def test_scores_of_reranked_pairs_are_those_of_the_token_wise_similarity(data):
    torch.manual_seed(0)
    model = create_model("clipvid-mini", branch="mean", similarity="mug_simple").eval()
    full, reranked = (evaluate_retrieval(model, data, DATA_CONFIG, rerank=rerank) for rerank in (None, 12))
    for direction in ("t2v", "v2t"):
        expected = full.per_query(direction)
        for column in ("score", "retrieved_score"):  # rounding decides which of two nearly equal scores is first
            assert reranked.per_query(direction)[column].tolist() == pytest.approx(expected[column].tolist(), abs=1e-5)
        assert expected["score"].abs().max() <= 1


def test_each_clip_has_its_label_prediction_and_probabilities(model, data):
    evaluation = evaluate_recognition(model, data, DATA_CONFIG, head=model.text_classifier(data.classes))
    frame = evaluation.per_query()
    scores = evaluation.queries.scores.double()
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")
    labels = [record.label for record in data]
    assert frame["path"].tolist() == [str(record.path) for record in data]
    assert frame["label"].tolist() == [data.classes[label] for label in labels]
    assert frame["prediction"].tolist() == [data.classes[row[0]] for row in order]
    assert frame["rank"].tolist() == [1 + row.tolist().index(label) for row, label in zip(order, labels, strict=True)]
    assert frame["correct"].tolist() == [row[0] == label for row, label in zip(order, labels, strict=True)]
    assert 100 * frame["correct"].mean() == pytest.approx(evaluation["top-1"])
    probabilities = torch.softmax(scores, dim=1)
    assert frame["probability"].tolist() == pytest.approx(probabilities.max(dim=1).values.tolist())
    assert frame["label_probability"].tolist() == pytest.approx(
        [probabilities[i, k].item() for i, k in enumerate(labels)]
    )
    with pytest.raises(ValueError, match="direction must be left out for recognition, got 't2v'"):
        evaluation.per_query("t2v")


def test_a_label_that_ties_gets_the_average_rank():
    data = VideoDataset((Record(Path("a.mp4"), label=1),), ("x", "y", "z"))
    frame = RecognitionQueries(torch.tensor([[2.0, 2.0, 0.0]]), torch.tensor([1]), data, data.classes).frame()
    assert frame["rank"].tolist() == [1.5]


def test_a_table_of_metrics_has_their_intervals_and_can_be_joined_with_others(model, data, result, tmp_path):
    frame = result.to_frame()
    row = frame[(frame.direction == "v2t") & (frame.metric == "R@5") & frame.adjustment.isna()].iloc[0]
    side = result.metrics.v2t
    assert (row.value, row.low, row.high) == (side["R@5"], *side.intervals["R@5"])
    assert (row.queries, row.videos, row.frames, row.branch) == (12, 12, 2, "mean")
    adjusted = frame[frame.adjustment.notna()]
    assert len(frame) == 2 * 8 + 2 * 8 + 8
    assert adjusted.adjustment.nunique() == 2
    recognised = evaluate_recognition(model, data, DATA_CONFIG, head=model.text_classifier(data.classes))
    both = pd.concat([frame, recognised.to_frame()], ignore_index=True)
    assert both[both.task == "recognition"].metric.tolist() == ["top-1", "top-5", "mean class"]
    assert both[both.task == "recognition"].direction.isna().all()
    wide = both[both.adjustment.isna()].pivot_table(index="task", columns=["direction", "metric"], values="value")
    assert wide.loc["retrieval", ("t2v", "R@1")] == result["R@1"]
    saved = read_result(result.save(tmp_path / "a.json"))
    pd.testing.assert_frame_equal(saved.to_frame(), frame)


@pytest.mark.parametrize("task", ["retrieval", "recognition"])
def test_queries_are_saved_beside_a_result_on_request(model, data, result, tmp_path, task):
    if task == "recognition":
        result = evaluate_recognition(model, data, DATA_CONFIG, head=model.text_classifier(data.classes))
    with pytest.raises(CheckpointError, match=r"a.json was saved without its queries; .*per_query=True"):
        read_result(result.save(tmp_path / "a.json")).per_query()
    saved = read_result(result.save(tmp_path / "a.json", per_query=True))
    for direction in ("t2v", "v2t") if task == "retrieval" else (None,):
        pd.testing.assert_frame_equal(saved.per_query(direction), result.per_query(direction))
    with pytest.raises(ValueError, match="direction must be"):
        saved.per_query("text")
    table = pd.read_parquet(tmp_path / "a.queries.parquet")
    assert table["path"].tolist()[:12] == [str(record.path) for record in data]
    replace(result, metadata=replace(result.metadata, precision="other")).save(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match=r"a.queries.parquet belongs to another result than"):
        read_result(tmp_path / "a.json").per_query()
    pd.DataFrame({"rank": [1.0]}).to_parquet(tmp_path / "a.queries.parquet")
    with pytest.raises(CheckpointError, match=r"a.queries.parquet is damaged or belongs to another result than"):
        saved.per_query()


def test_results_are_shown_in_a_few_lines(model, data, result, tmp_path):
    recognised = evaluate_recognition(model, data, DATA_CONFIG, head=model.text_classifier(data.classes))
    assert repr(result) == (
        f"EvaluationResult(retrieval on {data.name}, 12 videos: t2v R@1 {result['R@1']:.1f}, "
        f"v2t R@1 {result['v2t R@1']:.1f})"
    )
    assert repr(recognised) == (
        f"EvaluationResult(recognition on {data.name}, 12 videos: top-1 {recognised['top-1']:.1f})"
    )
    saved = read_result(result.save(tmp_path / "a.json"))
    assert repr(saved) == repr(result).replace("EvaluationResult", "SavedResult")
    assert json.loads(json.dumps(saved)) == result.to_dict()
    for metrics in (result.metrics, recognised.metrics):
        assert len(repr(metrics)) < 300
        assert "array" not in repr(metrics)
    for shown in (result, saved, recognised):
        page = shown._repr_html_()
        assert len(page) < 3000
        assert "<script" not in page
    metadata = replace(result.metadata, data="<b>bold</b> & more")
    page = replace(result, metadata=metadata)._repr_html_()
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in page
    assert "<b>bold" not in page
    assert f"{result['v2t R@5']:.1f} [" in page


def test_a_result_draws_its_curves_or_its_confusions(model, data, result):
    axes = result.plot().axes[0]
    assert axes.lines[0].get_ydata()[0] == pytest.approx(result["R@1"])
    more_captions = replace(result.metrics, v2t=replace(result.metrics.v2t, n_gallery=40))
    lines = {line.get_label(): line for line in replace(result, metrics=more_captions).plot().axes[0].lines}
    for name, size in (("text to video", 12), ("video to text", 40)):
        assert lines[f"chance, {name}"].get_ydata()[0] == pytest.approx(100 / size)
    recognised = evaluate_recognition(model, data, DATA_CONFIG, head=model.text_classifier(data.classes))
    figure = recognised.plot()
    assert data.name in figure.get_suptitle()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hubs": -1}, "hubs must be True or False, got -1"),
        ({"best": "x"}, "best must be an integer >= 0, got 'x'; it is the number of videos"),
        ({"best": -1}, "best must be an integer >= 0, got -1; it is the number of videos"),
        ({"rerank": "a"}, "rerank must be a number, got 'a'"),
    ],
)
def test_options_of_retrieval_of_another_type_are_refused_by_name(model, data, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call_unchecked(model, data, **options)


def test_a_dual_softmax_that_is_no_number_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^dual_softmax must be a number, got 'a'; "):
        inspect.unwrap(check_dual_softmax)("a")


def call_unchecked(model, data, **options):
    """Evaluate retrieval, or check its options, without the type checks of the tests."""
    if not {"hubs", "best"} & options.keys():
        return inspect.unwrap(check_retrieval)(model, data, **options)
    return inspect.unwrap(evaluate_retrieval)(model, data, DATA_CONFIG, **options)
