"""Objectives: modules that compute the loss of a batch, one class per task.

Contract: a model, a config and a TrainBatch in, a scalar loss out; also the mean loss over held-out batches. The
parameters of an objective (those of the model, and any of the loss) are all that is trained. Knows nothing of
optimizers or files.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid.config.settings import TrainConfig
from clipvid.errors import DataError
from clipvid.features.source import CachedClips
from clipvid.models.backbone.text import TextTokens
from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.checkpointing import checkpointed
from clipvid.registry import OBJECTIVES
from clipvid.runtime.inference import evaluating
from clipvid.training import losses
from clipvid.training.hooks import Loss
from clipvid.training.train_batch import BatchSource, TrainBatch


class Retrieval(nn.Module):
    """Contrastive loss between clips and captions, by the model's own similarity.

    With `config.micro_batch_size` this is gradient caching (Gao et al. 2021, section 3). The forward pass computes the
    embeddings one micro-batch at a time and stores nothing else; the loss is that of the full batch. The backward pass
    first computes the gradient with respect to the embeddings, and then runs each micro-batch again, with the same
    random numbers, to backpropagate it to the parameters.
    """

    needs = "caption"

    def __init__(self, model: VideoCLIP, config: TrainConfig, *, loss: Loss | None = None) -> None:
        super().__init__()
        self.model = model
        self.micro_batch_size: int | None = config.micro_batch_size
        self.loss = loss
        self.multi_positive: bool = config.multi_positive
        self.scale: float = model.backbone.logit_scale if config.temperature is None else 1 / config.temperature
        start = torch.tensor(math.log(self.scale))
        self.log_scale: nn.Parameter | None = nn.Parameter(start) if config.learn_temperature else None

    def forward(self, batch: TrainBatch) -> Tensor:
        frames, mask = self._clips(batch)
        similarity = self.model.match(self._texts(batch.text), frames, mask=mask)
        if self.loss is None:
            # Equal rows of tokens, or of embeddings of a frozen text tower, are equal captions.
            captions = batch.text.unique(dim=0, return_inverse=True)[1] if self.multi_positive else None
            return losses.matching(similarity, batch.video_index, scale=self._scale(), caption_index=captions)
        return losses.checked_loss(self.loss((self._scale() * similarity).float(), batch.video_index))

    def _clips(self, batch: TrainBatch) -> tuple[Float[Tensor, "b t e"], Bool[Tensor, "b t"] | None]:
        """Return the frame embeddings of the batch and the mask of their frames."""

        def encode(rows: Tensor) -> tuple[Tensor, Tensor | None]:
            video, mask = batch.clips(rows)
            return self.model.encode_clip(video, mask=mask)

        if not self.micro_batch_size:
            assert not isinstance(batch.video, CachedClips)  # cached taps are read late only for micro-batches
            return self.model.encode_clip(batch.video, mask=batch.mask)
        parts = self._in_micro_batches(encode, len(batch))
        frames = torch.cat([part for part, _ in parts])
        if all(mask is None for _, mask in parts):
            return frames, None
        masks = [frames.new_ones(f.shape[:2], dtype=torch.bool) if mask is None else mask for f, mask in parts]
        return frames, torch.cat(masks)

    def _texts(self, text: Tensor) -> Float[Tensor, "m e"] | TextTokens:
        """Return the text side of the similarity: given embeddings unchanged, token ids through the text tower."""
        if text.is_floating_point():
            return text
        if not self.micro_batch_size:
            return self.model.text_features(text)
        parts = self._in_micro_batches(lambda rows: self.model.text_features(text[rows]), len(text))
        return torch.cat(parts) if isinstance(parts[0], Tensor) else TextTokens.joined(parts)

    def _in_micro_batches(self, encode: Callable[[Tensor], Any], count: int) -> list[Any]:
        """Apply `encode` to `count` rows in micro-batches; their autograd graphs are built in the backward pass."""
        parts = []
        for rows in torch.arange(count, device=self.model.device).split(self.micro_batch_size):
            torch.clear_autocast_cache()  # a cast weight shared by micro-batches would sum their gradients in bf16
            parts.append(checkpointed(encode, rows))
        return parts

    def _scale(self) -> float | Tensor:
        """Return the scale of the similarities; if learned, at most 100, as in CLIP, or 1 % above its initial value."""
        if self.log_scale is None:
            return self.scale
        return self.log_scale.clamp(max=math.log(max(100.0, 1.01 * self.scale))).exp()


class Recognition(nn.Module):
    """Cross entropy over the data's classes; with mixup, clips are blended with the batch in reverse order."""

    needs = "label"

    def __init__(self, model: VideoCLIP, config: TrainConfig, *, loss: Loss | None = None) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.smoothing: float = config.label_smoothing
        self.mixup: float = config.mixup

    def forward(self, batch: TrainBatch) -> Tensor:
        video, mask, blend = batch.video, batch.mask, None
        assert not isinstance(video, CachedClips)  # recognition has no gradient caching
        if self.mixup and isinstance(video, Tensor):
            share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            video = self.model.transform(video)
            video = (1 - share) * video + share * video.flip(0)  # one share per batch, as in ViViT
            mask = None if mask is None else mask | mask.flip(0)
            blend = (batch.labels.flip(0), share)
        logits = self.model.classify(video, mask=mask).float()
        if self.loss is not None:
            return losses.blended(self.loss, logits, batch.labels, blend=blend)
        return losses.classification(logits, batch.labels, smoothing=self.smoothing, blend=blend)


