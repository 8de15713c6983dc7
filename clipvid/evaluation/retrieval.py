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
from jaxtyping import Int
from torch import Tensor

from clipvid.config.data_config import DataConfig
from clipvid.data.records import VideoDataset
from clipvid.evaluation.describe import describe_evaluation, require_each
from clipvid.evaluation.metrics import (
    DualSoftmax,
    Hubness,
    Matrix,
    Products,
    QueryBank,
    RankingMetrics,
    RetrievalMetrics,
    Scores,
    best_items,
    hubness,
    ranking_metrics,
    retrieval_metrics,
)
from clipvid.evaluation.results import EvaluationResult, Found
from clipvid.features.embed import embed_frames, embed_texts, embed_videos, require_whole, resolve_data_config
from clipvid.features.source import TapStore, dataset_of
from clipvid.features.token_wise import candidates, match_all, reranked
from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.pooling import mean_over_frames


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
    found = embed_videos(model, data, data_config, complete=True, progress=progress)
    kept = data.texts if isinstance(data, TapStore) else None
    embed = partial(embed_texts, model, precision=data_config.precision, tokens=data_config.tokens, cache=kept)
    texts, truth = queries(found.data)
    scores = Products(embed(texts), F.normalize(found.video, dim=-1))  # which never become a matrix
    metrics = retrieval_metrics(scores, truth, seed=seed)
    facts = describe_evaluation(model, found.data, found.unreadable, data_config)
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
    require_each(facts, "caption", [bool(r.captions) for r in facts])
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
    facts = describe_evaluation(model, kept, lost, data_config)
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
