"""Recognition of a data set by a model: its classifier, zero-shot by class names, base-to-novel.

Contract: model and data in, an EvaluationResult out with metrics, intervals, N and what could not be read. Embeddings
come from features/embed.py, metrics from metrics/. Knows nothing of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from clipvid.config import checks
from clipvid.config.data_config import AVERAGES, DataConfig
from clipvid.config.settings import VIDEO_TEMPLATES, check_templates
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError
from clipvid.evaluation.describe import describe_evaluation, require_each
from clipvid.evaluation.metrics import (
    RecognitionMetrics,
    recognition_metrics,
)
from clipvid.evaluation.per_query import RecognitionQueries
from clipvid.evaluation.results import EvaluationResult
from clipvid.evaluation.saved import html_result
from clipvid.features.embed import embed_texts, embed_videos, require_all_videos, resolve_data_config
from clipvid.features.taps.tap_store import TapStore, dataset_of
from clipvid.models.heads import Classifier, TextClassifier
from clipvid.models.heads import prompts as fill_templates
from clipvid.models.inputs import require_finite
from clipvid.models.video_clip import VideoCLIP, require_video_clip
from clipvid.runtime.inference import evaluating

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class BaseToNovel:
    """Recognition of classes that were learned and of classes that were not."""

    base: EvaluationResult[RecognitionMetrics]
    novel: EvaluationResult[RecognitionMetrics]

    @property
    def harmonic_mean(self) -> float:
        """Harmonic mean of both top-1 accuracies in percent; 0 if either is 0."""
        base, novel = self.base["top-1"], self.novel["top-1"]
        return 2 * base * novel / (base + novel) if base + novel else 0.0

    def to_frame(self) -> pd.DataFrame:
        """Return both groups' `EvaluationResult.to_frame`, told apart by the column classes ("base" or "novel")."""
        import pandas as pd

        frame = pd.concat({"base": self.base.to_frame(), "novel": self.novel.to_frame()}, names=["classes"])
        return frame.reset_index(level="classes").reset_index(drop=True)

    def __repr__(self) -> str:
        base, novel = self.base["top-1"], self.novel["top-1"]
        return f"BaseToNovel(top-1: base {base:.1f}, novel {novel:.1f}, harmonic mean {self.harmonic_mean:.1f})"

    def _repr_html_(self) -> str:
        tables = "".join(html_result(result.to_dict(each=False)) for result in (self.base, self.novel))
        return f"<div>{tables}<p>{escape(repr(self))}</p></div>"

    def __str__(self) -> str:
        return f"base   {self.base}\nnovel  {self.novel}\nharmonic mean of top-1: {self.harmonic_mean:.1f}"


def check_recognition(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    *,
    by_class_name: bool = False,
    classes: Sequence[str] | None = None,
) -> None:
    """Raise the ValueError or DataError of `evaluate_recognition`, or of `evaluate_zero_shot`, before decoding."""
    dataset = dataset_of(data)
    require_video_clip(model)
    if by_class_name and len(dataset.classes) < 2:
        raise DataError(
            f"{dataset.name} has no class names; zero-shot recognition needs two or more: open a folder with one "
            "sub-folder per class, or a table with a column label"
        )
    if classes is not None:
        _check_class_names(classes, dataset)
    _check_labels(dataset, dataset.classes if by_class_name else _classifier(model).classes)


def _check_class_names(classes: Sequence[str], data: VideoDataset) -> None:
    """Raise ValueError unless there is one class name for each class of the data."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes must be a list of class names, got {classes!r}; pass one per class of the data")
    if len(set(classes)) != len(classes) or len(classes) != len(data.classes):
        raise ValueError(
            f"classes must be {len(data.classes)} different names, one per class of {data.name} in its order, got "
            f"{len(classes)}; give one name for each of {_abbreviated(data.classes)}"
        )


def _classifier(model: VideoCLIP) -> Classifier:
    """Return the model's classifier; raise ValueError if it has none."""
    if model.head is None:
        raise ValueError("this model has no classifier; train one (task recognition), or use evaluate_zero_shot")
    return model.head


def _check_labels(data: VideoDataset, classes: Sequence[str]) -> None:
    """Raise DataError for videos without a label, or if the data's classes are not the classifier's `classes`."""
    if data.classes and tuple(data.classes) != tuple(classes):
        mismatch = f"{data.name} has classes {_abbreviated(data.classes)}, the classifier {_abbreviated(classes)}"
        raise DataError(f"{mismatch}; open the data with the classifier's classes (classes=model.head.classes)")
    require_all_videos(data, len(data))
    require_each(data, "label", [r.label is not None for r in data])


