"""Text-video retrieval of a data set by a model.

Contract: model and data in, an EvaluationResult out with metrics, intervals, N and the unreadable files. Embeddings
come from features/embed.py, metrics from metrics/. Knows nothing of training.
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

from clipvid.config import checks
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
from clipvid.evaluation.per_query import RetrievalQueries
from clipvid.evaluation.results import EvaluationResult, TopResults
from clipvid.features.embed import embed_frames, embed_texts, embed_videos, require_all_videos, resolve_data_config
from clipvid.features.taps.tap_store import TapStore, dataset_of
from clipvid.features.token_wise import LIFT, candidates, match_all, reranked
from clipvid.models.video_clip import VideoCLIP, require_video_clip
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
    """Evaluate text-to-video and video-to-text retrieval over all captions and videos of `data`.

    Every caption is a query (multi-caption sets have more captions than videos); ranks of ties are averaged;
    intervals are 95 % bootstrap over queries. A model with a token-wise similarity scores all pairs with it or, with
    `rerank`, only the best `rerank` items of each query by its cosine with the mean over frames.

    Metrics of adjusted scores are returned separately, in `adjusted`: `dual_softmax` is the temperature of a dual
    softmax (100 for cosines), `bank` captions of training videos for QB-Norm. `hubs` adds the hubness of the gallery;
    `best` stores that many best videos per caption (for `html_report`). Raises DataError if a video has no caption, and
    for fewer videos than the data's protocol has, unless the data were opened with allow_missing.
    """
    checks.truth("hubs", hubs)
    best = checks.integer("best", best, 0, advice="it is the number of videos kept per caption, 0 for none")
    check_retrieval(model, data, rerank=rerank, dual_softmax=dual_softmax, bank=bank)
    data_config = resolve_data_config(model, data, data_config)
    extra = _ExtraMetrics(dual_softmax, tuple(bank), hubs, best, seed)
    if model.matcher is not None:
        return _token_wise(model, data, data_config, extra, rerank=rerank, progress=progress)
    videos = embed_videos(model, data, data_config, complete=True, progress=progress)
    text_cache = data.texts if isinstance(data, TapStore) else None
    embed = partial(embed_texts, model, precision=data_config.precision, tokens=data_config.tokens, cache=text_cache)
    texts, truth = queries(videos.data)
    scores = Products(embed(texts), F.normalize(videos.video, dim=-1))  # avoids a full score matrix
    metrics = retrieval_metrics(scores, truth, seed=seed)
    metadata = describe_evaluation(model, videos.data, videos.unreadable, data_config)
    bank_scores = None
    if extra.bank:
        bank_scores = Products(embed(extra.bank), F.normalize(videos.video, dim=-1))
    adjusted = extra.adjusted(scores, bank_scores, truth)
    top_results = extra.top_results(scores, texts, truth, videos.data)
    per_query = RetrievalQueries(scores, texts, truth, videos.data)
    return EvaluationResult(metrics, metadata, "mean", adjusted, extra.hubness(scores), top_results, queries=per_query)


def check_retrieval(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    *,
    rerank: int | None = None,
    dual_softmax: float | None = None,
    bank: Sequence[str] = (),
) -> None:
    """Raise the ValueError or DataError of `evaluate_retrieval` before decoding."""
    dataset = dataset_of(data)
    require_video_clip(model)
    require_all_videos(dataset, len(dataset))
    require_each(dataset, "caption", [bool(r.captions) for r in dataset])
    if rerank is not None:
        checks.number("rerank", rerank)
    if rerank is not None and (model.matcher is None or rerank < 1):
        raise ValueError(
            f"rerank must be an integer >= 1 and needs a token-wise similarity, got {rerank} for a model whose "
            f"similarity is {model.similarity_name!r}; create it with similarity wti, mug or mug_simple"
        )
    if rerank is not None and (dual_softmax is not None or bank):
        raise ValueError(
            f"rerank must be left out with dual_softmax or bank, which adjust the scores of all pairs, got "
            f"rerank={rerank}, dual_softmax={dual_softmax} and a bank of {len(bank)} captions; drop one"
        )
    check_dual_softmax(dual_softmax)
    if bank and set(bank) <= set(queries(dataset)[0]):  # QB-Norm would be a dual softmax over the test set
        raise ValueError(
            f"bank must hold other captions than the queries, got {len(bank)} queries; give those of training videos"
        )


def check_dual_softmax(temperature: float | None) -> None:
    """Raise ValueError for an invalid temperature of a dual softmax; None means no dual softmax."""
    if temperature is not None:
        checks.number("dual_softmax", temperature)
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(f"dual_softmax must be a finite number > 0, got {temperature}; 100 is usual for cosines")


@dataclass(frozen=True)
class _ExtraMetrics:
    """Requested additions to the plain metrics."""

    dual_softmax: float | None
    bank: tuple[str, ...]
    hubs: bool
    best: int
    seed: int

    def top_results(self, scores: Any, texts: list[str], truth: Tensor, data: VideoDataset) -> TopResults | None:
        """Return the best videos of each caption if they were requested."""
        return TopResults(texts, truth, best_items(scores, self.best), data) if self.best else None

    def hubness(self, scores: Any) -> Hubness | None:
        """Return the hubness of the gallery if it was requested."""
        return hubness(scores) if self.hubs else None

    def adjusted(
        self, scores: Scores, bank: Scores | None, truth: Tensor
    ) -> dict[str, RetrievalMetrics | RankingMetrics]:
        """Return the metrics of adjusted scores by a description of the adjustment."""
        metrics: dict[str, RetrievalMetrics | RankingMetrics] = {}
        if self.dual_softmax is not None:
            name = f"dual softmax, T={self.dual_softmax:g} (scores of a query depend on all queries)"
            metrics[name] = retrieval_metrics(DualSoftmax(scores, self.dual_softmax), truth, seed=self.seed)
        if bank is not None:
            name = f"QB-Norm, text to video, bank of {bank.shape[0]} training captions"
            metrics[name] = ranking_metrics(QueryBank(scores, bank), truth, seed=self.seed)
        return metrics


def _token_wise(
    model: VideoCLIP,
    data: VideoDataset | TapStore,
    data_config: DataConfig,
    extra: _ExtraMetrics,
    *,
    rerank: int | None,
    progress: bool,
) -> EvaluationResult[RetrievalMetrics]:
    """Evaluate retrieval by the model's token-wise similarity, for all pairs or to rerank the best of each query."""
    name = model.similarity_name if rerank is None else f"{model.similarity_name} of the best {rerank} by mean"
    frames, dataset, unreadable = embed_frames(model, data, data_config, progress=progress)
    texts, truth = queries(dataset)
    metadata = describe_evaluation(model, dataset, unreadable, data_config)
    if rerank is None:
        score = partial(match_all, model, frames=frames, precision=data_config.precision, tokens=data_config.tokens)
        scores = Matrix(score(texts))
        bank = Matrix(score(extra.bank)) if extra.bank else None
        metrics = retrieval_metrics(scores, truth, seed=extra.seed)
        adjusted = extra.adjusted(scores, bank, truth)
        top_results = extra.top_results(scores, texts, truth, dataset)
        per_query = RetrievalQueries(scores, texts, truth, dataset)
        return EvaluationResult(
            metrics, metadata, name, adjusted, extra.hubness(scores), top_results, queries=per_query
        )
    pooled = F.normalize(mean_over_frames(frames.embeddings, frames.mask), dim=-1)
    similarity = embed_texts(model, texts, precision=data_config.precision, tokens=data_config.tokens) @ pooled.T
    for_texts, for_videos = candidates(similarity, rerank), candidates(similarity.T, rerank).T
    options = {"precision": data_config.precision, "tokens": data_config.tokens}
    reranking = match_all(model, texts, frames, only=for_texts | for_videos, **options)
    ranked = [Matrix(reranked(similarity, reranking, chosen)) for chosen in (for_texts, for_videos)]
    by_text, by_video = (retrieval_metrics(scores, truth, seed=extra.seed) for scores in ranked)
    top_results = extra.top_results(ranked[0], texts, truth, dataset)
    per_query = RetrievalQueries(ranked[0], texts, truth, dataset, video_scores=ranked[1], lift=LIFT)
    metrics, hubs = replace(by_text, v2t=by_video.v2t), extra.hubness(ranked[0])
    return EvaluationResult(metrics, metadata, name, hubs=hubs, top_results=top_results, queries=per_query)


def video_indices(data: VideoDataset) -> Int[Tensor, " m"]:
    """Return the row of the video of every caption of `data`, in order."""
    return torch.tensor([row for row, record in enumerate(data) for _ in record.captions])


def queries(data: VideoDataset) -> tuple[list[str], Tensor]:
    """Return the query texts, and the relevant videos of each: a row (M,), or a boolean matrix (M, N).

    The matrix is for data whose equal captions are one query (`ProtocolSpec.shared`), relevant to several videos.
    """
    if not data.protocol_spec.shared:
        return [c for r in data for c in r.captions], video_indices(data)
    texts = list(dict.fromkeys(caption for record in data for caption in record.captions))
    row_of = {text: row for row, text in enumerate(texts)}
    truth = torch.zeros(len(texts), len(data), dtype=torch.bool)
    for column, record in enumerate(data):
        truth[[row_of[caption] for caption in record.captions], column] = True
    return texts, truth
