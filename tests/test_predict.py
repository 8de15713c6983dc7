"""Predictions of classes: of the head or of class names, equal to what evaluation computes; and names in general."""

from __future__ import annotations

import json
from inspect import unwrap
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from refused import refusal

import clipvid
from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import VideoDataset
from clipvid.errors import VideoError
from clipvid.evaluation.recognition import evaluate_recognition, evaluate_zero_shot
from clipvid.models.factory import attach, create_model
from clipvid.models.heads import LinearClassifier
from clipvid.models.predictions import predict_embeddings

NAMES = ["a red circle", "a blue_star", "a green square"]
FOUR = DataConfig(frames=4, precision="32-true")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 6)


@pytest.fixture(scope="module")
def paths(data):
    return [record.path for record in data]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("clipvid-mini", branch="mean")


def test_zero_shot_predictions_are_those_of_evaluate_zero_shot(model, data, paths):
    predictions = model.predict(paths, data.classes, data_config=FOUR)
    assert predictions.classes == tuple(data.classes)
    assert predictions.probabilities.shape == (6, len(data.classes))
    right = [label == data.classes[record.label] for label, record in zip(predictions.labels, data, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(evaluate_zero_shot(model, data, FOUR)["top-1"])
    again = model.predict(paths[0], data.classes, templates=("a picture of {}",), data_config=FOUR)
    assert not torch.allclose(again.probabilities, predictions.probabilities[:1])


def test_the_head_predicts_the_softmax_of_its_logits(model, paths):
    classified = attach(model.backbone, "mean")
    classified.head = LinearClassifier(model.embed_dim, ["x", "y", "z"])
    frames = clipvid.read_video(paths[0], 4)
    with torch.no_grad():
        expected = classified.classify(frames).softmax(dim=-1)
    for video, options in ((str(paths[0]), {"data_config": FOUR}), (frames, {"data_config": FOUR})):
        predictions = classified.train().predict(video, **options)
        torch.testing.assert_close(predictions.probabilities, expected)
        assert classified.training
    best = classified.predict(frames, top=2)[0]
    assert [name for name, _ in best] == [classified.head.classes[k] for k in expected[0].topk(2).indices]
    assert predictions.videos == ("clip 0",)


def test_predictions_print_briefly_and_become_a_table(model, paths):
    predictions = model.predict([*paths, *paths], NAMES, top=2, data_config=FOUR)
    lines = repr(predictions).splitlines()
    assert len(lines) == 11
    assert lines[0].startswith(f"{paths[0]}: a ")
    assert lines[-1] == "... and 2 more"
    table = predictions.to_frame()
    assert list(table.columns) == ["video", "rank", "class", "probability"]
    assert list(table["rank"]) == [1, 2] * 12
    assert list(table["probability"][:2]) == [entry.probability for entry in predictions[0]]
    assert len(list(predictions)) == len(predictions) == 12
    assert predictions[-1] == predictions[11]
    assert predictions[:2] == [predictions[0], predictions[1]]
    assert predictions[::-6] == [predictions[11], predictions[5]]
    with pytest.raises(IndexError):
        predictions[12]


def test_wrong_arguments_of_predict_are_named(model, paths):
    with pytest.raises(ValueError, match=r"classes must be given for a model without classifier, got None; pass class"):
        model.predict(paths[0])
    with pytest.raises(ValueError, match="classes must be a list of class names, got 'red'"):
        model.predict(paths[0], "red")
    with pytest.raises(ValueError, match="two or more different class names"):
        model.predict(paths[0], ["red"])
    with pytest.raises(ValueError, match="top must be an integer >= 1, got 0"):
        model.predict(paths[0], NAMES, top=0)


def test_evaluate_zero_shot_takes_other_class_names(model, data):
    plain = evaluate_zero_shot(model, data, FOUR)
    same = evaluate_zero_shot(model, data, FOUR, classes=data.classes)
    assert same["top-1"] == plain["top-1"]
    shifted = [*data.classes[1:], data.classes[0]]
    renamed = evaluate_zero_shot(model, data, FOUR, classes=shifted)
    assert renamed.classes == plain.classes == tuple(data.classes)
    predicted = model.predict([record.path for record in data], shifted, data_config=FOUR).probabilities.argmax(dim=1)
    right = [int(k) == record.label for k, record in zip(predicted, data, strict=True)]
    assert renamed["top-1"] == pytest.approx(100 * np.mean(right))
    for classes, message in (
        (data.classes[:-1], rf"classes must be {len(data.classes)} different names, .* got {len(data.classes) - 1}"),
        ([data.classes[0]] * len(data.classes), "different names"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_zero_shot(model, data, FOUR, classes=classes)


def test_evaluate_recognition_of_a_text_head_equals_zero_shot(model, data):
    named = attach(model.backbone, "mean")
    named.head = named.text_classifier(data.classes)
    assert evaluate_recognition(named, data, FOUR)["top-1"] == evaluate_zero_shot(model, data, FOUR)["top-1"]


def test_branch_kwargs_set_options_and_a_wrong_one_names_them_all(model):
    built = attach(model.backbone, branch_kwargs={"depth": 2, "mixer": "conv"})
    assert (built.branch.options.depth, built.branch.options.mixer) == (2, "conv")
    with pytest.raises(ValueError, match=r"branch stan has no option 'detph'; it has depth, .*mixer"):
        attach(model.backbone, branch_kwargs={"detph": 2})


def test_list_models_gives_sorted_names_with_tags_and_becomes_a_table():
    models = clipvid.list_models()
    assert models == sorted(["clipvid-mini", *open_clip.list_models()])
    assert models.pretrained["ViT-B-32"] == tuple(open_clip.list_pretrained_tags_by_model("ViT-B-32"))
    assert clipvid.list_models("VIT-b-32*") == [name for name in models if name.startswith("ViT-B-32")]
    assert clipvid.list_models("nothing") == []
    table = clipvid.list_models("*-mini").to_frame()
    assert table.to_dict("records") == [
        {"name": "clipvid-mini", "pretrained": (), "summary": "comes with clipvid, weights included"}
    ]
    assert list(models.to_frame()["name"]) == models


def test_from_pretrained_and_save_pretrained_are_load_and_save(model, tmp_path):
    loaded = clipvid.VideoCLIP.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert type(loaded) is clipvid.VideoCLIP
    assert loaded.fingerprint == model.fingerprint == clipvid.load(tmp_path / "m").fingerprint
    assert not any(part.training for part in loaded.modules())


def test_names_come_from_a_generator_too_and_empty_lists_are_refused(model, data, paths):
    frames = clipvid.read_video(paths[0], 4)
    listed = model.predict(frames, NAMES, data_config=FOUR)
    plain = unwrap(type(model).predict)
    assert plain(model, frames, (name for name in NAMES), data_config=FOUR).labels == listed.labels
    classifier = unwrap(type(model).text_classifier)
    assert torch.equal(classifier(model, iter(NAMES)).text, model.text_classifier(NAMES).text)
    evaluate = unwrap(evaluate_zero_shot)
    names = (name for name in list(data.classes))
    assert evaluate(model, data, FOUR, classes=names)["top-1"] == evaluate_zero_shot(model, data, FOUR)["top-1"]
    for call in (lambda: model.predict(frames, []), lambda: model.text_classifier([])):
        with pytest.raises(ValueError, match="a classifier needs two or more different class names, got "):
            call()
    with pytest.raises(ValueError, match="templates must hold at least one prompt, got none; "):
        evaluate_zero_shot(model, data, templates=[])


def test_a_folder_of_videos_and_a_pattern_are_refused_with_the_list_to_give(model, paths):
    for video in (paths[0].parent, str(paths[0].parent / "*.mp4")):
        with pytest.raises(VideoError, match=r'list.*sorted\(Path\(folder\)\.glob\("\*\.\w+"\)\)'):
            model.predict(video, NAMES)


def test_predictions_of_weights_that_are_not_finite_are_refused(model, paths, data):
    broken = create_model("clipvid-mini", branch="stan", branch_kwargs={"depth": 1})
    with torch.no_grad():
        for parameter in broken.branch.parameters():
            parameter.fill_(float("nan"))
    for call in (lambda: broken.predict(paths[0], NAMES), lambda: evaluate_zero_shot(broken, data, FOUR)):
        with pytest.raises(ValueError, match="the model's embedding is not finite; if its training diverged, load"):
            call()


def test_the_command_prints_what_predict_returns(model, paths, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.mp4").write_bytes(b"no video")
    Path("classes.txt").write_text("\n".join(NAMES) + "\n\n")
    words = ["predict", *map(str, paths[:2]), "--data-config.frames", "4", "--data-config.precision", "32-true"]
    expected = model.predict(paths[:2], NAMES, top=2, data_config=FOUR)

    assert main([*words, "--model", "clipvid-mini", "--classes", *NAMES, "--top", "2"]) == 0
    assert capsys.readouterr().out == f"{expected!r}\n"
    words.insert(1, "broken.mp4")
    others = ["--model", "clipvid-mini", "--classes", "classes.txt", "--prompts", "name"]
    assert main([*words, *others, "--top", "1", "--json", "--out", "table.csv"]) == 0
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    plain = model.predict(paths[:2], NAMES, templates=("{}",), data_config=FOUR)
    assert [video["classes"][0]["name"] for video in content["videos"]] == list(plain.labels)
    assert [video["path"] for video in content["videos"]] == list(map(str, paths[:2]))
    assert list(content["skipped"]) == ["broken.mp4"]
    assert "broken.mp4" in printed.err
    assert pd.read_csv("table.csv")["class"].tolist() == list(plain.labels)
    assert "--classes must be given for a model without classifier" in refusal(
        capsys, "predict", str(paths[0]), "--model", "clipvid-mini"
    )


def test_a_saved_classifier_predicts_its_own_classes_on_the_command_line(model, paths, tmp_path, capsys):
    classified = attach(model.backbone, "mean")
    classified.head = LinearClassifier(model.embed_dim, ["x", "y", "z"])
    classified.save(tmp_path / "saved")
    assert main(["predict", str(paths[0]), "--model", str(tmp_path / "saved"), "--data-config.frames", "4"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{paths[0]}: ")
    assert sorted(part.split()[0] for part in line.removeprefix(f"{paths[0]}: ").split(", ")) == ["x", "y", "z"]


def test_no_embeddings_give_no_predictions(model):
    nothing = predict_embeddings(model, torch.zeros(0, model.embed_dim), [], NAMES)
    assert len(nothing) == 0
    assert nothing.lines() == []
