"""Factories of video models: attach a branch to a CLIP in memory, load a base model by name, load a saved model.

Contract: an open_clip model, a name or a saved folder in; a VideoCLIP in eval mode out, or an error that names the
mismatch. Knows nothing of training or data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipvid.config import checks
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.open_clip import Base, Tokenizer, load_clip
from clipvid.models.branches.base import build
from clipvid.models.branches.options import BranchOptions, choose
from clipvid.models.video_clip import VideoCLIP


def attach(
    clip: nn.Module | Backbone,
    branch: str | BranchOptions = "stan",
    *,
    branch_kwargs: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    similarity: str = "mean",
    base: Base | None = None,
) -> VideoCLIP:
    """Turn an open_clip model in memory into a video model.

    The model is frozen in place, not copied. The result is in eval mode, as open_clip's models are; `train` switches to
    train mode itself. `branch` is a preset (a name of `list_branches()`: stan, mean, posterior, divided, ...) or an
    options object, and `branch_kwargs` changes single fields of it: {"depth": 4, "mixer": "conv"}.
    `similarity` is the one used for retrieval: mean, wti, mug or mug_simple. `tokenizer` is needed to embed strings.

    Raises ValueError for unknown names and options, BackboneError for a model whose tower cannot be tapped.
    """
    if branch_kwargs is not None:
        advice = 'give names and values: {"depth": 4}'
        checks.of_type("branch_kwargs", branch_kwargs, Mapping, must="a mapping of options", advice=advice)
        checks.texts("the names in branch_kwargs", list(branch_kwargs), advice=advice)
    if tokenizer is not None and not callable(tokenizer):
        raise ValueError(f"tokenizer must be a function, got {tokenizer!r}; pass open_clip.get_tokenizer(name)")
    backbone = clip if isinstance(clip, Backbone) else Backbone(clip, tokenizer=tokenizer, base=base)
    model = VideoCLIP(backbone, build(backbone, choose(branch, branch_kwargs)), similarity=similarity)
    return model.eval()


def create_model(
    name: str,
    pretrained: str | None = None,
    *,
    branch: str | BranchOptions = "stan",
    branch_kwargs: Mapping[str, Any] | None = None,
    similarity: str = "mean",
    device: torch.device | str = "cpu",
) -> VideoCLIP:
    """Load any open_clip model and attach a branch to it; the result is in eval mode.

    `name` is a model of open_clip ("ViT-B-32", with `pretrained` a tag or the path of a checkpoint), an `hf-hub:` tag,
    a `local-dir:` folder, or "clipvid-mini", the small model shipped with the package. The other arguments are those of
    `attach`: `branch_kwargs` changes single options of `branch`.
    """
    clip, tokenizer, base = load_clip(name, pretrained, device=device)
    return attach(clip, branch, branch_kwargs=branch_kwargs, tokenizer=tokenizer, base=base, similarity=similarity)


def load(
    folder: str | Path,
    *,
    base: nn.Module | Backbone | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str | None = None,
) -> VideoCLIP:
    """Load a model saved by `VideoCLIP.save`, from a folder or a hub repository ("org/name").

    The base model is loaded by its saved name to `device` (default: the CPU). If it was an object in memory, pass it as
    `base`; it then stays on its device unless `device` is given. Weights of the base that were trained with the branch
    are loaded into it, even if it is a Backbone that another model uses. Raises CheckpointError if the base is not the
    one that the branch was trained on, or if the files do not fit.
    """
    return VideoCLIP.from_pretrained(folder, base=base, tokenizer=tokenizer, device=device)
