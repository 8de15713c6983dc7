"""AdamW parameter groups and the learning-rate schedule.

Contract: an objective around a VideoCLIP and a TrainConfig in, parameter groups out, each with its peak rate. Knows
nothing of data, losses or checkpoints.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from clipvid.config.settings import TrainConfig

UNDECAYED = re.compile(r"(^|[._])(position|positional_embedding|time|space|cls|cls_position|bias|norm_weight)$")
"""Names of position tables, tokens, norms and biases that have no weight decay though they have several axes."""


def schedule(done: float, *, warmup: float) -> float:
    """Return the learning rate over its peak after a fraction `done` of all steps: linear warmup, then cosine."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def adamw(groups: Any, *, lr: float, device: str, scaled: bool = False) -> torch.optim.AdamW:
    """Return AdamW with the betas of the STAN release, fused where torch has that (a fifth of the time on a CPU).

    `scaled` is for runs with a gradient scaler (16-mixed): a fused step would unscale by itself, after clipping.
    """
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=device in ("cpu", "cuda") and not scaled)


def parameter_groups(objective: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """Return optimizer groups: the classifier at its own rate; norms, biases and position tables without decay.

    Raises ValueError where nothing trains.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            peak = config.head_lr if name.startswith("model.head.") else config.lr
            if name.startswith("model.backbone.") and "lora_" not in name:
                peak = config.clip_lr
            elif any(part in name for part in objective.model.branch.copied):
                peak *= config.pretrained_lr_scale
            decays = parameter.ndim > 1 and not UNDECAYED.search(name)
            groups.setdefault((peak, decays), []).append(parameter)
    if not groups:
        raise ValueError(
            "nothing to train: branch 'mean' has no parameters; choose another, give it a layer (options, such as "
            '{"hidden": 512}), or let CLIP train (train_clip)'
        )
    return [
        {
            "params": parameters,
            "peak": peak,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (peak, decays), parameters in groups.items()
    ]
