"""Results of evaluations: metrics with the metadata needed to repeat them, as text and as a JSON file.

Contract: metrics and metadata in, a result out. It names the model and its fingerprint, the data and their hash, N, the
data config, the precision and the versions, and has metrics with intervals and per-query scores, so that results can be
compared without the models. Knows nothing of how anything was computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from clipvid.config import checks
from clipvid.config.data_config import DataConfig
from clipvid.data.batches.views import Views
from clipvid.data.records import VideoDataset
from clipvid.errors import VideoError
from clipvid.evaluation.metrics import Hubness, RankingMetrics, RecognitionMetrics, RetrievalMetrics
from clipvid.evaluation.per_query import RecognitionQueries, RetrievalQueries
from clipvid.evaluation.saved import (
    CHECKSUM,
    FORMAT,
    QUERIES,
    SavedResult,
    checked_direction,
    checksum,
    describe_result,
    html_result,
    queries_path,
    write_queries,
)
from clipvid.evaluation.saved import read_result as read_result
from clipvid.runtime.files import atomic_file
from clipvid.runtime.storage.manifest import hash_file
from clipvid.runtime.text import pluralize
from clipvid.runtime.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from clipvid.plots import Figure

Metrics = TypeVar("Metrics", RetrievalMetrics, RecognitionMetrics)


@dataclass(frozen=True)
class EvaluationMetadata:
    """Model, data and settings of an evaluation."""

    model: Mapping[str, Any]
    """Output of `VideoCLIP.describe`: base, fingerprints, branch, similarity."""
    data: str
    n_videos: int
    expected: int | None
    """Number of videos in the protocol; None for custom data."""
    data_hash: str
    """Hash of file names, times, captions and labels, in order; evaluations with equal hashes have the same queries."""
    data_config: DataConfig
    precision: str
    missing: tuple[str, ...] = ()
    """Paths of annotated files that do not exist."""
    unreadable: tuple[VideoError, ...] = ()
    prompts: tuple[str, ...] = ()
    """Prompt templates of zero-shot recognition; empty otherwise."""
    listed: int | None = None
    """Number of videos in a custom list that replaced the protocol's; None without one."""


@dataclass(frozen=True, eq=False)
class TopResults:
    """Best videos of each caption: texts (M), relevant videos (M,) or (M, N), best videos (M, k) and the data (N)."""

    texts: list[str]
    truth: torch.Tensor
    best: np.ndarray
    data: VideoDataset

    def relevant_videos(self, query: int) -> list[int]:
        """Return the rows of the videos that are relevant to the caption with this index."""
        relevant = self.truth[query]
        return [int(relevant)] if relevant.ndim == 0 else relevant.nonzero()[:, 0].tolist()


