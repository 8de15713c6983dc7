"""Results: what an evaluation found and on what, as text and as a JSON file; and two of them side by side.

Contract: metrics and facts in, a result out that says enough to repeat or to doubt it: model and its fingerprint, data
and their hash, N, how clips were read, precision, versions, figures with intervals, and every query's own result, so
that results can be compared without the models. Knows nothing of how anything was computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from clipvid.config.data_config import DataConfig
from clipvid.data.records import VideoDataset
from clipvid.data.views import Views
from clipvid.errors import CheckpointError, VideoError
from clipvid.evaluation.metrics import Hubness, RankingMetrics, RecognitionMetrics, RetrievalMetrics
from clipvid.runtime.files import atomic_file
from clipvid.runtime.text import pluralize
from clipvid.runtime.version import __version__

FORMAT = 2
Metrics = TypeVar("Metrics", RetrievalMetrics, RecognitionMetrics)
Side = tuple[str, Mapping[str, float], Mapping[str, Any]]
"""A direction's name, its figures, and every query's own."""


@dataclass(frozen=True)
class EvaluationMetadata:
    """What was measured: the model, the data, and how they met."""

    model: Mapping[str, Any]
    """`describe` of the model: base, fingerprints, branch, similarity."""
    data: str
    n_videos: int
    expected: int | None
    """How many videos the protocol has; None for data of one's own."""
    data_hash: str
    """Of file names, times, captions and labels, in order: two evaluations of equal hashes asked the same queries."""
    data_config: DataConfig
    precision: str
    missing: tuple[str, ...] = ()
    """Files that the annotations name and that were not there."""
    unreadable: tuple[VideoError, ...] = ()
    prompts: tuple[str, ...] = ()
    """Words around the class names, where a video was recognised by these."""
    listed: int | None = None
    """How many videos a list of one's own names, which stood in place of the protocol's; None without one."""


@dataclass(frozen=True, eq=False)
class TopResults:
    """What each caption found: texts (M), what is right for them (M,) or (M, N), and their best videos (M, k)."""

    texts: list[str]
    truth: torch.Tensor
    best: np.ndarray
    data: VideoDataset

    def relevant_videos(self, query: int) -> list[int]:
        """The videos that are right for a caption."""
        of = self.truth[query]
        return [int(of)] if of.ndim == 0 else of.nonzero()[:, 0].tolist()


