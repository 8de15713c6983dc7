"""A user's script with every public name; type checkers read it (tests/test_public_types.py), and nothing runs it."""

from pathlib import Path
from typing import assert_type

import pandas as pd
from torch import Tensor, nn

import clipvid
from clipvid.evaluation.metrics import RecognitionMetrics, RetrievalMetrics
from clipvid.evaluation.results import EvaluationResult
from clipvid.models.backbone.open_clip import ModelNames
from clipvid.models.predictions import Predictions
from clipvid.search.hits import Hits
from clipvid.training.history import TrainResult


def build(clip: nn.Module) -> clipvid.VideoCLIP:
    model = clipvid.create_model("ViT-B-32", "openai", branch="stan", branch_kwargs={"depth": 4})
    assert_type(model, clipvid.VideoCLIP)
    assert_type(clipvid.attach(clip, "mean"), clipvid.VideoCLIP)
    assert_type(clipvid.load("adapter", device="cpu"), clipvid.VideoCLIP)
    assert_type(clipvid.VideoCLIP.from_pretrained("me/adapter"), clipvid.VideoCLIP)
    assert_type(clipvid.load_stan_checkpoint(clip, "stan.pth"), clipvid.VideoCLIP)
    assert_type(clipvid.list_models("*B-32*"), ModelNames)
    assert_type(clipvid.list_branches("vivit*"), clipvid.registry.Names)
    assert_type(clipvid.list_protocols(), clipvid.registry.Names)
    assert_type(model.save("adapter"), Path)
    return model


def embed(model: clipvid.VideoCLIP, images: list[Path]) -> None:
    frames = clipvid.read_video("clip.mp4", 8, sampler="uniform")
    video: Tensor = model.encode_video(frames)
    text: Tensor = model.encode_text(["a dog runs"], normalize=True)
    image: Tensor = model.encode_image(images)
    similarity: Tensor = model.similarity(video, text)
    print(video, image, similarity, model.embed_dim)
    taps = model.taps(frames[None])
    assert_type(taps, clipvid.Taps)
    assert_type(model.predict("clip.mp4", ["dog", "cat"]), Predictions)


def data() -> clipvid.VideoDataset:
    assert_type(clipvid.VideoDataset.from_frame(pd.DataFrame({"path": ["a.mp4"]})), clipvid.VideoDataset)
    return clipvid.open_dataset("msrvtt-1ka", "MSRVTT", split="test")


def evaluate(model: clipvid.VideoCLIP, videos: clipvid.VideoDataset) -> None:
    data_config = clipvid.DataConfig(frames=8)
    result = clipvid.evaluate_retrieval(model, videos, data_config, dual_softmax=100.0)
    assert_type(result, EvaluationResult[RetrievalMetrics])
    assert_type(clipvid.evaluate_recognition(model, videos), EvaluationResult[RecognitionMetrics])
    assert_type(clipvid.evaluate_zero_shot(model, videos), EvaluationResult[RecognitionMetrics])
    assert_type(result["R@1"], float)


def fit(model: clipvid.VideoCLIP, videos: clipvid.VideoDataset) -> TrainResult:
    config = clipvid.TrainConfig(task="retrieval", epochs=2)
    result = clipvid.train(model, videos, None, config, out="run")
    assert_type(result, TrainResult)
    assert_type(result.best_epoch, int)
    return result


def search(model: clipvid.VideoCLIP) -> None:
    index = clipvid.VideoIndex.build(model, "videos/**/*.mp4")
    assert_type(index, clipvid.VideoIndex)
    assert_type(index.search("a goal", k=5), Hits)
    assert_type(index.search(["a goal", "a save"]), list[Hits])
    for hit in index.search("a goal"):
        print(hit.path, hit.score + 1.0)
