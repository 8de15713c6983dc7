"""Scores of a model on a data set: text-video retrieval, recognition, zero-shot recognition.

Contract: model and data in, an Evaluation out that carries its figures with intervals, how many clips they are over,
and what could not be read. Embeddings come from embedding.py, figures from metrics. Knows nothing of
training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipvid.config.settings import AVERAGES, VIDEO_TEMPLATES, DataConfig
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError, VideoError
from clipvid.evaluation.metrics import (
    DualSoftmax,
    Hubness,
    Matrix,
    Products,
    QueryBank,
    RankingMetrics,
    RecognitionMetrics,
    RetrievalMetrics,
    Scores,
    best_items,
    hubness,
    ranking_metrics,
    recognition_metrics,
    retrieval_metrics,
)
from clipvid.evaluation.results import EvaluationResult, Facts, Found, data_hash
from clipvid.features.embed import embed_frames, embed_texts, embed_videos, require_whole, resolve_data_config
from clipvid.features.source import TapStore, dataset_of
from clipvid.features.token_wise import candidates, match_all, reranked
from clipvid.models.heads import Classifier, TextClassifier
from clipvid.models.heads import prompts as filled
from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.pooling import mean_over_frames
from clipvid.runtime.inference import evaluating
from clipvid.runtime.precision import resolve


@dataclass(frozen=True)
class BaseToNovel:
    """Recognition of classes that were learned and of classes that were not."""

    base: EvaluationResult[RecognitionMetrics]
    novel: EvaluationResult[RecognitionMetrics]

    @property
    def harmonic_mean(self) -> float:
        """Of the two top-1 accuracies: high only where both are."""
        base, novel = self.base["top-1"], self.novel["top-1"]
        return 2 * base * novel / (base + novel) if base + novel else 0.0

    def __str__(self) -> str:
        return f"base   {self.base}\nnovel  {self.novel}\nharmonic mean of top-1: {self.harmonic_mean:.1f}"


def evaluate_retrieval(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig | None = None,
    *,
    rerank: int | None = None,
    dual_softmax: float | None = None,
    bank: Sequence[str] = (),
    hubs: bool = False,
    best: int = 0,
    progress: bool = False,
    seed: int = 0,
) -> EvaluationResult[RetrievalMetrics]:
    """Text-to-video and video-to-text retrieval over all captions and videos of `data`.

    Every caption is a query (multi-caption sets have more captions than videos); ranks of ties are averaged;
    intervals are 95 % bootstrap over queries. A model with a token-wise similarity scores all pairs by it or, with
    `rerank`, only the so many best of each query by the cosine of the means.

    Beside these figures, and never in their place, those of adjusted scores: `dual_softmax` is its temperature (100 for
    cosines), `bank` captions of training videos for QB-Norm. `hubs` adds how unevenly the videos are found, and `best`
    keeps the so many videos that each caption finds first (for `html_report`). Raises DataError when a video has no
    caption, and for fewer videos than the data's protocol has, unless it was opened with allow_missing.
    """
    check_retrieval(model, data, rerank=rerank, dual_softmax=dual_softmax, bank=bank)
    data_config = resolve_data_config(model, data, data_config)
    ask = _Asked(dual_softmax, tuple(bank), hubs, best, seed)
    if model.matcher is not None:
        return _token_wise(model, data, data_config, ask, rerank=rerank, progress=progress)
    found = embed_videos(model, data, data_config, whole=True, progress=progress)
    kept = data.texts if isinstance(data, TapStore) else None
    embed = partial(embed_texts, model, precision=data_config.precision, tokens=data_config.tokens, kept=kept)
    texts, truth = queries(found.data)
    scores = Products(embed(texts), F.normalize(found.video, dim=-1))  # which never become a matrix
    metrics = retrieval_metrics(scores, truth, seed=seed)
    facts = _facts(model, found.data, found.unreadable, data_config)
    bank_scores = None
    if ask.bank:
        bank_scores = Products(embed(ask.bank), F.normalize(found.video, dim=-1))
    adjusted = ask.adjusted(scores, bank_scores, truth)
    return EvaluationResult(
        metrics, facts, "mean", adjusted, ask.hubness(scores), ask.found(scores, texts, truth, found.data)
    )


def check_retrieval(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    *,
    rerank: int | None = None,
    dual_softmax: float | None = None,
    bank: Sequence[str] = (),
) -> None:
    """ValueError or DataError for what `evaluate_retrieval` refuses, before a clip is read."""
    facts = dataset_of(data)
    require_whole(facts, len(facts))
    _need(facts, "caption", [bool(r.captions) for r in facts])
    if rerank is not None and (model.matcher is None or rerank < 1):
        raise ValueError(
            f"rerank takes the number of videos to look at again with a token-wise similarity, got {rerank} for a "
            f"model whose similarity is {model.similarity!r}; attach it with similarity wti, mug or mug_simple"
        )
    if rerank is not None and (dual_softmax is not None or bank):
        raise ValueError("dual_softmax and bank adjust the scores of all pairs, rerank has those of some; drop one")
    check_dual_softmax(dual_softmax)
    if bank and set(bank) <= set(queries(facts)[0]):  # QB-Norm would then be a dual softmax over the test set
        raise ValueError(f"all {len(bank)} captions of the bank are queries; give those of training videos")


def check_recognition(model: VideoCLIP, data: VideoDataset | TapStore, *, zero_shot: bool = False) -> None:
    """ValueError or DataError for what `evaluate_recognition`, or `zero_shot`, refuses, before a clip is read."""
    facts = dataset_of(data)
    if zero_shot and len(facts.classes) < 2:
        raise DataError(f"{facts.name} has no class names; zero-shot recognition needs two or more")
    _check_labels(facts, facts.classes if zero_shot else _classifier(model).classes)


def _classifier(model: VideoCLIP) -> Classifier:
    if model.head is None:
        raise ValueError("this model has no classifier; train one (task recognition), or use zero_shot")
    return model.head


def _check_labels(facts: VideoDataset, known: Sequence[str]) -> None:
    """DataError for videos without a label, or with those of other classes than the known ones."""
    if facts.classes and tuple(facts.classes) != tuple(known):
        others = f"{facts.name} has classes {_few(facts.classes)}, the classifier {_few(known)}"
        raise DataError(f"{others}; open the data with the classifier's classes")
    require_whole(facts, len(facts))
    _need(facts, "label", [r.label is not None for r in facts])


def check_dual_softmax(temperature: float | None) -> None:
    """ValueError for a temperature that is none; None asks for no dual softmax."""
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(f"dual_softmax multiplies the scores and must be above 0 and finite, got {temperature}")


@dataclass(frozen=True)
class _Asked:
    """What is to be shown beside the plain figures."""

    dual_softmax: float | None
    bank: tuple[str, ...]
    hubs: bool
    best: int
    seed: int

    def found(self, scores: Any, texts: list[str], truth: Tensor, data: VideoDataset) -> Found | None:
        return Found(texts, truth, best_items(scores, self.best), data) if self.best else None

    def hubness(self, scores: Any) -> Hubness | None:
        return hubness(scores) if self.hubs else None

    def adjusted(
        self, scores: Scores, bank: Scores | None, truth: Tensor
    ) -> dict[str, RetrievalMetrics | RankingMetrics]:
        found: dict[str, RetrievalMetrics | RankingMetrics] = {}
        if self.dual_softmax is not None:
            name = f"dual softmax, T={self.dual_softmax:g} (each query is scored by what all others find)"
            found[name] = retrieval_metrics(DualSoftmax(scores, self.dual_softmax), truth, seed=self.seed)
        if bank is not None:
            name = f"QB-Norm, text to video, bank of {bank.shape[0]} training captions"
            found[name] = ranking_metrics(QueryBank(scores, bank), truth, seed=self.seed)
        return found


def _token_wise(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    ask: _Asked,
    *,
    rerank: int | None,
    progress: bool,
) -> EvaluationResult[RetrievalMetrics]:
    """Retrieval by the model's token-wise similarity, of all pairs or of each query's best."""
    name = model.similarity if rerank is None else f"{model.similarity} of the best {rerank} by mean"
    frames, kept, lost = embed_frames(model, data, data_config, progress=progress)
    texts, truth = queries(kept)
    facts = _facts(model, kept, lost, data_config)
    if rerank is None:
        score = partial(match_all, model, frames=frames, precision=data_config.precision, tokens=data_config.tokens)
        scores = Matrix(score(texts))
        bank = Matrix(score(ask.bank)) if ask.bank else None
        metrics = retrieval_metrics(scores, truth, seed=ask.seed)
        adjusted = ask.adjusted(scores, bank, truth)
        return EvaluationResult(
            metrics, facts, name, adjusted, ask.hubness(scores), ask.found(scores, texts, truth, kept)
        )
    pooled = F.normalize(mean_over_frames(frames.embeddings, frames.mask), dim=-1)
    similarity = embed_texts(model, texts, precision=data_config.precision, tokens=data_config.tokens) @ pooled.T
    of_texts, of_videos = candidates(similarity, rerank), candidates(similarity.T, rerank).T
    cut = {"precision": data_config.precision, "tokens": data_config.tokens}
    again = match_all(model, texts, frames, only=of_texts | of_videos, **cut)
    ranked = [reranked(similarity, again, chosen) for chosen in (of_texts, of_videos)]
    forth, back = (retrieval_metrics(scores, truth, seed=ask.seed) for scores in ranked)
    found = ask.found(ranked[0], texts, truth, kept)
    return EvaluationResult(replace(forth, v2t=back.v2t), facts, name, hubs=ask.hubness(ranked[0]), found=found)


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
    """Top-1, top-5, mean class accuracy and confusion matrix of the model's classifier (or of `head`).

    `prompts` are those that `head` was made of, for the card. Raises DataError when a video has no label, or the data's
    classes are not the classifier's, in its order.
    """
    classifier = head if head is not None else _classifier(model)
    _check_labels(dataset_of(data), classifier.classes)
    found = embed_videos(model, data, data_config, whole=True, progress=progress)
    with evaluating(classifier), torch.no_grad():
        logits = classifier(found.views.flatten(0, 1).to(model.device)).float().cpu()  # (n·V, C)
    data_config = resolve_data_config(model, data, data_config)
    scores = average_views(logits.unflatten(0, found.views.shape[:2]), data_config.average)
    labels = torch.tensor([r.label for r in found.data])
    metrics = recognition_metrics(scores, labels, seed=seed)
    facts = replace(_facts(model, found.data, found.unreadable, data_config), prompts=tuple(prompts))
    return EvaluationResult(metrics, facts, classes=classifier.classes)


def zero_shot(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig | None = None,
    *,
    templates: Sequence[str] = VIDEO_TEMPLATES,
    progress: bool = False,
) -> EvaluationResult[RecognitionMetrics]:
    """Recognition without training: the class whose name, put into `templates`, is nearest to the video."""
    check_recognition(model, data, zero_shot=True)
    precision = resolve_data_config(model, data, data_config).precision
    head = _named_classes(model, dataset_of(data).classes, templates, precision=precision)
    return evaluate_recognition(model, data, data_config, head=head, prompts=templates, progress=progress)


def _named_classes(
    model: VideoCLIP, classes: Sequence[str], templates: Sequence[str], *, precision: str
) -> TextClassifier:
    """Return `model.text_classifier` of these names, its texts embedded at the precision of the videos."""
    texts = [text for of_class in filled(classes, templates) for text in of_class]
    means = embed_texts(model, texts, precision=precision).unflatten(0, (len(classes), -1)).mean(dim=1)
    return TextClassifier(means, classes, scale=model.backbone.logit_scale).to(model.device)


def base_to_novel(
    model: VideoCLIP,
    data: VideoDataset,
    data_config: DataConfig | None = None,
    *,
    base: Sequence[str],
    templates: Sequence[str] = VIDEO_TEMPLATES,
    progress: bool = False,
) -> BaseToNovel:
    """How well a model that learned the classes `base` knows them, and all others of `data` by their names alone.

    Both are recognised among their own names, zero-shot. Train on `base, novel = train.base_novel()`, its first half,
    with classifier="text", and give `base.classes` here.
    """
    novel = [name for name in data.classes if name not in base]
    halves = data.of_classes(base), data.of_classes(novel)
    return BaseToNovel(
        *(zero_shot(model, half, data_config, templates=templates, progress=progress) for half in halves)
    )


def average_views(logits: Float[Tensor, "n v c"], average: str) -> Float[Tensor, "n c"]:
    """Class scores of clips from the logits of their views: the mean logit, or the log of the mean probability.

    The log ranks as the probability does, and classes whose probability is too small for a float keep their order.
    Both are the logits themselves for one view.
    """
    if average not in AVERAGES:
        raise ValueError(f"unknown average {average!r}; choose one of {', '.join(AVERAGES)}")
    if logits.shape[1] == 1:
        return logits[:, 0]
    if average == "logits":
        return logits.mean(dim=1)
    return logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])


def video_indices(data: VideoDataset) -> Int[Tensor, " m"]:
    """For every caption of `data`, in order, the row of its video."""
    return torch.tensor([row for row, record in enumerate(data) for _ in record.captions])


def queries(data: VideoDataset) -> tuple[list[str], Tensor]:
    """Texts to look for, and what is right for each: the row of its video (M,), or a matrix (M, N) of all that are.

    The matrix is for data whose equal captions mean the same (`ProtocolSpec.shared`): each text is then one query.
    """
    if not data.protocol_spec.shared:
        return [c for r in data for c in r.captions], video_indices(data)
    texts = list(dict.fromkeys(caption for record in data for caption in record.captions))
    place = {text: row for row, text in enumerate(texts)}
    truth = torch.zeros(len(texts), len(data), dtype=torch.bool)
    for column, record in enumerate(data):
        truth[[place[caption] for caption in record.captions], column] = True
    return texts, truth


def _facts(model: VideoCLIP, kept: VideoDataset, lost: tuple[VideoError, ...], data_config: DataConfig) -> Facts:
    return Facts(
        model.describe(),
        kept.name,
        len(kept),
        kept.protocol_spec.videos,
        data_hash(kept),
        data_config,
        resolve(data_config.precision, model.device),
        tuple(str(path) for path in kept.missing),
        lost,
        listed=kept.protocol_spec.listed,
    )


def _need(data: VideoDataset, what: str, has: Sequence[bool]) -> None:
    without = [record.path for record, ok in zip(data, has, strict=True) if not ok]
    if without:
        raise DataError(
            f"{len(without)} of {len(data)} videos of {data.name} have no {what}, first {without[0]}; give it one, or "
            "leave them out of the data"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
