"""Training objectives: symmetric contrastive loss for retrieval, cross entropy for recognition.

Contract: pure functions of tensors to a scalar. Knows nothing of models, batches or devices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def contrastive(
    video: Float[Tensor, "b e"], text: Float[Tensor, "m e"], owner: Int[Tensor, "m"], *, scale: float | Tensor
) -> Float[Tensor, ""]:
    """Symmetric NCE between L2-normalised videos and captions; caption m belongs to video owner[m].

    `scale` is 1 / temperature. With one caption a video this is the mean of the two directions, as open_clip and
    CLIP4Clip have it (the STAN release takes their sum: twice this). With several captions a video, each caption is a
    query of its own, and a video's own captions share its probability mass evenly: the mean of their log
    probabilities (as in supervised contrastive learning, Khosla et al. 2020, eq. 2).

    Raises ValueError when a video of the batch has no caption: it could not be a query.
    """
    logits = scale * text @ video.T  # (M, B)
    captions = torch.bincount(owner, minlength=len(video))
    if int(captions.min()) == 0:
        raise ValueError(f"video {int(captions.argmin())} of the batch has no caption; retrieval needs one for each")
    text_to_video = F.cross_entropy(logits, owner)
    log_probability = logits.log_softmax(dim=0)[torch.arange(len(owner), device=owner.device), owner]  # (M,)
    video_to_text = -(log_probability / captions[owner]).sum() / len(video)
    return (text_to_video + video_to_text) / 2


def classification(
    logits: Float[Tensor, "b c"], labels: Int[Tensor, "b"], *, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross entropy with label smoothing (1 - s) y + s / C; ValueError for labels that C classes do not have."""
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, the head has {logits.shape[1]} classes; "
            "every training clip needs a label below that"
        )
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)
