"""Makers of video models: attach a branch to a CLIP in memory, load a base model by name, load a saved model.

Contract: an open_clip model, a name or a saved folder in; a VideoCLIP in eval mode out, or an error that says what does
not fit. Knows nothing of training or data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.errors import CheckpointError
from clipvid.models import branches, checkpoint, heads
from clipvid.models.backbone import trainable
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.open_clip import Base, Tokenizer, load_clip, preprocess_fields
from clipvid.models.branches.base import BranchOptions
from clipvid.models.video_clip import VideoCLIP


def attach(
    clip: nn.Module | Backbone,
    branch: str | BranchOptions = "stan",
    *,
    tokenizer: Tokenizer | None = None,
    depth: int | None = None,
    mixer: str | None = None,
    options: Mapping[str, Any] | None = None,
    similarity: str = "mean",
    base: Base | None = None,
) -> VideoCLIP:
    """Turn an open_clip model that you hold into a video model.

    The model is taken over and frozen; what comes back is in eval mode, as open_clip's models are, and `train` switches
    to train mode by itself. `branch` is a preset (a key of clipvid.models.branches.BRANCHES: stan,
    mean, posterior, divided, ...) or an options object; `depth`, `mixer` and `options` change single fields of it.
    `similarity` is what retrieval compares: mean, wti, mug or mug_simple. `tokenizer` is needed to embed strings.

    Raises ValueError for names that do not exist, BackboneError for a model whose tower cannot be tapped.
    """
    backbone = clip if isinstance(clip, Backbone) else Backbone(clip, tokenizer=tokenizer, base=base)
    asked = dict(options or {})
    asked |= {name: value for name, value in (("depth", depth), ("mixer", mixer)) if value is not None}
    model = VideoCLIP(backbone, branches.build(backbone, branches.choose(branch, asked)), similarity=similarity)
    return model.eval()


def create_model(
    name: str,
    pretrained: str | None = None,
    *,
    branch: str | BranchOptions = "stan",
    depth: int | None = None,
    mixer: str | None = None,
    options: Mapping[str, Any] | None = None,
    similarity: str = "mean",
    device: torch.device | str = "cpu",
) -> VideoCLIP:
    """Load any open_clip model and attach a branch to it; the result is in eval mode.

    `name` is a model of open_clip ("ViT-B-32", with `pretrained` a tag or the path of a checkpoint), an `hf-hub:` tag,
    a `local-dir:` folder, or "clipvid-mini", the small model that comes with the package.
    """
    clip, tokenizer, base = load_clip(name, pretrained, device=device)
    chosen: dict[str, Any] = {"depth": depth, "mixer": mixer, "options": options, "similarity": similarity}
    return attach(clip, branch, tokenizer=tokenizer, base=base, **chosen)


def load(
    folder: str | Path,
    *,
    base: nn.Module | Backbone | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str | None = None,
) -> VideoCLIP:
    """Load a model saved by `VideoCLIP.save`, from a folder or a hub repository ("org/name").

    The base model is loaded by its saved name to `device` (the CPU when left out), or given as `base` where it was an
    object of the caller's, and then stays where it is unless `device` says otherwise. Raises
    CheckpointError when the base is not the one that the branch was trained on, or the files do not fit. Weights of the
    base that were trained with the branch are put into it, also when it is a Backbone that another model uses.
    """
    folder = checkpoint.local_folder(folder)
    config = checkpoint.read_config(folder)
    backbone = _load_base(config["base"], base=base, tokenizer=tokenizer, device=device or "cpu")
    if backbone.fingerprint != config["base"]["fingerprint"]:
        raise CheckpointError(
            f"{folder} was trained on {_name(config['base'])} with fingerprint {config['base']['fingerprint'][:12]}, "
            f"the base model at hand is {backbone.fingerprint[:12]}; load the very weights it was trained on (same "
            "name, tag and precision), or train the branch again on these"
        )
    state = checkpoint.read_weights(folder)
    _check_untouched(backbone, state.get("clip", {}), text_lora=config["clip"]["text_lora"])
    if config["preprocess"] != json.loads(json.dumps(preprocess_fields(backbone.preprocess_config))):
        raise CheckpointError(
            f"{folder} was trained with other preprocessing ({config['preprocess']}) than this base model has; give it "
            "the same size, mean, std, interpolation and resize mode"
        )
    try:
        branch = branches.build(backbone, branches.from_config(config["branch"]))
        head = heads.from_config(config["head"], backbone.embed_dim)
        model = VideoCLIP(backbone, branch, head=head, similarity=config["similarity"])
        for name, part in (("branch", model.branch), ("similarity", model.matcher), ("head", model.head)):
            if part is not None:
                part.load_state_dict(state.get(name, {}))
        trainable.restore(backbone, state.get("clip", {}), text_lora=config["clip"]["text_lora"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} does not hold a complete clipvid model: {error}") from error
    model.training_record = _renamed(config["training"])
    return model.to(device or backbone.device).eval()


def _renamed(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a training record with current field names; older records name the frozen part of CLIP (`freeze`)."""
    if record is None or "freeze" not in record:
        return record
    trained = {"all": "none", "visual": "text", "none": "all"}.get(record["freeze"], record["freeze"])
    return {name: value for name, value in record.items() if name != "freeze"} | {"train_clip": trained}


def _load_base(saved: Mapping[str, Any], *, base, tokenizer: Tokenizer | None, device) -> Backbone:
    if isinstance(base, Backbone):
        return base
    if base is not None:
        return Backbone(base, tokenizer=tokenizer, base=Base(saved["name"], saved["pretrained"]))
    if saved["name"] is None:
        raise CheckpointError(
            "this model was trained on a CLIP object that its owner built, which has no name to load it by; "
            "pass that model as base= and its tokenizer as tokenizer="
        )
    clip, own, where = load_clip(saved["name"], saved["pretrained"], device=device)
    return Backbone(clip, tokenizer=tokenizer or own, base=where)


def _check_untouched(backbone: Backbone, saved: Mapping[str, Tensor], *, text_lora: int) -> None:
    """Raise CheckpointError for a Backbone with trained weights that the saved model lacks."""
    own = sorted(name for name in backbone.trained - set(saved) if "lora_" not in name)
    if own or backbone.lora_rank not in (0, text_lora):
        lora = f"LoRA of rank {backbone.lora_rank}" if backbone.lora_rank else "no LoRA"
        raise CheckpointError(
            f"the backbone at hand was changed since it was loaded: {len(own)} weights trained"
            + (f" (first {own[0]})" if own else "")
            + f", {lora}, where the saved model has {f'rank {text_lora}' if text_lora else 'none'}; give a fresh one"
        )


def _name(base: Mapping[str, Any]) -> str:
    return f"{base['name']} ({base['pretrained']})" if base["pretrained"] else str(base["name"] or "an unnamed CLIP")
