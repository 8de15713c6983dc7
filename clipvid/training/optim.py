"""Parameter groups, the optimizer and the learning-rate schedule.

Contract: an objective around a VideoCLIP and a TrainConfig in, parameter groups out, each with its peak rate, and an
optimizer over them. Knows nothing of data, losses or checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from clipvid.config.settings import TrainConfig
from clipvid.training.hooks import OptimizerFactory

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


def make_optimizer(
    groups: list[dict[str, Any]], config: TrainConfig, factory: OptimizerFactory | None, *, device: str, scaled: bool
) -> torch.optim.Optimizer:
    """Return AdamW over these groups, or the optimizer of `factory`, whose learning rates become the peaks.

    Raises TypeError if `factory` returns no torch optimizer, ValueError if that leaves out parameters.
    """
    if factory is None:
        return adamw(groups, lr=config.lr, device=device, scaled=scaled)
    optimizer = factory([{**{k: v for k, v in g.items() if k != "peak"}, "lr": g["peak"]} for g in groups])
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must return a torch.optim.Optimizer, got {type(optimizer).__name__}; return the object itself"
        )
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(p) not in updated for group in groups for p in group["params"])
    if missing:
        raise ValueError(
            f"the optimizer must have all parameters of its groups, got {missing} fewer; to freeze a part, set "
            "requires_grad of its parameters to False before training"
        )
    for group in optimizer.param_groups:
        group["peak"] = float(group["lr"])
    return optimizer


def schedule_of(factory: OptimizerFactory | None, config: TrainConfig) -> Callable[[float], float]:
    """Return the schedule of a custom optimizer, or the default; raise ValueError if `warmup` would have no effect."""
    custom = getattr(factory, "schedule", None)
    if custom is None:
        return partial(schedule, warmup=config.warmup)
    if config.warmup != TrainConfig.warmup:
        raise ValueError(f"warmup is a setting of the default schedule, got {config.warmup} and a custom one; drop one")
    return custom


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
            elif name.startswith("model.") and any(part in name for part in objective.model.branch.copied):
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
