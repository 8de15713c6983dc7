"""Results: what they hold, their comparison query by query, and the refusal of results on other data."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.open import open_dataset
from clipvid.data.records import ProtocolSpec, VideoDataset
from clipvid.errors import CheckpointError
from clipvid.evaluation.compare import compare
from clipvid.evaluation.metrics import (
    DualSoftmax,
    Products,
    QueryBank,
    paired_bootstrap,
    ranking_metrics,
    retrieval_metrics,
)
from clipvid.evaluation.recognition import evaluate_recognition, evaluate_zero_shot
from clipvid.evaluation.results import data_hash, read_result
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.evaluation.saved import checksum
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
def evaluation(model, data):
    return evaluate_retrieval(model, data, DATA_CONFIG)


def test_a_saved_result_describes_the_measurement_and_holds_every_query(model, data, tmp_path, evaluation):
    result = read_result(evaluation.save(tmp_path / "a.json"))
    assert result["model"]["base"] == "clipvid-mini"
    assert result["model"]["base_fingerprint"] == model.backbone.fingerprint
    assert result["model"]["branch_on"] is model.branch_is_on
    assert result["model"]["fingerprint"] == model.fingerprint
    expected = {"name": data.name, "videos": 12, "expected": None, "listed": None, "hash": "", "missing": []}
    assert result["data"] | {"hash": ""} == expected | {"unreadable": []}
    assert result["data_config"]["frames"] == 2
    assert result["precision"] == "32-true"
    side = result["metrics"]["t2v"]
    assert side["R@1"] == pytest.approx(100 * np.mean(side["each"]["R@1"]))
    assert side["MnR"] == pytest.approx(np.mean(side["each"]["MnR"]))
    assert {"R@50", "mAP", "nDCG"} <= set(side)
    assert side["queries"] == side["gallery"] == 12


def test_the_data_hash_depends_on_the_queries_and_not_on_the_folder(data, tmp_path):
    moved = replace(data, records=tuple(replace(r, path=tmp_path / r.path.name) for r in data))
    assert data_hash(moved) == data_hash(data)
    for other in (
        replace(data, records=data.records[::-1]),
        replace(data, records=(replace(data[0], captions=("another",)), *data.records[1:])),
        replace(data, records=(replace(data[0], end=0.5), *data.records[1:])),
    ):
        assert data_hash(other) != data_hash(data)


def test_adjusted_metrics_are_named_and_leave_the_plain_ones_as_they_are(model, data, evaluation):
    captions = [caption for record in data for caption in record.captions]
    with pytest.raises(ValueError, match="got 12 queries; give those of training videos"):
        evaluate_retrieval(model, data, DATA_CONFIG, bank=captions)
    bank = ["a small red circle moves up", "a large blue square grows", "a green star"]
    plain = evaluation
    result = evaluate_retrieval(model, data, DATA_CONFIG, dual_softmax=100.0, bank=bank, hubs=True)
    assert result.metrics.to_dict() == plain.metrics.to_dict()
    text = embed_texts(model, [r.captions[0] for r in data], precision="32-true")
    video = torch.nn.functional.normalize(embed_videos(model, data, DATA_CONFIG).video, dim=-1)
    scores, targets = Products(text, video), torch.arange(12)
    dual, normed = result.adjusted.values()
    assert dual.to_dict() == retrieval_metrics(DualSoftmax(scores, 100.0), targets).to_dict()
    banked = QueryBank(scores, Products(embed_texts(model, bank, precision="32-true"), video))
    assert normed.to_dict() == ranking_metrics(banked, targets).to_dict()
    names = list(result.adjusted)
    assert names[0].startswith("dual softmax, T=100 (scores of a query depend on all queries)")
    assert names[1] == "QB-Norm, text to video, bank of 3 training captions"
    assert all(name in str(result) for name in names)
    assert "hubs: " in str(result)
    assert "hubs: " not in str(plain)


@pytest.mark.parametrize("similarity", ["wti", "mug"])
def test_token_wise_scores_can_be_adjusted_and_re_ranked_ones_cannot(data, similarity):
    torch.manual_seed(0)
    model = create_model("clipvid-mini", branch="mean", similarity=similarity).eval()
    result = evaluate_retrieval(model, data, DATA_CONFIG, dual_softmax=50.0, bank=["a red circle"], hubs=True)
    assert len(result.adjusted) == 2
    assert result.similarity == similarity
    with pytest.raises(
        ValueError, match=r"all pairs, got rerank=3, dual_softmax=50\.0 and a bank of 0 captions; drop one"
    ):
        evaluate_retrieval(model, data, DATA_CONFIG, rerank=3, dual_softmax=50.0)
    again = evaluate_retrieval(model, data, DATA_CONFIG, rerank=3)
    assert f", {similarity} of the best 3 by mean, 32-true" in str(again)


def test_two_results_are_compared_query_by_query(data, evaluation):
    a = evaluation.to_dict()
    worse = json.loads(json.dumps(a))
    for side in ("t2v", "v2t"):
        worse["metrics"][side]["R@1"] = 0.0
        worse["metrics"][side]["each"]["R@1"] = [0.0] * 12
    text = str(compare(a, worse, n_resamples=500))
    row = next(line for line in text.splitlines() if line.startswith("t2v R@1 "))
    assert f"{-a['metrics']['t2v']['R@1']:+.2f}" in row
    assert float(row.split()[-1]) < 0.05
    same = next(line for line in text.splitlines() if line.startswith("t2v R@5 "))
    assert same.split()[-1] == "1"
    assert "clipvid-mini, mean" in text
    other = json.loads(json.dumps(a))
    other["data"]["hash"] = "0" * 64
    with pytest.raises(ValueError, match="must be of the same queries"):
        compare(a, other)


@pytest.fixture(scope="module")
def three(evaluation) -> list:
    """Return a fresh result, and the content of two that differ from it."""
    fresh = evaluation
    others = []
    for hits in ([0.0] * 6 + [1.0] * 6, [1.0] * 12):
        content = json.loads(json.dumps(fresh.to_dict()))
        content["metrics"]["t2v"]["R@1"] = 100 * float(np.mean(hits))
        content["metrics"]["t2v"]["each"]["R@1"] = hits
        others.append(content)
    return [fresh, *others]


def test_any_number_of_results_is_tested_against_the_first(three):
    comparison = compare(*three, names=("CLIP", "a|b", "50% & more"), n_resamples=300)
    frame = comparison.to_frame()
    assert len(frame) == 3 * 16
    for row, content in zip(frame[frame.metric == "t2v R@1"].itertuples(), three, strict=True):
        baseline, later = (
            np.asarray(r["metrics"]["t2v"]["each"]["R@1"]) for r in (three[0].to_dict(), as_dict(content))
        )
        test = paired_bootstrap(baseline, later, n_resamples=300)
        assert row.value == pytest.approx(100 * later.mean())
        if row.result != "CLIP":
            assert row.difference == pytest.approx(100 * test.mean)
            assert (row.low, row.high, row.p) == pytest.approx((100 * test.interval[0], 100 * test.interval[1], test.p))
    assert frame[frame.result == "CLIP"][["difference", "low", "high", "p"]].isna().all(axis=None)
    assert frame[frame.metric == "v2t MdR"]["p"].isna().all()  # a median has no value per query
    assert pd.read_csv(io.StringIO(comparison.to_csv()))["p"].tolist() == pytest.approx(
        frame["p"].tolist(), nan_ok=True
    )
    assert repr(comparison) == "Comparison(16 metrics of 3 results: CLIP, a|b, 50% & more)"


def as_dict(result):
    return result if isinstance(result, dict) else result.to_dict()


def test_a_comparison_is_written_as_text_markdown_latex_and_html(three):
    comparison = compare(*three, names=("CLIP", "a|b", "50% & <more>"), n_resamples=50)
    value = f"{three[0]['R@1']:.2f}"
    text = str(comparison).splitlines()
    assert len({line.index("95 %") for line in text if "95 %" in line}) == 1
    row = next(line for line in text if line.startswith("t2v R@1 "))
    assert row.split()[2:5] == [value, "50.00", "100.00"]
    table = comparison.to_markdown().partition("\n\n")[2].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1  # every row has as many cells
    assert len(table) == 2 + 16
    assert "a\\|b - CLIP [95 %]" in table[0]
    assert "50% &amp; &lt;more&gt;" in table[0]
    latex = comparison.to_latex()
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 17
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {1 + 3 + 2 * 2 - 1}
    assert r"50\% \& <more>" in lines[0]
    assert latex.index("% CLIP: clipvid-mini, mean") < latex.index(r"\begin{tabular}{lrrrrrrr}")
    page = comparison._repr_html_()
    assert page.count("<tr>") == 17
    assert "<more>" not in page


def test_results_to_compare_are_two_or_more_with_different_names(three):
    with pytest.raises(ValueError, match="results must be two or more, got 1; give more"):
        compare(three[0])
    with pytest.raises(ValueError, match="names must be given for more than 26 results, got 27 results; pass names="):
        compare(*[three[0]] * 27)
    with pytest.raises(ValueError, match=r"names must be 2 different ones, got \('x', 'x'\)"):
        compare(three[0], three[1], names=("x", "x"))


def test_recognition_results_are_compared_too(model, data, evaluation):
    head = model.text_classifier(data.classes)
    a = evaluate_recognition(model, data, DATA_CONFIG, head=head).to_dict()
    assert "similarity" not in a
    text = str(compare(a, a, n_resamples=50))
    assert "top-1" in text
    assert "mean class" in text
    with pytest.raises(ValueError, match="got recognition and retrieval"):
        compare(a, evaluation.to_dict())


def test_the_command_line_writes_and_compares_results(data, tmp_path, capsys, monkeypatch):
    root = data[0].path.parent.parent if (data[0].path.parent.parent / "captions.csv").exists() else data[0].path.parent
    table = next(path for folder in (root, *root.parents[:2]) for path in folder.glob("captions.csv"))
    monkeypatch.chdir(tmp_path)
    assert open_dataset("csv", table).n_captions == 12
    options = ["--task", "retrieval", "--data-config.frames", "2", "--dual-softmax", "100"]
    assert main(["eval", str(table), *options, "--out", "a.json"]) == 0
    printed = capsys.readouterr().out
    assert "dual softmax, T=100" in printed
    assert "result: a.json" in printed
    assert main(["compare", "a.json", "a.json", "--resamples", "50"]) == 0
    assert "v2t MnR" in capsys.readouterr().out
    assert main(["compare", "a.json", "a.json", "--resamples", "0"]) == 2
    assert "resamples must be an integer >= 1, got 0" in capsys.readouterr().err
    (tmp_path / "b.json").write_text('{"format": 2}')
    assert main(["compare", "a.json", "b.json"]) == 1
    assert "is an incomplete result: task, precision, model, data, data_config, metrics" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is not a saved result"),
        ("[]", "is not a saved result"),
        ('{"task": "retrieval"}', "is not a saved result: it has no format version"),
        (
            '{"format": 1, "task": "retrieval", "figures": {"t2v": {}}}',
            r"has result format 1, .* reads 2 and 3; evaluate the",
        ),
        ('{"format_version": 4, "metrics": 5}', "has result format 4, .* reads 2 and 3; evaluate the model again"),
        ('{"format_version": 3, "metrics": 5}', "is damaged or was edited: its content has changed since it was"),
        (
            '{"format": 2, "metrics": 5, "model": {"base": ""}}',
            "model.branch, model.fingerprint, data,.* metrics missing",
        ),
        ('{"format": 2, "task": "retrieval", "metrics": {"t2v": {}, "v2t": 5}}', "metrics.v2t missing"),
    ],
)
def test_another_file_or_format_is_refused(tmp_path, text, message):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_result(tmp_path / "b.json")


def test_the_keys_of_a_saved_result_are_snake_case(model, data):
    """Metric names are exempt: they occur below "metrics", and "top-1" also in `by_class`."""

    def keys(value):
        if isinstance(value, dict):
            return {*value, *(name for part in value.values() for name in keys(part))}
        return {name for part in value for name in keys(part)} if isinstance(value, list) else set()

    recognised = evaluate_recognition(model, data, DATA_CONFIG, head=model.text_classifier(data.classes))
    for evaluation in (recognised, evaluate_retrieval(model, data, DATA_CONFIG, hubs=True)):
        result = evaluation.to_dict()
        result.pop("metrics")
        assert not [name for name in keys(result) - {"top-1"} if not re.fullmatch("[a-z0-9_]+", name)]


def test_results_name_the_settings_that_change_metrics(model, data, evaluation):
    plain, photo = (
        evaluate_zero_shot(model, data, DATA_CONFIG, templates=t).to_dict() for t in (("{}",), ("a photo of a {}.",))
    )
    assert (plain["prompts"], photo["prompts"]) == (["{}"], ["a photo of a {}."])
    assert "prompts a photo of a {}." in str(compare(plain, photo, n_resamples=20))
    cut = evaluate_retrieval(model, data, replace(DATA_CONFIG, tokens=5)).to_dict()
    assert "captions of 5 tokens" in str(compare(cut, evaluation, n_resamples=20))
    assert data_hash(replace(data, protocol_spec=ProtocolSpec(shared=True))) != data_hash(data)


def test_missing_files_are_named_in_a_result(model, data):
    lacking = replace(data, missing=(Path("gone.mp4"),))
    result = evaluate_retrieval(model, lacking, DATA_CONFIG)
    assert "12 videos, 1 missing;" in str(result)
    assert result.to_dict()["data"]["missing"] == ["gone.mp4"]


def test_a_custom_list_is_reported_with_all_its_counts(model, data):
    """The protocol's size is reported separately, as the list does not belong to it."""
    protocol_spec = ProtocolSpec(videos=1000, fewer=True, listed=13)
    lacking = replace(data, name="msrvtt-1ka, list own", missing=(Path("gone.mp4"),), protocol_spec=protocol_spec)
    evaluation = evaluate_retrieval(model, lacking, DATA_CONFIG)
    lines = str(evaluation).splitlines()
    assert lines[0].startswith(
        "msrvtt-1ka, list own: 12 of the 13 videos listed, 1 missing (the protocol has 1000); 2 fr"
    )
    assert [line.endswith("  (N = 12; the protocol has 1000)") for line in lines[1:4]] == [True] * 3
    result = evaluation.to_dict()
    assert [result["data"][name] for name in ("videos", "listed", "expected")] == [12, 13, 1000]
    assert "list own, 12 of the 13 videos listed (the protocol has 1000), 2 frames" in str(compare(result, result))