def evaluate_recognition(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig | None = None,
    *,
    head: Classifier | None = None,
    prompts: Sequence[str] = (),
    progress: bool = False,
    seed: int = 0,
) -> EvaluationResult[RecognitionMetrics]:
    """Return top-1, top-5, mean class accuracy and confusion matrix of the model's classifier (or of `head`).

    `prompts` are the templates `head` was made of, for the metadata. Raises DataError if a video has no label, or if
    the data's classes are not the classifier's, in its order.
    """
    require_video_clip(model)
    classifier = head if head is not None else _classifier(model)
    _check_labels(dataset_of(data), classifier.classes)
    videos = embed_videos(model, data, data_config, complete=True, progress=progress)
    require_finite(videos.views)
    with evaluating(classifier), torch.no_grad():
        logits = classifier(videos.views.flatten(0, 1).to(model.device)).float().cpu()  # (n·V, C)
    data_config = resolve_data_config(model, data, data_config)
    scores = average_views(logits.unflatten(0, videos.views.shape[:2]), data_config.average)
    labels = torch.tensor([r.label for r in videos.data])
    metrics = recognition_metrics(scores, labels, seed=seed)
    metadata = replace(describe_evaluation(model, videos.data, videos.unreadable, data_config), prompts=tuple(prompts))
    per_query = RecognitionQueries(scores, labels, videos.data, tuple(classifier.classes))
    return EvaluationResult(metrics, metadata, classes=classifier.classes, queries=per_query)


def evaluate_zero_shot(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig | None = None,
    *,
    classes: Iterable[str] | None = None,
    templates: Sequence[str] = VIDEO_TEMPLATES,
    progress: bool = False,
) -> EvaluationResult[RecognitionMetrics]:
    """Classify videos without training: predict the class whose name, put into `templates`, is nearest to the video.

    `classes` are other names to compare with, one per class of the data and in its order ("playing guitar" for
    "PlayingGuitar"); the result lists the data's own. Raises ValueError for another number of names.
    """
    templates = check_templates(templates)
    if classes is not None:
        advice = "pass one per class of the data"
        classes = checks.texts("classes", classes, must="a list of class names", advice=advice)
    check_recognition(model, data, by_class_name=True, classes=classes)
    precision = resolve_data_config(model, data, data_config).precision
    listed = dataset_of(data).classes
    head = _named_classes(model, listed if classes is None else classes, templates, precision=precision, listed=listed)
    return evaluate_recognition(model, data, data_config, head=head, prompts=templates, progress=progress)


def _named_classes(
    model: VideoCLIP,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    precision: str,
    listed: Sequence[str],
) -> TextClassifier:
    """Return `model.text_classifier` of these classes, with texts embedded at `precision`, as the videos are.

    `listed` are the names that the classifier itself carries.
    """
    texts = [text for class_prompts in fill_templates(classes, templates) for text in class_prompts]
    means = embed_texts(model, texts, precision=precision).unflatten(0, (len(classes), -1)).mean(dim=1)
    return TextClassifier(means, listed, scale=model.backbone.logit_scale).to(model.device)


def base_to_novel(
    model: VideoCLIP,
    data: VideoDataset,
    data_config: DataConfig | None = None,
    *,
    base: Sequence[str],
    templates: Sequence[str] = VIDEO_TEMPLATES,
    progress: bool = False,
) -> BaseToNovel:
    """Evaluate a model that was trained on the classes `base`, on these and on all other classes of `data`.

    Each group is recognised zero-shot among its own class names. Train with classifier="text" on the first half of
    `base, novel = train.base_novel()`, and pass `base.classes` here.
    """
    novel = [name for name in data.classes if name not in base]
    halves = data.of_classes(base), data.of_classes(novel)
    return BaseToNovel(
        *(evaluate_zero_shot(model, half, data_config, templates=templates, progress=progress) for half in halves)
    )


def average_views(logits: Float[Tensor, "n v c"], average: str) -> Float[Tensor, "n c"]:
    """Return class scores per clip from the logits of its views: the mean logit, or the log of the mean probability.

    The log ranks classes as the probability does, also where probabilities underflow. With a single view the scores are
    its logits.
    """
    if average not in AVERAGES:
        raise ValueError(f"unknown average {average!r}; choose one of {', '.join(AVERAGES)}")
    if logits.shape[1] == 1:
        return logits[:, 0]
    if average == "logits":
        return logits.mean(dim=1)
    return logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])


def _abbreviated(names: Sequence[str]) -> str:
    """Return the first three names, and the count if there are more."""
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
