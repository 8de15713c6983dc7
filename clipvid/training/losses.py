"""Training objectives: contrastive loss for retrieval, cross entropy for recognition, two contrasts without labels.

Contract: pure functions of tensors to a scalar. Knows nothing of models, batches or devices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def matching(
    similarity: Float[Tensor, "m b"], video_index: Int[Tensor, "m"], *, scale: float | Tensor
) -> Float[Tensor, ""]:
    """Symmetric NCE over the similarities of captions (rows) and videos; caption m belongs to video owner[m].

    `scale` is 1 / temperature. With one caption a video this is the mean of the two directions, as open_clip and
    CLIP4Clip have it (the STAN release takes their sum: twice this). With several captions a video, each caption is a
    query of its own, and a video's own captions share its probability mass evenly: the mean of their log
    probabilities (as in supervised contrastive learning, Khosla et al. 2020, eq. 2).

    Raises ValueError when a video of the batch has no caption: it could not be a query.
    """
    logits = scale * similarity
    videos = logits.shape[1]
    captions = torch.bincount(video_index, minlength=videos)
    if int(captions.min()) == 0:
        raise ValueError(f"video {int(captions.argmin())} of the batch has no caption; retrieval needs one for each")
    text_to_video = F.cross_entropy(logits, video_index)
    log_probability = logits.log_softmax(dim=0)[
        torch.arange(len(video_index), device=video_index.device), video_index
    ]  # (M,)
    video_to_text = -(log_probability / captions[video_index]).sum() / videos
    return (text_to_video + video_to_text) / 2


def classification(
    logits: Float[Tensor, "b c"],
    labels: Int[Tensor, "b"],
    *,
    smoothing: float = 0.0,
    blend: tuple[Int[Tensor, "b"], float] | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy with label smoothing (1 - s) y + s / C; ValueError for labels that C classes do not have.

    `blend` holds the labels of the clips that were mixed in, and their share (mixup, Zhang et al. 2018).
    """
    if blend is not None:
        other, share = blend
        own = classification(logits, labels, smoothing=smoothing)
        return (1 - share) * own + share * classification(logits, other, smoothing=smoothing)
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, the head has {logits.shape[1]} classes; "
            "every training clip needs a label below that"
        )
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def two_view_contrastive(
    a: Float[Tensor, "b e"], b: Float[Tensor, "b e"], *, temperature: float | Tensor
) -> Float[Tensor, ""]:
    """Global loss of ConST-CL: each view of a video is to find the other among all views of the batch but itself.

    The sum of the losses of `a` and of `b`, as released: twice the NT-Xent of SimCLR, which is their mean.
    """
    views = F.normalize(torch.cat([a, b]), dim=-1)
    logits = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(len(views), device=views.device).roll(len(a))
    return 2 * F.cross_entropy(logits, other)


def region_contrastive(
    predicted: Float[Tensor, "b r d"],
    target: Float[Tensor, "b s d"],
    predicted_mask: Bool[Tensor, "b r"],
    target_mask: Bool[Tensor, "b s"],
    *,
    source: Float[Tensor, "b r d"],
    temperature: float | Tensor,
) -> Float[Tensor, ""]:
    """Local loss of ConST-CL in one direction: a predicted region is to find its like in the other view of its video.

    `source` holds the features from which `predicted` was made. A region's like is the region of the target view that
    its source feature is nearest to, by cosine; its negatives are the regions of the other videos' target views, and
    the further ones of its own are neither. Masks are False for regions that do not count; the release lets all of
    the target count, which an all-True `target_mask` gives. Mean over regions with both a mask and a like; else 0.
    """
    predicted, target, source = (F.normalize(x, dim=-1) for x in (predicted, target, source))
    videos, regions = torch.arange(len(target), device=target.device), target.shape[1]
    likeness = (source @ target.mT).masked_fill(~target_mask[:, None], -torch.inf)
    like = videos[:, None] * regions + likeness.argmax(dim=-1)  # (B, R), an index into all B·S targets
    logits = torch.einsum("brd,psd->brps", predicted, target).flatten(2) / temperature
    others = (videos[:, None, None] != videos[:, None]) & target_mask  # (B, B, S)
    counts = others.flatten(1)[:, None].expand_as(logits).scatter(-1, like[..., None], value=True)
    losses = F.cross_entropy(logits.masked_fill(~counts, -torch.inf).flatten(0, 1), like.flatten(), reduction="none")
    valid = (predicted_mask & target_mask.any(dim=1, keepdim=True)).flatten()
    return (losses * valid).sum() / valid.sum().clamp(min=1)
