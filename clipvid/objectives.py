"""From a batch to its loss: what each task trains. One class a task; all that trains is a parameter of it.

Contract: a model, a config and Work from the feed in, a scalar loss out; the mean loss over a feed that is held out.
Knows nothing of optimisers or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor, nn

from clipvid import losses
from clipvid.config import TrainConfig
from clipvid.constcl import SelfSupervised
from clipvid.errors import DataError
from clipvid.feed import PairFeed, Work
from clipvid.model import VideoCLIP


class Retrieval(nn.Module):
    """Contrastive loss between clips and captions, by the model's own similarity."""

    def __init__(self, model: VideoCLIP, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.scale = model.backbone.logit_scale if config.temperature is None else 1 / config.temperature
        start = torch.tensor(math.log(self.scale))
        self.log_scale = nn.Parameter(start) if config.learn_temperature else None

    def forward(self, work: Work) -> Tensor:
        frames, mask = self.model.encode_clip(work.video, mask=work.mask)
        text = work.text if work.text.is_floating_point() else self.model.text_features(work.text)
        return losses.matching(self.model.match(text, frames, mask=mask), work.owner, scale=self._scale())

    def _scale(self) -> float | Tensor:
        if self.log_scale is None:
            return self.scale
        return self.log_scale.clamp(max=math.log(max(100.0, 1.01 * self.scale))).exp()


class Recognition(nn.Module):
    """Cross entropy over the data's classes; with mixup, of clips blended with the batch in reverse order."""

    def __init__(self, model: VideoCLIP, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.smoothing, self.mixup = config.label_smoothing, config.mixup

    def forward(self, work: Work) -> Tensor:
        video, mask, blend = work.video, work.mask, None
        if self.mixup and isinstance(video, Tensor):
            share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            video = self.model.transform(video)
            video = (1 - share) * video + share * video.flip(0)  # one share a batch, as ViViT
            mask = None if mask is None else mask | mask.flip(0)
            blend = (work.labels.flip(0), share)
        logits = self.model.classify(video, mask=mask).float()
        return losses.classification(logits, work.labels, smoothing=self.smoothing, blend=blend)


OBJECTIVES: dict[str, Callable[[VideoCLIP, TrainConfig], nn.Module]] = {
    "retrieval": Retrieval,
    "recognition": Recognition,
    "selfsup": SelfSupervised,
}
"""By task, its loss."""


@torch.no_grad()
def held_out_loss(objective: nn.Module, feed: PairFeed, *, seed: int) -> float:
    """Mean loss in eval mode over the feed's pairs of epoch 0, with the same regions at every call.

    torch's CPU generator is left as it was. Raises DataError where no batch could be read.
    """
    training = objective.training
    objective.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every GPU for good
            with closing(feed.batches(0, start=0)) as batches:
                found = [float(objective(work)) for work in batches]
    finally:
        objective.train(training)
    if not found:
        raise DataError(f"no two videos of {feed.data.name} could be read for validation; check the data set's root")
    return sum(found) / len(found)