def make_objective(model: VideoCLIP, config: TrainConfig, loss: Loss | None = None) -> nn.Module:
    """Return the objective of the task, with a custom loss if one is given.

    Raises ValueError for a loss if the task takes none, or if label smoothing, a setting of the default loss, is on.
    """
    make: Callable[..., nn.Module] = OBJECTIVES.lookup(config.task)
    if loss is None:
        return make(model, config)
    if "loss" not in inspect.signature(make).parameters:
        raise ValueError(f"loss must be None for task {config.task!r}, whose objective has no logits; leave it out")
    if config.label_smoothing:
        raise ValueError(
            f"label_smoothing is a setting of the default loss, got {config.label_smoothing} and a custom loss; set it "
            "to 0 and smooth labels in the loss"
        )
    return make(model, config, loss=loss)


def move(module: nn.Module, device: torch.device) -> None:
    """Move a module to the device, unless it is there: a move drops what was computed from the base model's weights."""
    if any(tensor.device != device for tensor in chain(module.parameters(), module.buffers())):
        module.to(device)


@torch.no_grad()
def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write the parameters of these names; unlike `load_state_dict`, keep what was computed from all others."""
    for name, parameter in module.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


def check_finite(weights: Mapping[str, Tensor], *, epoch: int) -> None:
    """Raise FloatingPointError for weights that are not finite after an epoch, before they are scored or saved."""
    wrong = next((name for name, value in weights.items() if not bool(value.isfinite().all())), None)
    if wrong is not None:
        raise FloatingPointError(f"{wrong} is not finite after epoch {epoch}; lower lr or raise warmup")


def recover(objective: nn.Module, best: Mapping[str, Any]) -> str:
    """Load the weights of the best epoch of a run that diverged, if it has one; return what the model now holds."""
    if best["state"] is None:
        return "the model has the weights of the diverged run, so create or load it again"
    load_weights(objective, best["state"])
    return f"the model has its weights of epoch {best['epoch']} again"


@torch.no_grad()
def held_out_loss(objective: nn.Module, source: BatchSource, *, seed: int) -> float:
    """Return the mean loss in eval mode over the batches of epoch 0.

    ConST-CL's random regions are the same in every call; torch's CPU generator is restored afterwards. Raises
    DataError if no batch could be read.
    """
    with evaluating(objective), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every GPU for good
        with closing(source.batches(0, start=0)) as batches:
            values = [float(objective(batch)) for batch in batches]
    if not values:
        raise DataError(f"no two videos of {source.data.name} could be read for validation; check the data set's root")
    return sum(values) / len(values)