@dataclass(frozen=True, repr=False)
class EvaluationResult(Generic[Metrics]):
    """Metrics and metadata of an evaluation; `str()` is a summary, `to_dict()` is the content of a saved result."""

    metrics: Metrics
    metadata: EvaluationMetadata
    similarity: str | None = None
    """Name of the similarity that ranked the videos; None for recognition."""
    adjusted: Mapping[str, RetrievalMetrics | RankingMetrics] = field(default_factory=dict)
    """Metrics by name of a score adjustment that uses the other queries; not comparable with `metrics`, where each
    query is ranked on its own."""
    hubs: Hubness | None = None
    """Hubness of the gallery in text-to-video retrieval."""
    top_results: TopResults | None = None
    """Best videos of each caption, if requested with `best`; not saved."""
    classes: tuple[str, ...] = ()
    """Class names of recognition, in label order."""
    queries: RetrievalQueries | RecognitionQueries | None = field(default=None, compare=False)
    """Scores of every query with everything, for `per_query`; not saved."""

    @property
    def n_videos(self) -> int:
        return self.metadata.n_videos

    @property
    def data_config(self) -> DataConfig:
        return self.metadata.data_config

    @property
    def unreadable(self) -> tuple[VideoError, ...]:
        return self.metadata.unreadable

    def __getitem__(self, name: str) -> float:
        """Return one metric: "R@1" (text to video), "v2t R@1", "top-1", ..."""
        if isinstance(self.metrics, RecognitionMetrics):
            return self.metrics[name]
        side, _, metric = name.rpartition(" ")
        sides = {"": self.metrics.t2v, "t2v": self.metrics.t2v, "v2t": self.metrics.v2t}
        if side not in sides or metric not in sides[side].values:
            raise KeyError(
                f"unknown metric {name!r}; choose one of {', '.join(self.metrics.t2v.values)}, with the prefix 'v2t ' "
                "for video to text"
            )
        return sides[side][metric]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric: its value, its 95 % interval, and the model, data and settings.

        Tables of several results can be concatenated, filtered and pivoted. Columns: model, pretrained, branch,
        fingerprint, data, videos, frames, views, precision, task, similarity, prompts, adjustment, direction, metric,
        value, low, high, queries.
        """
        return SavedResult(self.to_dict(each=False)).to_frame()

    def per_query(self, direction: str | None = None) -> pd.DataFrame:
        """Return one row per query, in the order of the metrics' values per query.

        Retrieval, "t2v" (the default): a row per caption with path (of its video; of the best-ranked one if there are
        several), caption, rank, score, retrieved_path, retrieved_caption and retrieved_score (the best-ranked video).
        "v2t": a row per captioned video with the same columns, for its best-scoring caption and the caption ranked
        first. Recognition: a row per clip with path, label, prediction, probability, label_probability, rank (of the
        label) and correct. Paths are those of the data's records; start and end follow them if clips are parts of
        files. Ranks start at 1 and are averaged over ties; scores are cosines for the similarity "mean".

        Raises ValueError for an unknown direction, and for a result that was made without scores.
        """
        direction = checked_direction(self._task, direction)
        if self.queries is None:
            raise ValueError(
                "this result was made without scores per query; get one from evaluate_retrieval, "
                "evaluate_recognition or evaluate_zero_shot"
            )
        return self.queries.frame(direction)

    def plot(self) -> Figure:
        """Return a matplotlib figure: the confusion matrix of recognition, or recall at every K in both directions."""
        from clipvid import plots

        title = f"{self.metadata.model['base']}, {self.metadata.model['branch']}: {self.metadata.data}"
        if isinstance(self.metrics, RecognitionMetrics):
            return plots.confusion_matrix(self.metrics.confusion, self.classes, title=title)
        sides = {"text to video": self.metrics.t2v, "video to text": self.metrics.v2t}
        ranks = {name: side.ranks for name, side in sides.items()}
        return plots.recall_curve(ranks, {name: side.n_gallery for name, side in sides.items()}, title=title)

    def to_dict(self, *, each: bool = True) -> dict[str, Any]:
        """Return the result as plain data, ready for JSON; without the values of every query unless `each`.

        The whole content ends with its checksum, by which `read_result` notices that a file has changed.
        """
        content = self._content(each=each)
        return {**content, CHECKSUM: checksum(content)} if each else content

    def _content(self, *, each: bool) -> dict[str, Any]:
        metadata = self.metadata
        result: dict[str, Any] = {
            "format_version": FORMAT,
            "clipvid": __version__,
            "torch": torch.__version__,
            "model": dict(metadata.model),
            "data": {
                "name": metadata.data,
                "videos": metadata.n_videos,
                "expected": metadata.expected,
                "listed": metadata.listed,
                "hash": metadata.data_hash,
                "missing": list(metadata.missing),
                "unreadable": [str(error) for error in metadata.unreadable],
            },
            "data_config": asdict(metadata.data_config),
            "precision": metadata.precision,
        }
        if isinstance(self.metrics, RecognitionMetrics):
            result |= {"task": self._task, "prompts": list(metadata.prompts)}
            return {**result, "metrics": self.metrics.to_dict(each=each), "by_class": self._by_class()}
        return {
            **result,
            "task": self._task,
            "similarity": self.similarity,
            "metrics": self.metrics.to_dict(each=each),
            "adjusted": {name: metrics.to_dict(each=each) for name, metrics in self.adjusted.items()},
            "hubs": None if self.hubs is None else self.hubs._asdict(),
        }

    def class_table(self) -> str:
        """Return a table of classes, worst first: videos, top-1, and the class most often predicted instead."""
        rows = sorted(self._by_class(), key=lambda row: (row["top-1"] is None, row["top-1"]))
        width = max((len(row["class"]) for row in rows), default=0)
        lines = [f"{'class':<{width}}  videos   top-1  taken for{self._count_mark()}"]
        for row in rows:
            top1 = "-" if row["top-1"] is None else f"{row['top-1']:.1f}"
            taken = f"{row['taken_for']} ({row['percent']:.1f})" if row["taken_for"] else ""
            lines.append(f"{row['class']:<{width}}  {row['videos']:>6}  {top1:>6}  {taken}".rstrip())
        return "\n".join(lines)

    def _by_class(self) -> list[dict[str, Any]]:
        if not isinstance(self.metrics, RecognitionMetrics):
            raise ValueError(
                "only recognition has classes; this is an evaluation of retrieval, whose queries are in per_query()"
            )
        return [
            {
                "class": name,
                "videos": result.videos,
                "top-1": result.top1,
                "taken_for": None if result.mistaken_for is None else self.classes[result.mistaken_for],
                "percent": result.mistaken,
            }
            for name, result in zip(self.classes, self.metrics.by_class(), strict=True)
        ]

    @property
    def _task(self) -> str:
        return "recognition" if isinstance(self.metrics, RecognitionMetrics) else "retrieval"

    def save(self, path: str | Path, *, per_query: bool = False) -> Path:
        """Write the result as JSON, atomically; return the path.

        With `per_query` the tables of `per_query` go to a Parquet file beside it (a.queries.parquet for a.json), from
        which `read_result(path).per_query()` returns them.
        """
        checks.path("path", path)
        content = self._content(each=True)
        # Both files are complete before one of them takes its place, so that a full disk costs no earlier result.
        with atomic_file(path) as partial, ExitStack() as until_written:
            if per_query:
                sides = (None,) if self._task == "recognition" else ("t2v", "v2t")
                queries = until_written.enter_context(atomic_file(queries_path(Path(path))))
                write_queries(queries, {side or "": self.per_query(side) for side in sides})
                content[QUERIES] = hash_file(queries)
            text = json.dumps({**content, CHECKSUM: checksum(content)}, indent=2)
            partial.write_text(text + "\n", encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        return describe_result(self.to_dict(each=False), name="EvaluationResult")

    def _repr_html_(self) -> str:
        return html_result(self.to_dict(each=False))

    def __str__(self) -> str:
        metadata = self.metadata
        excluded = [f"{len(metadata.missing)} missing"] if metadata.missing else []
        excluded += [f"{len(metadata.unreadable)} unreadable and left out"] if metadata.unreadable else []
        similarity = "" if self.similarity in (None, "mean") else f", {self.similarity}"
        suffix = "".join(f", {part}" for part in excluded)
        count = count_videos(metadata.n_videos, metadata.expected, metadata.listed, excluded=suffix)
        lines = [f"{metadata.data}: {count}; {self._views()}{similarity}, {metadata.precision}"]
        lines.append(self._marked(self.metrics))
        for name, metrics in self.adjusted.items():
            lines += [f"{name}:", self._marked(metrics)]
        if self.hubs is not None:
            hubs = self.hubs
            share = f"{100 * hubs.never:.1f} % of the {metadata.n_videos} videos"
            lines.append(
                f"hubs: {share} are in no query's best {hubs.k}, the largest hub is in {hubs.most}; skewness "
                f"{hubs.skewness:.2f}"
            )
        return "\n".join(lines)

    @property
    def short(self) -> bool:
        """True for fewer videos than the protocol has, whose metrics are not comparable with the protocol's."""
        return self.metadata.expected is not None and self.metadata.n_videos < self.metadata.expected

    def _marked(self, metrics: RetrievalMetrics | RankingMetrics | RecognitionMetrics) -> str:
        """Return the metrics as text, each line with N if there are fewer videos than the protocol has."""
        return "\n".join(line + self._count_mark() for line in str(metrics).split("\n"))

    def _count_mark(self) -> str:
        """Return N as a suffix if it is below the protocol's; a custom list is not called a part of the protocol."""
        if not self.short:
            return ""
        n, expected = self.metadata.n_videos, self.metadata.expected
        return f"  (N = {n}; the protocol has {expected})" if self.metadata.listed else f"  (N = {n} of {expected})"

    def _views(self) -> str:
        """Return frames and views as text, each number with its name: papers write "4x3" for either order of views."""
        data_config = self.metadata.data_config
        if data_config.views == 1:
            return pluralize(data_config.frames, "frame")
        if isinstance(self.metrics, RecognitionMetrics):
            average = f"{data_config.average} averaged"
        else:
            average = "embeddings averaged" if self.similarity == "mean" else "frames of all views"
        views = Views(data_config.temporal_views, data_config.spatial_views)
        return f"{pluralize(data_config.frames, 'frame')} x {views}, {average}"


def count_videos(n: int, expected: int | None, listed: int | None, *, excluded: str = "") -> str:
    """Return the number of evaluated videos as text, out of those of the protocol or of a custom list."""
    short = expected is not None and n < expected
    if listed is None:
        return f"{n} of {expected} videos{excluded}" if short else f"{pluralize(n, 'video')}{excluded}"
    return f"{n} of the {listed} videos listed{excluded}" + (f" (the protocol has {expected})" if short else "")


def data_hash(data: VideoDataset) -> str:
    """Return the SHA-256 of file names, times, captions, labels, classes and the protocol's `shared` flag, in order.

    Folders are not part of it. The pixels of arrays are, as their names are often mere numbers.
    """
    content: list[object] = [
        [r.path.name, r.start, r.end, list(r.captions), r.label, *([] if r.array is None else [r.array.content])]
        for r in data
    ]
    content = [content, list(data.classes), *(["shared"] if data.protocol_spec.shared else [])]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
