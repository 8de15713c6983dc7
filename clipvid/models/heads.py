"""Heads on a video embedding: similarity to texts, a linear classifier, a classifier from class names.

Contract: embeddings (B, E) in, similarities or logits out. Knows nothing of towers, branches or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.config.settings import VIDEO_TEMPLATES, check_templates
from clipvid.nn.similarity import SIMILARITIES


class LinearClassifier(nn.Module):
    """Linear layer on the embedding, which is scaled to unit root-mean-square so that base models train alike."""

    def __init__(self, embed_dim: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes: tuple[str, ...] = class_names(classes)
        self.linear: nn.Linear = nn.Linear(embed_dim, len(self.classes))

    def forward(self, video: Float[Tensor, "b e"]) -> Float[Tensor, "b c"]:
        return self.linear(F.normalize(video, dim=-1) * video.shape[-1] ** 0.5)


class TextClassifier(nn.Module):
    """Cosine similarity to the embedding of each class name, times a fixed scale; it has no trainable parameters.

    Used by zero-shot CLIP and by STAN's recognition (cosine logits at scale 100).
    """

    def __init__(self, text: Float[Tensor, "c e"], classes: Sequence[str], *, scale: float = 100.0) -> None:
        super().__init__()
        self.classes: tuple[str, ...] = class_names(classes)
        if len(text) != len(self.classes):
            raise ValueError(f"text has {len(text)} embeddings for {len(self.classes)} class names; pass one per name")
        self.scale = scale
        self.text: Tensor
        self.register_buffer("text", F.normalize(text, dim=-1))

    def forward(self, video: Float[Tensor, "b e"]) -> Float[Tensor, "b c"]:
        return self.scale * F.normalize(video, dim=-1) @ self.text.T


Classifier = LinearClassifier | TextClassifier
_NAMES = "a list of class names"


def to_config(head: Classifier | None) -> dict[str, Any] | None:
    """Return a classifier as plain data, without its weights."""
    if head is None:
        return None
    if isinstance(head, TextClassifier):
        return {"kind": "text", "classes": list(head.classes), "scale": head.scale}
    return {"kind": "linear", "classes": list(head.classes)}


def from_config(config: Mapping[str, Any] | None, embed_dim: int) -> Classifier | None:
    """Build the classifier that a config describes, with weights still to be loaded."""
    if config is None:
        return None
    if config["kind"] not in ("linear", "text"):
        raise ValueError(f"unknown head {config['kind']!r}; choose one of linear, text")
    if config["kind"] == "linear":
        return LinearClassifier(embed_dim, config["classes"])
    return TextClassifier(torch.zeros(len(config["classes"]), embed_dim), config["classes"], scale=config["scale"])


def similarity_head(name: str, embed_dim: int, *, branch: str, one_token: bool) -> nn.Module | None:
    """Build a token-wise similarity by name; return None for "mean", the cosine of the mean over frames.

    Raises ValueError for an unknown name, and if `branch` has `one_token` for all frames of a clip.
    """
    if name == "mean":
        return None
    if name not in tuple(SIMILARITIES):
        raise ValueError(f"unknown similarity {name!r}; choose one of mean, {', '.join(SIMILARITIES)}")
    if one_token:
        raise ValueError(
            f"this branch ({branch}) makes one embedding for the whole clip, so words cannot be matched to frames; "
            f"similarity {name!r} needs a branch with frame embeddings, such as stan or space"
        )
    return SIMILARITIES[name](embed_dim)


def prompts(classes: Sequence[str], templates: Sequence[str] = VIDEO_TEMPLATES) -> list[list[str]]:
    """Fill every template with every class name, one list per class."""
    templates = check_templates(templates)
    classes = checks.texts("classes", classes, must=_NAMES, advice="give two or more")
    return [[template.replace("{}", name.replace("_", " ")) for template in templates] for name in classes]


def class_names(classes: Iterable[str]) -> tuple[str, ...]:
    """Return the class names; raise ValueError for fewer than two or duplicates."""
    classes = checks.texts("classes", classes, must=_NAMES, advice="give two or more")
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(
            f"a classifier needs two or more different class names, got {list(classes)[:5]}; add or rename classes"
        )
    return tuple(classes)
