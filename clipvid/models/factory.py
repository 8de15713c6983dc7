"""Factories of video models: attach a branch to a CLIP in memory, load a base model by name, load a saved model.

Contract: an open_clip model, a name or a saved folder in; a VideoCLIP in eval mode out, or an error that names the
mismatch. Knows nothing of training or data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.errors import CheckpointError
from clipvid.models import checkpoint, heads
from clipvid.models.backbone import trainable
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.open_clip import Base, Tokenizer, load_clip, preprocess_fields
from clipvid.models.branches.base import build
from clipvid.models.branches.options import BranchOptions, choose, from_config
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
    """Turn an open_clip model in memory into a video model.

    The model is frozen in place, not copied. The result is in eval mode, as open_clip's models are; `train` switches to
    train mode itself. `branch` is a preset (a name of `list_branches()`: stan, mean, posterior, divided,
    ...) or an options object; `depth`, `mixer` and `options` change single fields of it. `similarity` is the one used
    for retrieval: mean, wti, mug or mug_simple. `tokenizer` is needed to embed strings.

    Raises ValueError for unknown names, BackboneError for a model whose tower cannot be tapped.
    """
    backbone = clip if isinstance(clip, Backbone) else Backbone(clip, tokenizer=tokenizer, base=base)
    changes = dict(options or {})
    changes |= {name: value for name, value in (("depth", depth), ("mixer", mixer)) if value is not None}
    model = VideoCLIP(backbone, build(backbone, choose(branch, changes)), similarity=similarity)
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
    a `local-dir:` folder, or "clipvid-mini", the small model shipped with the package.
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

    The base model is loaded by its saved name to `device` (default: the CPU). If it was an object in memory, pass it as
    `base`; it then stays on its device unless `device` is given. Weights of the base that were trained with the branch
    are loaded into it, even if it is a Backbone that another model uses. Raises CheckpointError if the base is not the
    one that the branch was trained on, or if the files do not fit.
    """
    folder = checkpoint.local_folder(folder)
    config = checkpoint.read_config(folder)
    backbone = _load_base(config["base"], base=base, tokenizer=tokenizer, device=device or "cpu")
    if backbone.fingerprint != config["base"]["fingerprint"]:
        raise CheckpointError(
            f"{folder} was trained on {_name(config['base'])} with fingerprint {config['base']['fingerprint'][:12]}, "
            f"the given base model has {backbone.fingerprint[:12]}; load the weights it was trained on (same name, tag "
            "and precision), or train the branch again on these"
        )
    state = checkpoint.read_weights(folder)
    _check_untouched(backbone, state.get("clip", {}), text_lora=config["clip"]["text_lora"])
    if config["preprocess"] != json.loads(json.dumps(preprocess_fields(backbone.preprocess_config))):
        raise CheckpointError(
            f"{folder} was trained with other preprocessing ({config['preprocess']}) than this base model has; use one "
            "with the same size, mean, std, interpolation and resize mode"
        )
    try:
        branch = build(backbone, from_config(config["branch"]))
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
    """Return the backbone of a saved model: `base` if given, else loaded by its saved name."""
    if isinstance(base, Backbone):
        return base
    if base is not None:
        return Backbone(base, tokenizer=tokenizer, base=Base(saved["name"], saved["pretrained"]))
    if saved["name"] is None:
        raise CheckpointError(
            "this model was trained on a CLIP object in memory, which has no name to load it by; pass that model as "
            "base= and its tokenizer as tokenizer="
        )
    clip, base_tokenizer, loaded_base = load_clip(saved["name"], saved["pretrained"], device=device)
    return Backbone(clip, tokenizer=tokenizer or base_tokenizer, base=loaded_base)


def _check_untouched(backbone: Backbone, saved: Mapping[str, Tensor], *, text_lora: int) -> None:
    """Raise CheckpointError for a Backbone with trained weights that the saved model lacks."""
    extra = sorted(name for name in backbone.trained - set(saved) if "lora_" not in name)
    if extra or backbone.lora_rank not in (0, text_lora):
        lora = f"LoRA of rank {backbone.lora_rank}" if backbone.lora_rank else "no LoRA"
        raise CheckpointError(
            f"the given backbone has changed since it was loaded: {len(extra)} weights trained"
            + (f" (first {extra[0]})" if extra else "")
            + f", {lora}, where the saved model has {f'rank {text_lora}' if text_lora else 'none'}; "
            "pass a newly loaded one"
        )


def _name(base: Mapping[str, Any]) -> str:
    """Return the name of a saved base model, with its pretrained tag, for messages."""
    return f"{base['name']} ({base['pretrained']})" if base["pretrained"] else str(base["name"] or "an unnamed CLIP")
