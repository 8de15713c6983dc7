"""Outcome of every query of an evaluation, as tables: the rank of the right answer and what was retrieved instead.

Contract: scores, truth and data in, one row per query out, in the order of the metrics' values per query. Scores are
read block by block when a table is requested; an evaluation alone pays nothing for them. Paths are those of the data's
records. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor

from clipvid.data.records import VideoDataset
from clipvid.evaluation.metrics import Matrix, Scores, ranks
from clipvid.evaluation.metrics.retrieval import ByVideo, Transposed
from clipvid.evaluation.metrics.scores import Rows, as_array, best, blocks
from clipvid.runtime.display.tables import data_frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class RetrievalQueries:
    """Scores of captions (M) with videos (N), and the data that they belong to."""

    scores: Scores
    texts: Sequence[str]
    truth: Tensor
    """Relevant video of each caption (M,), or relevance (M, N)."""
    data: VideoDataset
    video_scores: Scores | None = None
    """Scores that ranked the captions of each video, if they differ from `scores`, as after reranking."""
    lift: float = 0.0
    """Number that was added to the scores of reranked pairs; scores above half of it are shown without it."""

    def frame(self, direction: str | None = None) -> pd.DataFrame:
        """Return one row per caption, or per captioned video for "v2t", as `EvaluationResult.per_query` does."""
        return self._by_video() if direction == "v2t" else self._by_caption()

    @property
    def _relevance(self) -> ndarray:
        """Relevant video of each caption (M,), or relevance (M, N), as an array."""
        return as_array(self.truth)

    def _by_caption(self) -> pd.DataFrame:
        relevance = self._relevance
        first, first_score, right, right_score = _ends(self.scores, lambda part: relevance[part])
        captions = np.array([_first_caption(record.captions) for record in self.data], dtype=object)
        return self._table(
            right,
            ranks(self.scores, self.truth),
            {"caption": np.array(self.texts, dtype=object), "score": self._shown(right_score)},
            first,
            {"retrieved_caption": captions[first], "retrieved_score": self._shown(first_score)},
        )

    def _by_video(self) -> pd.DataFrame:
        scores, relevance = self.video_scores or self.scores, self._relevance
        texts = np.array(self.texts, dtype=object)
        if relevance.ndim == 2:
            videos = np.flatnonzero(relevance.any(axis=0))
            ranked = ranks(Transposed(scores, videos), relevance.T[videos])
        else:
            by_video = ByVideo(scores, relevance.astype(np.int64))
            videos, ranked = by_video.captioned, ranks(by_video, np.arange(by_video.shape[0]))

        def relevant(part: slice) -> ndarray:
            chosen = videos[part]
            return relevance.T[chosen] if relevance.ndim == 2 else relevance[None, :] == chosen[:, None]

        first, first_score, right, right_score = _ends(Transposed(scores, videos), relevant)
        video_of = relevance if relevance.ndim == 1 else relevance.argmax(axis=1)  # the first video of a shared caption
        return self._table(
            videos,
            ranked,
            {"caption": texts[right], "score": self._shown(right_score)},
            video_of[first],
            {"retrieved_caption": texts[first], "retrieved_score": self._shown(first_score)},
        )

    def _table(
        self,
        videos: Int64[ndarray, " q"],
        ranked: Float64[ndarray, " q"],
        query: dict[str, Any],
        retrieved: Int64[ndarray, " q"],
        answer: dict[str, Any],
    ) -> pd.DataFrame:
        """Return the table of queries: the right video, its rank, and the retrieved video."""
        right, wrong = columns_of(self.data, videos), columns_of(self.data, retrieved)
        columns = {**right, "caption": query["caption"], "rank": ranked, "score": query["score"]}
        columns |= {f"retrieved_{name}": values for name, values in wrong.items()}
        columns |= answer
        return data_frame(zip(*columns.values(), strict=True), [*columns])

    def _shown(self, scores: ndarray) -> ndarray:
        """Return scores without the number that lifted reranked pairs above the others."""
        scores = scores.astype(np.float64)
        return np.where(scores > self.lift / 2, scores - self.lift, scores) if self.lift else scores


@dataclass(frozen=True, eq=False)
class RecognitionQueries:
    """Class scores of clips (B, C), their labels (B,), the data and the class names."""

    scores: Tensor
    labels: Tensor
    data: VideoDataset
    classes: tuple[str, ...]

    @property
    def probabilities(self) -> Float64[ndarray, "b c"]:
        """Softmax of the class scores."""
        return self.scores.double().softmax(dim=1).numpy()

    def frame(self, direction: str | None = None) -> pd.DataFrame:
        """Return one row per clip, as `EvaluationResult.per_query` does."""
        probabilities, labels = self.probabilities, as_array(self.labels)
        predicted = as_array(self.scores).argmax(axis=1)
        rows, names = np.arange(len(labels)), np.array(self.classes, dtype=object)
        columns = {
            **columns_of(self.data, rows),
            "label": names[labels],
            "prediction": names[predicted],
            "probability": probabilities[rows, predicted],
            "label_probability": probabilities[rows, labels],
            "rank": ranks(Matrix(self.scores), labels),
            "correct": predicted == labels,
        }
        return data_frame(zip(*columns.values(), strict=True), [*columns])


def columns_of(data: VideoDataset, rows: Sequence[int] | Int64[ndarray, " q"]) -> dict[str, list[Any]]:
    """Return the columns that identify these records: path, and start and end if any record of the data has them."""
    records = [data[int(row)] for row in rows]
    columns: dict[str, list[Any]] = {"path": [str(record.path) for record in records]}
    if any(record.start is not None or record.end is not None for record in data):
        columns |= {"start": [record.start for record in records], "end": [record.end for record in records]}
    return columns


def _ends(
    scores: Rows, relevant: Callable[[slice], ndarray]
) -> tuple[Int64[ndarray, " q"], ndarray, Int64[ndarray, " q"], ndarray]:
    """Return the best item of each query with its score, and its best relevant item with its score.

    `relevant` returns the relevant item of each query in a slice (c,), or their relevance (c, N). Of equal scores the
    first in gallery order is taken.
    """
    parts = []
    for part in blocks(scores):
        values = scores.rows(part)
        first = best(values, 1)[:, 0]
        true = relevant(part)
        right = true if true.ndim == 1 else np.where(true, values, -np.inf).argmax(axis=1)
        rows = np.arange(len(values))
        parts.append((first, values[rows, first], right, values[rows, right]))
    first, first_score, right, right_score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first.astype(np.int64), first_score, right.astype(np.int64), right_score


def _first_caption(captions: Sequence[str]) -> str | None:
    return captions[0] if captions else None
