"""Saved models: a VideoCLIP written to a folder as config and weights, and read again on its base model.

Contract: a model in, a folder out, and back. Of the base model only its name, its fingerprint and the weights that were
trained are saved. Raises CheckpointError for a folder that does not fit. The two files are checkpoint.py's; the class
of the model is the caller's. Knows nothing of training or data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.errors import CheckpointError
from clipvid.models import checkpoint, heads
from clipvid.models.backbone import trainable
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.open_clip import Base, Tokenizer, load_clip, preprocess_fields
from clipvid.models.branches.base import build
from clipvid.models.branches.options import from_config


def parts_of(model: Any) -> dict[str, nn.Module]:
    """Return the model's own modules by name: everything but the base model."""
    parts: dict[str, nn.Module | None] = {"branch": model.branch, "similarity": model.matcher, "head": model.head}
    return {name: part for name, part in parts.items() if part is not None}


def state_of(model: Any) -> dict[str, Tensor]:
    """Return the tensors to save: branch, heads, and the weights of the base model that were trained."""
    state = {f"{name}.{k}": v for name, part in parts_of(model).items() for k, v in part.state_dict().items()}
    backbone = model.backbone
    backbone.loaded.note_changes(backbone.clip)
    weights = backbone.clip.state_dict() if backbone.trained else {}
    return state | {f"clip.{name}": value for name, value in weights.items() if name in backbone.trained}


def fingerprint(model: Any) -> str:
    """Return the SHA-256 of base and branch; heads do not change embeddings and are left out."""
    weights = {name: value for name, value in state_of(model).items() if name.startswith(("branch.", "clip."))}
    return checkpoint.fingerprint(model.backbone.fingerprint, model.branch.options.to_config(), weights)


def save(model: Any, folder: str | Path) -> Path:
    """Write `model` to `folder` atomically.

    Raises FileExistsError for a folder that holds other files, and CheckpointError for a base model loaded by name
    whose weights were changed on the inside before its fingerprint was computed: that name would load others; also for
    a model on device meta, which has no weights.
    """
    checks.path("folder", folder)
    meta = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if meta:
        raise CheckpointError(
            f"the model must have values to be saved, got {meta[0]} and {len(meta) - 1} more on device meta; load the "
            "weights on a device with memory, such as cpu"
        )
    backbone, base = model.backbone, model.backbone.base
    state = state_of(model)
    if backbone.loaded.lost and base.name is not None:
        raise CheckpointError(
            f"the base model must be {_name(base)} as loaded to be saved "
            f"by its name, got other values or another precision in {backbone.loaded.lost}; convert and load weights "
            "on the model itself (model.half(), model.load_state_dict), not on model.backbone.clip, or read "
            "model.fingerprint before changing weights in place"
        )
    config = {
        "base": {"name": base.name, "pretrained": base.pretrained, "fingerprint": backbone.fingerprint},
        "preprocess": preprocess_fields(backbone.preprocess_config),
        "clip": {"text_lora": backbone.lora_rank},
        "branch": model.branch.options.to_config(),
        "similarity": model.similarity_name,
        "head": heads.to_config(model.head),
        "training": model.training_record,
    }
    return checkpoint.write_model(folder, config, state)


def load(
    model_class: Any,
    folder: str | Path,
    *,
    base: nn.Module | Backbone | None,
    tokenizer: Tokenizer | None,
    device: torch.device | str | None,
) -> Any:
    """Read a saved model as an instance of `model_class`, in eval mode; the arguments are those of `factory.load`."""
    folder = checkpoint.local_folder(folder)
    config, state = checkpoint.read_model(folder)
    backbone = _load_base(config.base, base=base, tokenizer=tokenizer, device=device or "cpu")
    if backbone.fingerprint != config.base.fingerprint:
        raise CheckpointError(
            f"{folder} was trained on {_name(config.base)} with fingerprint {config.base.fingerprint[:12]}, "
            f"the given base model has {backbone.fingerprint[:12]}; load the weights it was trained on (same name, tag "
            "and precision), or train the branch again on these"
        )
    _check_untouched(backbone, state.get("clip", {}), text_lora=config.clip.text_lora)
    if config.preprocess != json.loads(json.dumps(preprocess_fields(backbone.preprocess_config))):
        raise CheckpointError(
            f"{folder} was trained with other preprocessing ({config.preprocess}) than this base model has; use one "
            "with the same size, mean, std, interpolation and resize mode"
        )
    try:
        options = from_config(config.branch)
    except ValueError as error:
        raise CheckpointError(f"{folder} has a branch that cannot be built here: {error}") from error
    try:
        branch = build(backbone, options)
        head = heads.from_config(config.head, backbone.embed_dim)
        model = model_class(backbone, branch, head=head, similarity=config.similarity)
        for name, part in (("branch", model.branch), ("similarity", model.matcher), ("head", model.head)):
            if part is not None:
                part.load_state_dict(state.get(name, {}))
        trainable.restore(backbone, state.get("clip", {}), text_lora=config.clip.text_lora)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} does not hold a complete clipvid model: {' '.join(str(error).split())[:300]}; save or copy it "
            "again"
        ) from error
    model.training_record = _renamed(config.training)
    return model.to(device or backbone.device).eval()


def _renamed(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a training record with current field names; older records name the frozen part of CLIP (`freeze`)."""
    if record is None or "freeze" not in record:
        return record
    trained = {"all": "none", "visual": "text", "none": "all"}.get(record["freeze"], record["freeze"])
    return {name: value for name, value in record.items() if name != "freeze"} | {"train_clip": trained}


def _load_base(
    saved: checkpoint.BaseEntry,
    *,
    base: nn.Module | None,
    tokenizer: Tokenizer | None,
    device: torch.device | str,
) -> Backbone:
    """Return the backbone of a saved model: `base` if given, else loaded by its saved name."""
    if isinstance(base, Backbone):
        return base
    if base is not None:
        return Backbone(base, tokenizer=tokenizer, base=Base(saved.name, saved.pretrained))
    if saved.name is None:
        raise CheckpointError(
            "this model was trained on a CLIP object in memory, which has no name to load it by; pass that model as "
            "base= and its tokenizer as tokenizer="
        )
    clip, base_tokenizer, loaded_base = load_clip(saved.name, saved.pretrained, device=device)
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


def _name(base: Base | checkpoint.BaseEntry) -> str:
    """Return the name of a base model, with its pretrained tag, for messages."""
    return f"{base.name} ({base.pretrained})" if base.pretrained else str(base.name or "an unnamed CLIP")
