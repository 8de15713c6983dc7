"""Class predictions for videos: of the model's head, or zero-shot among class names.

Contract: a model and videos in; class names with probabilities out, best first. Runs as evaluation does, in eval mode,
without gradients and at the data config's precision. Knows nothing of data sets or metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor

from clipvid.config import checks
from clipvid.config.data_config import DataConfig, checked_data_config
from clipvid.config.settings import VIDEO_TEMPLATES
from clipvid.models.heads import Classifier
from clipvid.models.inputs import require_finite
from clipvid.runtime.display.names import show
from clipvid.runtime.display.tables import data_frame
from clipvid.runtime.inference import evaluating, inference
from clipvid.video.inputs import describe_source, split_sources

SHOWN = 10
"""Videos that `repr` of predictions lists."""
TOP_ADVICE = "it is the number of classes listed per video"


class Prediction(NamedTuple):
    """One class of one video."""

    name: str
    probability: float


@dataclass(frozen=True, repr=False, eq=False)
class Predictions:
    """Probabilities of all classes for some videos; indexing and iteration give the best `top` of each video.

    A slice gives a list of these, one entry per video.

    >>> predictions = model.predict("clip.mp4")                                                   # doctest: +SKIP
    >>> predictions[0][0].name                                                                    # doctest: +SKIP
    'a dog runs'
    """

    videos: tuple[str, ...]
    """Path of each video; for arrays its number, such as "clip 0"."""
    classes: tuple[str, ...]
    probabilities: Float[Tensor, "b c"]
    """Softmax over the classes, on the CPU."""
    top: int
    """Classes per video that are listed."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Most probable class of each video."""
        return tuple(self.classes[index] for index in self.probabilities.argmax(dim=1).tolist())

    def __len__(self) -> int:
        return len(self.videos)

    @overload
    def __getitem__(self, index: int) -> list[Prediction]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Prediction]]: ...
    def __getitem__(self, index: int | slice) -> list[Prediction] | list[list[Prediction]]:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = self.probabilities[range(len(self))[index]]
        best = torch.sort(row, descending=True, stable=True).indices[: self.top].tolist()
        return [Prediction(self.classes[k], float(row[k])) for k in best]

    def __iter__(self) -> Iterator[list[Prediction]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        lines = self.lines(SHOWN)
        more = len(self) - len(lines)
        return "\n".join([*lines, *([f"... and {more} more"] if more else [])])

    def lines(self, limit: int | None = None) -> list[str]:
        """Return a line per video with the classes listed and their percentages; the first `limit` videos if given."""
        return [
            f"{show(video)}: " + ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in best)
            for video, best in zip(self.videos[:limit], self, strict=False)
        ]

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row per video and listed class: video, rank (from 1), class, probability."""
        rows = [
            (video, rank, name, probability)
            for video, best in zip(self.videos, self, strict=True)
            for rank, (name, probability) in enumerate(best, start=1)
        ]
        return data_frame(rows, ["video", "rank", "class", "probability"])


def predict(
    model: Any,
    video: Any,
    classes: Iterable[str] | None,
    *,
    top: int,
    templates: Sequence[str],
    data_config: DataConfig | None,
) -> Predictions:
    """Return the predictions of `VideoCLIP.predict`, whose arguments these are."""
    top = checks.integer("top", top, 1, advice=TOP_ADVICE)
    sources = split_sources(video)
    config = checked_data_config(data_config) or model.data_config
    with inference(model, config.precision):
        head = _head(model, classes, templates)
        options = {"data_config": config} if sources else {}
        embedding = model.encode_video(video, **options)
        require_finite(embedding)
    names = [describe_source(source) for source in sources] or [f"clip {row}" for row in range(len(embedding))]
    return _predictions(head, embedding, names, top)


def predict_embeddings(
    model: Any,
    embeddings: Float[Tensor, "b e"],
    names: Sequence[str],
    classes: Iterable[str] | None = None,
    *,
    top: int = 5,
    templates: Sequence[str] = VIDEO_TEMPLATES,
) -> Predictions:
    """Return predictions for videos that the model has embedded, not normalised; `names` are those of the videos.

    The other arguments and errors are those of `VideoCLIP.predict`.
    """
    top = checks.integer("top", top, 1, advice=TOP_ADVICE)
    with evaluating(model), torch.no_grad():
        head = _head(model, classes, templates)
    require_finite(embeddings)
    return _predictions(head, embeddings.to(model.device), names, top)


def _predictions(head: Classifier, embeddings: Float[Tensor, "b e"], names: Sequence[str], top: int) -> Predictions:
    """Return the predictions of a classifier; in float32, as evaluation computes logits."""
    with evaluating(head), torch.no_grad():
        probabilities = head(embeddings.float()).float().softmax(dim=-1).cpu()
    return Predictions(tuple(names), head.classes, probabilities, min(top, len(head.classes)))


def _head(model: Any, classes: Iterable[str] | None, templates: Sequence[str]) -> Classifier:
    """Return a classifier of the class names given, or the model's own."""
    if classes is None:
        if model.head is None:
            raise ValueError(
                "classes must be given for a model without classifier, got None; pass class names, or train a "
                "classifier (task recognition)"
            )
        return model.head
    return model.text_classifier(classes, templates=templates)