@dataclass(frozen=True)
class EvaluationResult(Generic[Metrics]):
    """Figures and what they were measured on; `str()` prints all of it, `to_dict()` is the result."""

    metrics: Metrics
    metadata: EvaluationMetadata
    similarity: str | None = None
    """What retrieval compared; None for recognition."""
    adjusted: Mapping[str, RetrievalMetrics | RankingMetrics] = field(default_factory=dict)
    """The same scores adjusted by what is known of the other queries, by the adjustment's name: not comparable with
    figures that judge each query by itself."""
    hubs: Hubness | None = None
    """Of the gallery in text to video."""
    top_results: TopResults | None = None
    """The videos that each caption found first, if they were asked for; not part of the result."""
    classes: tuple[str, ...] = ()
    """Of recognition, in label order."""

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
        """One figure: "R@1" (text to video), "v2t R@1", "top-1", ..."""
        if isinstance(self.metrics, RecognitionMetrics):
            return self.metrics[name]
        side, _, figure = name.rpartition(" ")
        sides = {"": self.metrics.t2v, "t2v": self.metrics.t2v, "v2t": self.metrics.v2t}
        if side not in sides or figure not in sides[side].values:
            raise KeyError(
                f"{name}; figures are {', '.join(self.metrics.t2v.values)}, those of v2t with v2t before them"
            )
        return sides[side][figure]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        metadata = self.metadata
        result: dict[str, Any] = {
            "format": FORMAT,
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
            result |= {"task": "recognition", "prompts": list(metadata.prompts)}
            return {**result, "metrics": self.metrics.to_dict(), "by_class": self._by_class()}
        return {
            **result,
            "task": "retrieval",
            "similarity": self.similarity,
            "metrics": self.metrics.to_dict(),
            "adjusted": {name: metrics.to_dict() for name, metrics in self.adjusted.items()},
            "hubs": None if self.hubs is None else self.hubs._asdict(),
        }

    def class_table(self) -> str:
        """Recognition class by class, the worst first: videos, top-1, and what they are taken for instead."""
        rows = sorted(self._by_class(), key=lambda row: (row["top-1"] is None, row["top-1"]))
        width = max((len(row["class"]) for row in rows), default=0)
        lines = [f"{'class':<{width}}  videos   top-1  taken for{self._mark()}"]
        for row in rows:
            top1 = "-" if row["top-1"] is None else f"{row['top-1']:.1f}"
            taken = f"{row['taken_for']} ({row['percent']:.1f})" if row["taken_for"] else ""
            lines.append(f"{row['class']:<{width}}  {row['videos']:>6}  {top1:>6}  {taken}".rstrip())
        return "\n".join(lines)

    def _by_class(self) -> list[dict[str, Any]]:
        if not isinstance(self.metrics, RecognitionMetrics):
            raise ValueError("only recognition has classes; this is an evaluation of retrieval")
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

    def save(self, path: str | Path) -> Path:
        """Write the result, whole or not at all."""
        with atomic_file(path) as beside:
            beside.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return Path(path)

    def __str__(self) -> str:
        metadata = self.metadata
        lost = [f"{len(metadata.missing)} missing"] if metadata.missing else []
        lost += [f"{len(metadata.unreadable)} left out because they could not be read"] if metadata.unreadable else []
        how = "" if self.similarity in (None, "mean") else f", {self.similarity}"
        of = "".join(f", {part}" for part in lost)
        count = count_videos(metadata.n_videos, metadata.expected, metadata.listed, lost=of)
        lines = [f"{metadata.data}: {count}; {self._clips()}{how}, {metadata.precision}"]
        lines.append(self._told(self.metrics))
        for name, metrics in self.adjusted.items():
            lines += [f"{name}:", self._told(metrics)]
        if self.hubs is not None:
            hubs = self.hubs
            share = f"{100 * hubs.never:.1f} % of the {metadata.n_videos} videos"
            lines.append(
                f"hubs: {share} are in no query's best {hubs.k}, one is in {hubs.most} of them; skewness "
                f"{hubs.skewness:.2f}"
            )
        return "\n".join(lines)

    @property
    def short(self) -> bool:
        """Whether there were fewer videos than the protocol has: the figures are not the protocol's."""
        return self.metadata.expected is not None and self.metadata.n_videos < self.metadata.expected

    def _told(self, metrics: RetrievalMetrics | RankingMetrics | RecognitionMetrics) -> str:
        """The figures; over too few videos, N stands beside each line of them."""
        return "\n".join(line + self._mark() for line in str(metrics).split("\n"))

    def _mark(self) -> str:
        """N, where it is not the protocol's; a list of one's own is no part of the protocol's."""
        if not self.short:
            return ""
        n, expected = self.metadata.n_videos, self.metadata.expected
        return f"  (N = {n}; the protocol has {expected})" if self.metadata.listed else f"  (N = {n} of {expected})"

    def _clips(self) -> str:
        """What a video was judged by. All three numbers have names: papers write "4x3" for either order of views."""
        data_config = self.metadata.data_config
        if data_config.views == 1:
            return pluralize(data_config.frames, "frame")
        if isinstance(self.metrics, RecognitionMetrics):
            how = f"{data_config.average} averaged"
        else:
            how = "embeddings averaged" if self.similarity == "mean" else "frames of all views"
        views = Views(data_config.temporal_views, data_config.spatial_views)
        return f"{pluralize(data_config.frames, 'frame')} x {views}, {how}"


def count_videos(n: int, expected: int | None, listed: int | None, *, lost: str = "") -> str:
    """How many videos figures are over, of how many: of the protocol's, or of those that a list of one's own names."""
    short = expected is not None and n < expected
    if listed is None:
        return f"{n} of {expected} videos{lost}" if short else f"{pluralize(n, 'video')}{lost}"
    return f"{n} of the {listed} videos listed{lost}" + (f" (the protocol has {expected})" if short else "")


def data_hash(data: VideoDataset) -> str:
    """SHA-256 over file names, times, captions, labels and classes, in order, and whether equal captions are one query;
    folders may differ.
    """
    told: list[object] = [[r.path.name, r.start, r.end, list(r.captions), r.label] for r in data]
    told = [told, list(data.classes), *(["shared"] if data.protocol_spec.shared else [])]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


REQUIRED_KEYS = {
    "model": ("base", "branch", "fingerprint"),
    "data": ("name", "videos", "expected", "hash"),
    "data_config": ("frames", "temporal_views", "spatial_views"),
    "metrics": (),
}
"""Keys that comparisons need, by part of a result, besides `task` and `precision`."""


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a saved result; raise CheckpointError for a missing, incomplete or other file, or one of another format."""
    if not Path(path).is_file():
        raise CheckpointError(f"there is no result {path}; make one with clipvid eval --out")
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        version = result["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no result: {error!r}; make one with clipvid eval --out") from error
    if version != FORMAT:  # checked first: the keys of another format are other ones
        raise CheckpointError(
            f"{path} has result format {version!r}, this version of clipvid reads {FORMAT}; evaluate the model again "
            "with clipvid eval --out"
        )
    if missing := _missing_keys(result):
        raise CheckpointError(f"{path} is an incomplete result: {', '.join(missing)} missing; evaluate the model again")
    return result


def _missing_keys(result: Mapping[str, Any]) -> list[str]:
    """Return the keys that comparisons need and `result` lacks, nested ones with dots."""
    missing = [name for name in ("task", "precision") if name not in result]
    for part, keys in REQUIRED_KEYS.items():
        values = result.get(part)
        if not isinstance(values, Mapping) or not values:
            missing.append(part)
            continue
        missing += [f"{part}.{key}" for key in keys if key not in values]
        if part == "metrics" and result.get("task") == "retrieval":
            missing += [f"{part}.{side}" for side in ("t2v", "v2t") if not isinstance(values.get(side), Mapping)]
    return missing


def directions(result: Mapping[str, Any]) -> list[Side]:
    """Of a result's figures each direction; recognition has one."""
    figures = result["metrics"]
    sides = figures.items() if result["task"] == "retrieval" else [("", figures)]
    return [(name, numbers_of(side), side.get("each", {})) for name, side in sides]


def numbers_of(side: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in side.items() if isinstance(value, float)}
