"""Result cards: what an evaluation found and on what, as text and as a JSON file; and two of them side by side.

Contract: metrics and facts in, a card out that says enough to repeat or to doubt it: model and its fingerprint, data
and their hash, N, how clips were read, precision, versions, figures with intervals, and every query's own result, so
that cards can be compared without the models. Knows nothing of how anything was computed.
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

from clipvid import __version__
from clipvid._files import whole_file
from clipvid.config import Reading
from clipvid.data.dataset import Views
from clipvid.data.record import VideoData
from clipvid.errors import CheckpointError, VideoError
from clipvid.metrics import Hubness, RankingMetrics, RecognitionMetrics, RetrievalMetrics, paired_bootstrap

FORMAT = 1
Metrics = TypeVar("Metrics", RetrievalMetrics, RecognitionMetrics)
Side = tuple[str, Mapping[str, float], Mapping[str, Any]]
"""A direction's name, its figures, and every query's own."""


@dataclass(frozen=True)
class Facts:
    """What was measured: the model, the data, and how they met."""

    model: Mapping[str, Any]
    """`describe` of the model: base, fingerprints, branch, similarity."""
    data: str
    n_videos: int
    data_hash: str
    """Of file names, times, captions and labels, in order: two evaluations of equal hashes asked the same queries."""
    reading: Reading
    precision: str
    missing: tuple[str, ...] = ()
    """Files that the annotations name and that were not there."""
    unreadable: tuple[VideoError, ...] = ()


@dataclass(frozen=True)
class Evaluation(Generic[Metrics]):
    """Figures and what they were measured on; `str()` prints all of it, `to_dict()` is the card."""

    metrics: Metrics
    facts: Facts
    similarity: str | None = None
    """What retrieval compared; None for recognition."""
    adjusted: Mapping[str, RetrievalMetrics | RankingMetrics] = field(default_factory=dict)
    """The same scores adjusted by what is known of the other queries, by the adjustment's name: not comparable with
    figures that judge each query by itself."""
    hubs: Hubness | None = None
    """Of the gallery in text to video."""

    @property
    def n_videos(self) -> int:
        return self.facts.n_videos

    @property
    def reading(self) -> Reading:
        return self.facts.reading

    @property
    def unreadable(self) -> tuple[VideoError, ...]:
        return self.facts.unreadable

    def __getitem__(self, name: str) -> float:
        """One figure: "R@1" (text to video), "v2t R@1", "top-1", ..."""
        if isinstance(self.metrics, RecognitionMetrics):
            return self.metrics[name]
        side, _, figure = name.rpartition(" ")
        return (self.metrics.v2t if side == "v2t" else self.metrics.t2v)[figure]

    def to_dict(self) -> dict[str, Any]:
        """The card as plain data."""
        facts = self.facts
        card: dict[str, Any] = {
            "format": FORMAT,
            "clipvid": __version__,
            "torch": torch.__version__,
            "model": dict(facts.model),
            "data": {
                "name": facts.data,
                "videos": facts.n_videos,
                "hash": facts.data_hash,
                "missing": list(facts.missing),
                "unreadable": [str(error) for error in facts.unreadable],
            },
            "reading": asdict(facts.reading),
            "precision": facts.precision,
        }
        if isinstance(self.metrics, RecognitionMetrics):
            return {**card, "task": "recognition", "figures": self.metrics.to_dict()}
        return {
            **card,
            "task": "retrieval",
            "similarity": self.similarity,
            "figures": self.metrics.to_dict(),
            "adjusted": {name: metrics.to_dict() for name, metrics in self.adjusted.items()},
            "hubs": None if self.hubs is None else self.hubs._asdict(),
        }

    def save(self, path: str | Path) -> Path:
        """Write the card, whole or not at all."""
        with whole_file(path) as beside:
            beside.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return Path(path)

    def __str__(self) -> str:
        facts = self.facts
        lost = [f"{len(facts.missing)} missing"] if facts.missing else []
        lost += [f"{len(facts.unreadable)} left out because they could not be read"] if facts.unreadable else []
        how = "" if self.similarity in (None, "mean") else f", {self.similarity}"
        of = "".join(f", {part}" for part in lost)
        lines = [f"{facts.data}: {facts.n_videos} videos{of}; {self._clips()}{how}, {facts.precision}"]
        lines.append(str(self.metrics))
        for name, metrics in self.adjusted.items():
            lines += [f"{name}:", str(metrics)]
        if self.hubs is not None:
            hubs = self.hubs
            lines.append(
                f"hubs: {100 * hubs.never:.1f} % of the videos are in no query's best {hubs.k}, one is in "
                f"{hubs.most} of them; skewness {hubs.skewness:.2f}"
            )
        return "\n".join(lines)

    def _clips(self) -> str:
        """What a video was judged by. All three numbers have names: papers write "4x3" for either order of views."""
        reading = self.facts.reading
        if reading.views == 1:
            return f"{reading.frames} frames"
        if isinstance(self.metrics, RecognitionMetrics):
            how = f"{reading.average} averaged"
        else:
            how = "embeddings averaged" if self.similarity == "mean" else "frames of all views"
        return f"{reading.frames} frames x {Views(reading.temporal_views, reading.spatial_views)}, {how}"


def data_hash(data: VideoData) -> str:
    """SHA-256 over file names, times, captions, labels and classes, in order; folders may differ."""
    told = [[r.path.name, r.start, r.end, list(r.captions), r.label] for r in data]
    return hashlib.sha256(json.dumps([told, list(data.classes)]).encode()).hexdigest()


def read_card(path: str | Path) -> dict[str, Any]:
    """A card that was saved; CheckpointError for another file."""
    try:
        card = json.loads(Path(path).read_text(encoding="utf-8"))
        found, needed = card["format"], ("task", "figures", "data", "model")
        whole = all(name in card for name in needed)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no result card: {error!r}; make one with clipvid eval --out") from error
    if found != FORMAT or not whole:
        raise CheckpointError(f"{path} has format {found}, this version reads {FORMAT}; evaluate the model again")
    return card


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, n: int = 10_000, seed: int = 0) -> str:
    """Two cards side by side, figure by figure, with the paired-bootstrap p-value of each difference.

    Raises ValueError for cards of other tasks or other data: their queries are not the same.
    """
    if a["task"] != b["task"]:
        raise ValueError(f"the cards are of {a['task']} and of {b['task']}; compare cards of one task")
    if a["data"]["hash"] != b["data"]["hash"]:
        raise ValueError(
            f"the cards are not of the same queries: {a['data']['name']} ({a['data']['videos']} videos, hash "
            f"{a['data']['hash'][:8]}) and {b['data']['name']} ({b['data']['videos']}, {b['data']['hash'][:8]}); "
            "evaluate both models on the same files and captions"
        )
    lines = [f"{name}: {_said(card)}" for name, card in (("a", a), ("b", b))]
    lines.append(f"{'':<14}{'a':>8}{'b':>8}{'b - a':>9}   {'95 %':<18}p")
    for (side, ours, own), (_, theirs, their) in zip(_sides(a), _sides(b), strict=True):
        for figure in (f for f in ours if f in theirs):
            name = f"{side} {figure}".strip()
            line = f"{name:<14}{ours[figure]:>8.2f}{theirs[figure]:>8.2f}{theirs[figure] - ours[figure]:>+9.2f}"
            if figure in own and figure in their:
                scale = 1 if figure == "MnR" else 100
                found = paired_bootstrap(np.asarray(own[figure]), np.asarray(their[figure]), n=n, seed=seed)
                low, high = (scale * limit for limit in found.interval)
                span = f"[{low:+.2f}, {high:+.2f}]"
                line += f"   {span:<18}{found.p:.3g}"
            lines.append(line)
    return "\n".join(lines)


def _said(card: Mapping[str, Any]) -> str:
    model, data, reading = card["model"], card["data"], card["reading"]
    what = card.get("similarity")
    return (
        f"{model['base']}, {model['branch']} ({model['fingerprint'][:8]}); {data['name']}, {data['videos']} videos, "
        f"{reading['frames']} frames{'' if what in (None, 'mean') else ', ' + what}, {card['precision']}"
    )


def _sides(card: Mapping[str, Any]) -> list[Side]:
    """Of a card's figures each direction; recognition has one."""
    figures = card["figures"]
    sides = figures.items() if card["task"] == "retrieval" else [("", figures)]
    return [(name, _numbers(side), side.get("each", {})) for name, side in sides]


def _numbers(side: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in side.items() if isinstance(value, float)}
