"""Evaluation under a protocol: its size and tokens, shared captions, few shots, base to novel, pages of failures."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import PROMPT_SETS
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import ProtocolSpec, Record, VideoDataset
from clipvid.errors import DataError
from clipvid.evaluation.compare import summarize
from clipvid.evaluation.html_report import write_report
from clipvid.evaluation.metrics import best_items, ranking_metrics, recognition_metrics, retrieval_metrics
from clipvid.evaluation.recognition import base_to_novel, evaluate_recognition, evaluate_zero_shot
from clipvid.evaluation.results import data_hash, read_result
from clipvid.evaluation.retrieval import evaluate_retrieval, queries
from clipvid.evaluation.saved import checksum
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.features.encode import trained_data_config
from clipvid.features.taps.memory import encode_dataset
from clipvid.models.backbone import text
from clipvid.models.factory import create_model
from clipvid.video.decode import read

DATA_CONFIG = DataConfig(frames=2, batch_size=8, precision="32-true")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 20)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("clipvid-mini", branch="mean").eval()


@pytest.fixture(scope="module")
def evaluation(model, data):
    return evaluate_retrieval(model, data, DATA_CONFIG)


@pytest.fixture
def broken(data, tmp_path) -> VideoDataset:
    """Return the data as a protocol of 20 videos with one that cannot be read."""
    (tmp_path / "broken.mp4").write_bytes(b"")
    records = (replace(data[0], path=tmp_path / "broken.mp4"), *data.records[1:])
    return replace(data, records=records, protocol_spec=ProtocolSpec(videos=20))


def in_memory(data, **changes):
    """Return the data set of the decoded frames of `data`."""
    options = {"captions": [r.captions for r in data], "labels": [r.label for r in data], "classes": data.classes}
    return VideoDataset.from_arrays([read(record.path) for record in data], **options | changes)


def test_arrays_are_scored_like_the_files_that_they_were_decoded_from(model, data, tmp_path):
    data = data.subset(range(8))
    arrays = in_memory(data)
    for score in (evaluate_retrieval, evaluate_zero_shot):
        assert score(model, arrays, DATA_CONFIG).metrics.to_dict() == score(model, data, DATA_CONFIG).metrics.to_dict()
    page = write_report(evaluate_retrieval(model, arrays, DATA_CONFIG, best=2), tmp_path / "report.html").read_text()
    strips = write_report(evaluate_retrieval(model, data, DATA_CONFIG, best=2), tmp_path / "files.html").read_text()
    assert re.findall('base64,([^"]+)', page) == re.findall('base64,([^"]+)', strips)
    assert re.search(r"right: clip \d+<", page)


def test_results_on_other_pixels_are_results_on_other_data(data):
    few = data.subset(range(2))
    swapped = VideoDataset.from_arrays([read(record.path) for record in reversed(few.records)], [["a"], ["b"]])
    assert data_hash(in_memory(few)) == data_hash(in_memory(few)) != data_hash(few)
    assert data_hash(in_memory(few, captions=[["a"], ["b"]], labels=None, classes=())) != data_hash(swapped)


def test_a_gallery_smaller_than_the_protocols_is_refused(model, broken):
    skip = replace(DATA_CONFIG, unreadable="skip")
    with pytest.raises(DataError, match=r"has 20 videos and 19 are available, so the metrics would be over an easie"):
        evaluate_retrieval(model, broken, skip)
    with pytest.raises(DataError, match="allow it with allow_missing"):
        evaluate_zero_shot(model, broken, skip)
    with pytest.raises(DataError, match="19 are available"):
        evaluate_retrieval(model, encode_dataset(model, broken, skip))


def test_n_is_printed_beside_every_metric_of_an_incomplete_gallery(model, broken, tmp_path):
    allowed = replace(broken, protocol_spec=replace(broken.protocol_spec, fewer=True))
    evaluation = evaluate_retrieval(model, allowed, replace(DATA_CONFIG, unreadable="skip"), dual_softmax=100.0)
    lines = [line for line in str(evaluation).splitlines() if re.match(r"(t2v|v2t)", line)]
    assert len(lines) == 4
    assert all(line.endswith("(N = 19 of 20)") for line in lines)
    result = read_result(evaluation.save(tmp_path / "result.json"))
    assert (result["data"]["videos"], result["data"]["expected"]) == (19, 20)
    assert "N =" not in str(
        evaluate_retrieval(
            model, replace(broken, records=broken.records[1:], protocol_spec=ProtocolSpec()), DATA_CONFIG
        )
    )


def test_a_part_of_a_data_set_gets_its_own_name_and_no_protocol_size(data, model):
    full = replace(data, protocol_spec=ProtocolSpec(videos=20, frames=3, tokens=16))
    train, val = full.split(0.5)
    assert (train.protocol_spec.videos, val.protocol_spec.videos, val.protocol_spec.tokens) == (None, None, 16)
    assert val.name == f"{data.name}, 10 of 20 videos"  # a result never names the protocol for a part of it
    assert full.subset(range(20)).name == data.subset([0]).name == data.name
    assert val.subset(range(3)).name == f"{data.name}, 3 of 20 videos"
    listed = replace(data, protocol_spec=ProtocolSpec(videos=1000, listed=20))
    assert listed.subset([0]).name == f"{data.name}, 1 of 20 videos"  # of the 20 listed, not the protocol's 1000
    assert (
        listed.subset([0]).protocol_spec
        == listed.of_classes(data.classes).subset([0]).protocol_spec
        == ProtocolSpec(full_set=(data.name, 20))
    )
    two_classes = full.of_classes(data.classes[:2])
    assert two_classes.name == f"{data.name}, 2 of {len(data.classes)} classes"
    assert two_classes.subset([0]).name == f"{two_classes.name}, 1 of {len(two_classes)} videos"
    assert full.of_classes(data.classes).name == data.name
    assert evaluate_retrieval(model, val).data_config == DataConfig(frames=3, tokens=16)
    assert trained_data_config(model, full.protocol_spec) == DataConfig(frames=3, tokens=16)


def test_captions_are_cut_to_a_number_of_tokens_and_keep_their_end_token(model):
    long = "a small red circle moves to the left and then it turns around twice"
    ids = model.backbone.tokenize([long])[0].tolist()
    pad, end = text.special_tokens(model.tokenizer)
    cut = model.backbone.tokenize([long, "a circle"], longest=7)
    assert cut[0].tolist() == [*ids[:6], end, *[pad] * (len(ids) - 7)]
    assert torch.equal(cut[1], model.backbone.tokenize(["a circle"])[0])
    same_after_cut = embed_texts(model, [long, long[: long.index("turns")]], tokens=7, precision="32-true")
    assert torch.equal(same_after_cut[0], same_after_cut[1])
    uncut = embed_texts(model, [long, long[: long.index("turns")]], precision="32-true")
    assert not torch.equal(uncut[0], uncut[1])
    assert torch.equal(text.cut(cut, 500, pad=pad, end=end), cut)
    without_end = text.cut(torch.tensor([[5, 6, 7, 8, 1, 1]]), 3, pad=1, end=None)
    assert without_end.tolist() == [[5, 6, 7, 1, 1, 1]]
    with pytest.raises(ValueError, match="tokens must be an integer >= 3, got 2"):
        DataConfig(tokens=2)


def test_retrieval_is_scored_with_cut_captions(model, data):
    data = data.subset(range(10))
    short = evaluate_retrieval(model, data, replace(DATA_CONFIG, tokens=5))
    store = encode_dataset(model, data, DATA_CONFIG)
    assert short.metrics.t2v.ranks.tolist() != evaluate_retrieval(model, store).metrics.t2v.ranks.tolist()
    assert short.to_dict()["data_config"]["tokens"] == 5
    stored = evaluate_retrieval(model, store, replace(DATA_CONFIG, tokens=5))
    assert stored.metrics.t2v.values == pytest.approx(short.metrics.t2v.values)
    protocol = replace(data, protocol_spec=ProtocolSpec(tokens=5, frames=3))
    assert evaluate_retrieval(model, protocol, DATA_CONFIG).data_config.tokens == 5  # even when a data config is passed
    assert encode_dataset(model, protocol).data_config.frames == 3


def test_equal_captions_are_one_query_and_match_all_their_videos(model, data):
    """Templates of Something-Something: each text is one query, and every video with that text is relevant."""
    captions = [("moving up",), ("moving down",), ("moving up", "nearing")]
    records = tuple(replace(r, captions=captions[i % 3]) for i, r in enumerate(data))
    shared = replace(data, records=records, protocol_spec=ProtocolSpec(shared=True))
    texts, truth = queries(shared)
    assert texts == ["moving up", "moving down", "nearing"]
    assert truth.tolist() == [[i % 3 != 1 for i in range(20)], [i % 3 == 1 for i in range(20)],
                              [i % 3 == 2 for i in range(20)]]  # fmt: skip
    evaluation = evaluate_retrieval(model, shared, DATA_CONFIG)
    video = torch.nn.functional.normalize(embed_videos(model, shared, DATA_CONFIG).video, dim=-1)
    scores = (embed_texts(model, texts, precision="32-true") @ video.T).double()
    for side, matrix, right in (("t2v", scores, truth), ("v2t", scores.T, truth.T)):
        best = [min(1 + int((row > row[j]).sum()) for j in np.flatnonzero(ok)) for row, ok in zip(matrix, right)]  # noqa: B905
        assert getattr(evaluation.metrics, side).ranks.tolist() == best
    assert (evaluation.metrics.t2v.n_queries, evaluation.metrics.v2t.n_queries) == (3, 20)


def test_a_relevance_matrix_scores_both_directions_and_leaves_out_videos_without_captions():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(6, 9)), rng.random((6, 9)) < 0.3
    truth[:, 4], truth[np.arange(6), np.arange(6) % 4] = False, True
    metrics = retrieval_metrics(scores, truth)
    assert metrics.t2v.values == ranking_metrics(scores, truth).values
    captioned = truth.any(axis=0)
    assert metrics.v2t.values == ranking_metrics(scores.T[captioned], truth.T[captioned]).values
    assert metrics.v2t.n_queries == captioned.sum()
    one = retrieval_metrics(scores[:, :6], np.eye(6, dtype=bool))
    for side in ("t2v", "v2t"):
        plain = getattr(retrieval_metrics(scores[:, :6], np.arange(6)), side).values
        assert getattr(one, side).values == pytest.approx(plain)


def labelled(counts: dict[str, int]) -> VideoDataset:
    names = tuple(counts)
    records = [Record(Path(f"{name}{i}.mp4"), label=names.index(name)) for name in names for i in range(counts[name])]
    return VideoDataset(tuple(records), names, "set")


def test_few_shot_takes_the_same_number_of_videos_from_every_class():
    data = labelled({"a": 5, "b": 3, "c": 9})
    chosen = data.few_shot(3, seed=1)
    assert [r.label for r in chosen] == [0] * 3 + [1] * 3 + [2] * 3
    assert chosen.records == data.few_shot(3, seed=1).records != data.few_shot(3, seed=2).records
    assert set(chosen) <= set(data)
    cut = replace(data, records=tuple(replace(r, start=s, end=s + 1.0) for r in data for s in (0.0, 1.0)))
    assert [r.label for r in cut.few_shot(3, seed=1)] == [0] * 6 + [1] * 6 + [2] * 6  # clips of a video stay together
    with pytest.raises(ValueError, match="set has classes with fewer than 4 videos: b"):
        data.few_shot(4)
    with pytest.raises(ValueError, match="integer >= 1, got 0"):
        data.few_shot(0)


def test_a_split_keeps_a_file_of_every_class_where_files_have_clips_of_several():
    labels = {"a": (None, 0), "b": (None,), "c": (0,), "d": (0,)}
    for names, choices in (("ab", {"b"}), ("acb", {"a", "b", "c"}), ("acdb", {"a", "b", "c", "d"})):
        records = [Record(Path(name), label=label) for name in names for label in labels[name]]
        data = VideoDataset(tuple(records), ("x",))
        splits = [data.split(0.4, seed=seed) for seed in range(9)]
        assert {record.path.name for _, validation in splits for record in validation} <= choices
        assert all({record.label for record in train} == {None, 0} for train, _ in splits)


def test_base_classes_are_the_frequent_half_and_labels_follow():
    base, novel = labelled({"a": 2, "b": 7, "c": 2, "d": 4, "e": 1}).base_novel()
    assert (base.classes, novel.classes) == (("a", "b", "d"), ("c", "e"))
    assert [r.label for r in novel] == [0, 0, 1]
    assert [base.classes[r.label] for r in base] == [r.path.stem[0] for r in base]
    with pytest.raises(ValueError, match="has no class 'x'"):
        base.of_classes(["x"])


def test_class_names_are_embedded_at_the_precision_of_the_videos(model, data, monkeypatch):
    autocast, encode = [], type(model).encode_text

    def spy(self, *args, **options):
        autocast.append(torch.is_autocast_enabled("cpu"))
        return encode(self, *args, **options)

    monkeypatch.setattr(type(model), "encode_text", spy)
    for precision in ("32-true", "bf16-mixed"):
        evaluate_zero_shot(model, data, replace(DATA_CONFIG, precision=precision))
    assert autocast == [False, True]


def test_base_to_novel_classifies_each_half_among_the_names_of_that_half(model, data):
    learned = data.base_novel()[1].classes  # as from a training set with reversed class counts
    evaluation = base_to_novel(model, data, DATA_CONFIG, base=learned)
    base, novel = data.of_classes(learned), data.of_classes([c for c in data.classes if c not in learned])
    assert evaluation.base["top-1"] == evaluate_zero_shot(model, base, DATA_CONFIG)["top-1"]
    assert evaluation.novel["top-1"] == evaluate_zero_shot(model, novel, DATA_CONFIG)["top-1"]
    first, second = evaluation.base["top-1"], evaluation.novel["top-1"]
    assert evaluation.harmonic_mean == pytest.approx(2 / (1 / first + 1 / second) if first and second else 0)
    assert "harmonic mean" in str(evaluation)
    frame = evaluation.to_frame()
    assert frame.loc[frame.metric == "top-1", ["classes", "value"]].values.tolist() == [
        ["base", first],
        ["novel", second],
    ]
    assert repr(evaluation).startswith(f"BaseToNovel(top-1: base {first:.1f}, novel {second:.1f}, harmonic mean")
    assert evaluation._repr_html_().count("<table>") == 2


def test_recognition_is_reported_class_by_class(model, data):
    logits = np.array([[3, 1, 0, 0], [1, 3, 0, 0], [0, 1, 3, 0], [0, 3, 1, 0], [0, 3, 2, 0]], dtype=float)
    classes = recognition_metrics(logits, np.array([0, 0, 2, 2, 2])).by_class()
    assert [(c.videos, c.mistaken_for) for c in classes] == [(2, 1), (0, None), (3, 1), (0, None)]
    assert [c.top1 for c in classes] == pytest.approx([50, None, 100 / 3, None])
    assert classes[2].mistaken == pytest.approx(200 / 3)
    evaluation = evaluate_recognition(model, data, DATA_CONFIG, head=model.text_classifier(data.classes))
    table = evaluation.class_table().splitlines()
    assert len(table) == 1 + len(data.classes)
    result = evaluation.to_dict()["by_class"]
    assert [row["class"] for row in result] == list(data.classes)
    present = [row for row in result if row["videos"]]
    assert np.mean([row["top-1"] for row in present]) == pytest.approx(evaluation["mean class"])
    with pytest.raises(ValueError, match="only recognition has classes"):
        evaluate_retrieval(model, data, DATA_CONFIG).class_table()


def test_the_best_items_equal_those_of_a_full_sort(model, data, evaluation):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (7, 11)).astype(float)
    assert best_items(scores, 4).tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :4].tolist()
    top = evaluate_retrieval(model, data, DATA_CONFIG, best=3).top_results
    assert top is not None
    assert top.best.shape == (20, 3)
    assert evaluation.top_results is None


@pytest.mark.parametrize("k", [1, 2, 3, 5, 30])
def test_items_that_tie_at_the_kth_place_are_chosen_in_gallery_order(k):
    scores = np.random.default_rng(0).integers(0, 3, (50, 20)).astype(np.float32)
    assert best_items(scores, k).tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()


def test_a_page_of_failures_shows_every_caption_that_failed(model, broken, tmp_path):
    """One caption would be markup, and one video is deleted before the page is written."""
    odd = replace(broken[1], captions=("<b>not bold</b> & more",))
    readable = replace(broken, records=(odd, *broken.records[2:]), protocol_spec=ProtocolSpec())
    evaluation = evaluate_retrieval(model, readable, DATA_CONFIG, best=2)
    deleted = replace(readable, records=(replace(odd, path=tmp_path / "gone.mp4"), *readable.records[1:]))
    page = write_report(
        replace(evaluation, top_results=replace(evaluation.top_results, data=deleted)),
        tmp_path / "failures.html",
        queries=100,
    ).read_text()
    failed = int((evaluation.metrics.t2v.ranks > 1).sum())
    assert page.count("<section>") == failed > 5
    assert f"{failed} of 19 captions did not rank their video first; shown: all of them" in page
    assert "&lt;b&gt;not bold&lt;/b&gt; &amp; more" in page
    assert "<b>not" not in page
    assert "no such file" in page
    assert "http" not in page
    order = [float(rank) for rank in re.findall(r"rank of its video: ([\d.]+)<", page)]
    assert order == sorted(order, reverse=True)
    few = write_report(evaluation, tmp_path / "few.html", queries=2).read_text()
    assert few.count("<section>") == 2
    with pytest.raises(ValueError, match="best=5"):
        write_report(evaluate_retrieval(model, readable, DATA_CONFIG), tmp_path / "none.html")


def test_a_page_of_wrong_clips_shows_label_prediction_and_probabilities(model, data, tmp_path):
    """One class name would be markup, and one video is deleted before the page is written."""
    names = ("<i>odd</i> & more", *data.classes[1:])
    odd = replace(data, classes=names)
    evaluation = evaluate_recognition(model, odd, DATA_CONFIG, head=model.text_classifier(names))
    table = evaluation.per_query()
    wrong = table[~table.correct].sort_values(["rank", "probability"], ascending=False)
    assert len(wrong) > 5
    gone = replace(odd[wrong.index[0].item()], path=tmp_path / "gone.mp4")
    records = tuple(gone if i == wrong.index[0] else r for i, r in enumerate(odd))
    deleted = replace(evaluation, queries=replace(evaluation.queries, data=replace(odd, records=records)))
    page = write_report(deleted, tmp_path / "wrong.html", queries=100).read_text()
    assert f"{len(wrong)} of 20 clips were not recognised; shown: all of them" in page
    sections = page.split("<section>")[1:]
    assert len(sections) == len(wrong)
    for section, row in zip(sections, wrong.itertuples(), strict=True):
        label, prediction = (name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for name in row[2:4])
        assert section.startswith(
            f"<h2>{label} <small>predicted: {prediction}; rank of the label: {row.rank:g}</small>"
        )
        shares = re.findall(r"<td>([\d.]+) %</td>", section)
        assert shares[0] == f"{100 * row.probability:.1f}"
        assert re.search(rf'<tr class="right">.*<td>{100 * row.label_probability:.1f} %</td>', section)
        assert len(shares) == (5 if row.rank <= 5 else 6)
    assert page.count("data:image/jpeg;base64,") == len(wrong) - 1
    assert "no such file" in sections[0]
    assert "<i>odd" not in page
    assert "http" not in page
    assert "<script" not in page
    assert write_report(evaluation, tmp_path / "few.html", queries=2).read_text().count("<section>") == 2
    with pytest.raises(ValueError, match="queries must be an integer >= 1, got 0"):
        write_report(evaluation, tmp_path / "none.html", queries=0)
    with pytest.raises(ValueError, match="a recognition result with scores"):
        write_report(replace(evaluation, queries=None), tmp_path / "none.html")


def test_the_command_line_reports_prompts_and_classes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(write_dataset(tmp_path / "few", "test", 6)[0].path.parent)
    data_config = ["--data-config.frames", "1"]
    assert (
        main(["eval", folder, "--task", "retrieval", *data_config, "--report", "page.html", "--report-queries", "2"])
        == 0
    )
    assert "report: page.html" in capsys.readouterr().out
    assert Path("page.html").read_text().count("<section>") == 2
    Path("mine.txt").write_text("a film of {}\n\nwe see {} here\n")
    for prompts in (*PROMPT_SETS, "mine.txt"):
        assert main(["eval", folder, "--zero-shot", "--prompts", prompts, "--by-class", *data_config]) == 0
        assert "taken for" in capsys.readouterr().out
    Path("bad.txt").write_text("a film")
    for words, reason in {
        ("--zero-shot", "--prompts", "bad.txt"): "'a film' has no {} for the class name",
        ("--zero-shot", "--prompts", "none"): "--prompts must be one of video, name, photo, person, or a text file",
        ("--task", "retrieval", "--prompts", "name"): "give --zero-shot, or leave them out",
        ("--task", "retrieval", "--by-class"): "only recognition has classes",
        (
            "--task",
            "retrieval",
            "--report",
            "x.html",
            "--report-queries",
            "0",
        ): "--report-queries must be an integer >=",
        ("--task", "retrieval", "--report", "."): ". is a folder, a file should go there",
    }.items():
        assert main(["eval", folder, *words, *data_config]) in (1, 2)
        assert reason in capsys.readouterr().err


def test_few_shot_training_validates_on_the_remaining_videos(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        (tmp_path / "set" / ("red" if i % 2 else "blue")).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / ("red" if i % 2 else "blue") / f"{i}.mp4").write_bytes(data[i].path.read_bytes())
    train = ["train", "set", "--task", "recognition", "--epochs", "1", "--batch-size", "2", "--data-config.frames", "2"]
    assert main([*train, "--shots", "2", "--out", "run", "--branch", "mean", "--options", '{"hidden": 8}']) == 0
    assert "on 2 validation videos" in capsys.readouterr().out
    assert main([*train, "--shots", "3", "--out", "all", "--branch", "mean"]) == 1
    assert "3 shots take all 6 videos; give --val, or fewer shots" in capsys.readouterr().err


def test_runs_are_summarised_by_mean_and_deviation(evaluation, tmp_path, capsys):
    results, evaluated = [], evaluation.to_dict()
    for seed in range(3):
        result = copy.deepcopy(evaluated)
        result["model"]["fingerprint"] = str(seed)
        result["metrics"]["t2v"]["R@1"] = 40.0 + 2 * seed
        result["checksum"] = checksum(result)
        results.append(result)
        (tmp_path / f"{seed}.json").write_text(json.dumps(result))
    line = next(line for line in summarize(*results).splitlines() if line.startswith("t2v R@1 "))
    assert line.split()[2:4] == ["42.00", "2.00"]
    assert main(["summarize", *(str(tmp_path / f"{seed}.json") for seed in range(3))]) == 0
    assert "of 3 runs" in capsys.readouterr().out
    results[1]["data_config"] |= {"workers": 3, "batch_size": 5}  # these do not affect the metrics
    assert "of 3 runs" in summarize(*results)
    assert "of 2 runs" in summarize(evaluation, results[2]), "fresh and saved results go together"
    other = json.loads(json.dumps(results[1]))
    other["data_config"]["frames"] = 9
    with pytest.raises(ValueError, match=r"got different data_config.frames"):
        summarize(results[0], other)
    with pytest.raises(ValueError, match="the same fingerprint twice"):
        summarize(results[0], results[0])
    with pytest.raises(ValueError, match="two or more, got 1"):
        summarize(*results[:1])
