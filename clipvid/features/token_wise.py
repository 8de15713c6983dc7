"""Token-wise similarity of many texts with many videos, all pairs or a selection, in pieces that fit into memory.

Contract: a model with a token-wise similarity head, texts, and the frame embeddings of videos in; a matrix out. Used to
score all pairs, and to re-rank the results of pooled embeddings. Knows nothing of data sets or metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipvid.models.backbone.text import TextTokens
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.inference import evaluating, inference

PIECE = 1 << 24
"""Token-frame cosines computed at once: 64 MiB in float32."""
LIFT = 3.0
"""Number that `reranked` adds to the scores of chosen pairs."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Frame embeddings of videos, not normalised, and the mask of valid frames."""

    embeddings: Float[Tensor, "n t e"]
    mask: Bool[Tensor, "n t"]

    def __len__(self) -> int:
        return len(self.mask)


@torch.no_grad()
def match_all(
    model: VideoCLIP,
    texts: Sequence[str],
    frames: Frames,
    *,
    only: Bool[Tensor, "m n"] | None = None,
    precision: str = "auto",
    tokens: int | None = None,
    batch_size: int = 256,
) -> Float[Tensor, "m n"]:
    """Return the similarity (M, N) of every text with every video; with `only`, minus infinity for all other pairs.

    `tokens` is the maximum length of a text (`DataConfig.tokens`).
    """
    out = torch.full((len(texts), len(frames)), -torch.inf)
    for start in range(0, len(texts), batch_size):
        with inference(model, precision):
            words = model.text_features(model.backbone.tokenize(texts[start : start + batch_size], longest=tokens))
        assert isinstance(words, TextTokens)
        rows = slice(start, start + len(words))
        with evaluating(model):  # not `inference`, whose autocast would round the similarities
            if only is None:
                out[rows] = _all_pairs(model, words, frames)
            else:
                text, video = only[rows].nonzero(as_tuple=True)
                out[rows][text, video] = _pairs(model, words, frames, text, video)
    return out


def candidates(similarity: Float[Tensor, "q n"], k: int) -> Bool[Tensor, "q n"]:
    """Return a mask that is True for the k best of every row."""
    chosen = torch.zeros_like(similarity, dtype=torch.bool)
    return chosen.scatter_(1, similarity.topk(min(k, similarity.shape[1]), dim=1).indices, True)


def reranked(
    similarity: Float[Tensor, "q n"], refined: Float[Tensor, "q n"], chosen: Bool[Tensor, "q n"]
) -> Float[Tensor, "q n"]:
    """Return scores that rank the chosen pairs by `refined`, ahead of all others, which stay ranked by `similarity`.

    Both are within [-1, 1], so adding `LIFT` puts the worst of the chosen pairs above the best of the others.
    """
    return torch.where(chosen, refined + LIFT, similarity)


def _all_pairs(model: VideoCLIP, words: TextTokens, frames: Frames) -> Tensor:
    size = max(1, PIECE // (words.mask.numel() * frames.mask.shape[1]))
    parts = []
    for start in range(0, len(frames), size):
        piece = frames.embeddings[start : start + size].to(model.device)
        mask = frames.mask[start : start + size].to(model.device)
        parts.append(model.match(words, piece, mask=mask).float().cpu())
    return torch.cat(parts, dim=1)


def _pairs(model: VideoCLIP, words: TextTokens, frames: Frames, text: Tensor, video: Tensor) -> Tensor:
    assert model.matcher is not None
    parts = [torch.zeros(0)]
    for text_rows, video_rows in _pieces(
        text, video, size=max(1, PIECE // (words.mask.shape[1] * frames.mask.shape[1]))
    ):
        mask = frames.mask[video_rows].to(model.device)
        piece = words[text_rows.to(model.device)]
        scores = model.matcher(
            piece.features, frames.embeddings[video_rows].to(model.device), text_mask=piece.mask, video_mask=mask
        )
        parts.append(scores.float().cpu())
    return torch.cat(parts)


def _pieces(text: Tensor, video: Tensor, *, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(text), size):
        yield text[start : start + size], video[start : start + size]