def test_a_custom_list_of_at_least_the_protocols_size_is_not_marked(model, data):
    result = evaluate_retrieval(model, replace(data, protocol_spec=ProtocolSpec(videos=10, listed=12)), DATA_CONFIG)
    assert f"{data.name}: 12 of the 12 videos listed; 2 frames" in str(result)
    assert "protocol" not in str(result)


def test_every_metric_has_one_name(evaluation):
    result = evaluation
    assert result["t2v R@1"] == result["R@1"] == result.metrics.t2v["R@1"]
    assert result["v2t R@1"] == result.metrics.v2t["R@1"]
    for name in ("V2T R@1", "foo R@1", "R@3"):
        with pytest.raises(KeyError, match="choose one of R@1, R@5"):
            result[name]
    assert result.metadata.model["branch"] == "mean"


def test_names_that_are_no_utf8_have_a_place_in_tables(evaluation, tmp_path):
    """A file name may have any bytes, which Python keeps as lone surrogates and pandas refuses."""
    path = tmp_path / "a.json"
    content = evaluation.to_dict()
    content["data"]["name"] = "clips\udcff"
    path.write_text(json.dumps({**content, "checksum": checksum(content)}))
    result = read_result(path)
    assert set(result.to_frame()["data"]) == {"clips\\xff"}
    assert set(compare(result, result, names=["a\udcff", "b"]).to_frame()["result"]) == {"a\\xff", "b"}


def test_whole_numbers_are_bounds_of_intervals(evaluation, tmp_path):
    content = json.loads(evaluation.save(tmp_path / "a.json").read_text())
    del content["checksum"]
    content["metrics"]["t2v"]["intervals"]["R@1"] = [0, 2**63]
    (tmp_path / "b.json").write_text(json.dumps({**content, "checksum": checksum(content)}))
    result = read_result(tmp_path / "b.json")
    assert result["metrics"]["t2v"]["intervals"]["R@1"] == [0.0, 2.0**63]
    assert "9223372036854775808" in result._repr_html_()
