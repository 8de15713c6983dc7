"""Losses: contrastive loss for retrieval, cross entropy for recognition, two self-supervised contrastive losses.

Contract: pure functions of tensors to a scalar. Knows nothing of models, batches or devices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def matching(
    similarity: Float[Tensor, "m b"],
    video_index: Int[Tensor, "m"],
    *,
    scale: float | Tensor,
    caption_index: Int[Tensor, "m"] | None = None,
) -> Float[Tensor, ""]:
    """Return the symmetric NCE over similarities of captions (rows) and videos; caption m is of video video_index[m].

    `scale` is 1 / temperature. With one caption per video this is the mean of the two directions, as in open_clip and
    CLIP4Clip (the STAN release takes their sum: twice this). With several captions per video, each caption is a
    separate query; from video to text, the negative log probability is averaged over a video's captions (as in
    supervised contrastive learning, Khosla et al. 2020, eq. 2).

    Equal numbers (from 0) in `caption_index` stand for equal captions. Without it, equal captions of two videos are
    negatives of each other. With it they count as one caption, which is right for each of these videos: their
    probabilities are added before the logarithm, in both directions, as in MIL-NCE (Miech et al. 2020, eq. 1).

    Raises ValueError when a video of the batch has no caption, because it then has no positive.
    """
    logits = scale * similarity
    videos = logits.shape[1]
    captions = torch.bincount(video_index, minlength=videos)
    if int(captions.min()) == 0:
        raise ValueError(
            f"video {int(captions.argmin())} of the batch has no caption; retrieval needs at least one per video"
        )
    if caption_index is not None and int(torch.bincount(caption_index).max()) > 1:
        return _multi_positive(logits, video_index, caption_index)
    text_to_video = F.cross_entropy(logits, video_index)
    log_probability = logits.log_softmax(dim=0)[
        torch.arange(len(video_index), device=video_index.device), video_index
    ]  # (M,)
    video_to_text = -(log_probability / captions[video_index]).sum() / videos
    return (text_to_video + video_to_text) / 2


def _multi_positive(
    logits: Float[Tensor, "m b"], video_index: Int[Tensor, "m"], caption_index: Int[Tensor, "m"]
) -> Float[Tensor, ""]:
    """Return the symmetric NCE in which equal captions are one, right for each video that has it."""
    rows, columns = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    equal = caption_index[:, None] == caption_index  # (M, M)
    right = (equal.to(logits.dtype) @ F.one_hot(video_index, logits.shape[1]).to(logits.dtype)) > 0  # (M, B)
    text_to_video = -rows.masked_fill(~right, -torch.inf).logsumexp(dim=1).mean()
    mass = columns[:, video_index].masked_fill(~equal, -torch.inf).logsumexp(dim=0)  # (M,), of each caption's video
    captions = torch.bincount(video_index, minlength=logits.shape[1])
    video_to_text = -(mass / captions[video_index]).sum() / logits.shape[1]
    return (text_to_video + video_to_text) / 2


def classification(
    logits: Float[Tensor, "b c"],
    labels: Int[Tensor, "b"],
    *,
    smoothing: float = 0.0,
    blend: tuple[Int[Tensor, "b"], float] | None = None,
) -> Float[Tensor, ""]:
    """Return the cross entropy with label smoothing, (1 - s) y + s / C.

    `blend` holds the labels of the clips that were mixed in, and their share (mixup, Zhang et al. 2018). Raises
    ValueError for labels outside [0, C).
    """
    if blend is not None:
        mixed_labels, share = blend
        loss = classification(logits, labels, smoothing=smoothing)
        return (1 - share) * loss + share * classification(logits, mixed_labels, smoothing=smoothing)
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, the head has {logits.shape[1]} classes; "
            "labels must be integers from 0 to one less than that"
        )
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def blended(
    loss: Callable[..., Tensor],
    logits: Float[Tensor, "b c"],
    labels: Int[Tensor, "b"],
    *,
    blend: tuple[Int[Tensor, "b"], float] | None,
) -> Tensor:
    """Return a custom loss of the clips, blended with that for the labels of the clips that were mixed in."""
    if blend is None:
        return checked_loss(loss(logits, labels))
    mixed_labels, share = blend
    return (1 - share) * checked_loss(loss(logits, labels)) + share * checked_loss(loss(logits, mixed_labels))


def checked_loss(value: object) -> Tensor:
    """Return the value of a custom loss; raise ValueError if it is no scalar, or no gradient flows through it."""
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss must return a floating-point tensor of shape (), got {got}; take the mean over rows")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(
            "loss must return a tensor that depends on the logits, got one without gradient; compute it by torch "
            "operations, without detach() or item()"
        )
    return value


def two_view_contrastive(
    a: Float[Tensor, "b e"], b: Float[Tensor, "b e"], *, temperature: float | Tensor
) -> Float[Tensor, ""]:
    """Return ConST-CL's global loss: each view must identify the other view of its video among all views of the batch.

    The losses of `a` and `b` are summed, as released: twice the NT-Xent of SimCLR, which takes their mean.
    """
    views = F.normalize(torch.cat([a, b]), dim=-1)
    logits = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    positive = torch.arange(len(views), device=views.device).roll(len(a))
    return 2 * F.cross_entropy(logits, positive)


def region_contrastive(
    predicted: Float[Tensor, "b r d"],
    target: Float[Tensor, "b s d"],
    predicted_mask: Bool[Tensor, "b r"],
    target_mask: Bool[Tensor, "b s"],
    *,
    source: Float[Tensor, "b r d"],
    temperature: float | Tensor,
) -> Float[Tensor, ""]:
    """Return ConST-CL's local loss in one direction: a predicted region must identify its match in the other view.

    `source` holds the features from which `predicted` was made. The positive of a region is the region of its video's
    target view nearest to its source feature by cosine. The negatives are all regions of the other videos' target
    views; the remaining regions of the same video are neither. Masks are False for regions to ignore; an all-True
    `target_mask` reproduces the release. The loss is the mean over unmasked regions with a positive, or 0 if there are
    none.
    """
    predicted, target, source = (F.normalize(x, dim=-1) for x in (predicted, target, source))
    videos, regions = torch.arange(len(target), device=target.device), target.shape[1]
    cosine = (source @ target.mT).masked_fill(~target_mask[:, None], -torch.inf)
    positive = videos[:, None] * regions + cosine.argmax(dim=-1)  # (B, R), an index into all B·S targets
    logits = torch.einsum("brd,psd->brps", predicted, target).flatten(2) / temperature
    negatives = (videos[:, None, None] != videos[:, None]) & target_mask  # (B, B, S)
    candidates = negatives.flatten(1)[:, None].expand_as(logits).scatter(-1, positive[..., None], value=True)
    losses = F.cross_entropy(
        logits.masked_fill(~candidates, -torch.inf).flatten(0, 1), positive.flatten(), reduction="none"
    )
    valid = (predicted_mask & target_mask.any(dim=1, keepdim=True)).flatten()
    return (losses * valid).sum() / valid.sum().clamp(min=1)
