"""Choice of the base model's parameters that train: none, the text tower, the last blocks, all, or LoRA.

Contract: a Backbone and a mode in; sets requires_grad on its parameters and records their names, so that a saved model
includes every changed weight. Modes that train the visual tower cannot use cached taps. The only file that imports
peft. Knows nothing about branches, losses or optimisers.
Papers: STAN (CVPR 2023), section 4.1, trains all of CLIP at a tenth of the branch's rate; Hu et al., LoRA (ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.config.settings import check_train_clip
from clipvid.errors import BackboneError, CheckpointError
from clipvid.models.backbone import vit
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.fingerprint import hash_of
from clipvid.nn.attention import SelfAttention, attend
from clipvid.runtime.optional import require

MODES = ("none", "text", "last:N", "all")
"""Values of `set_trainable`: the part of the base model that trains with the branch."""
LORA_INPUT = ".lora_A."
"""Part of the name of an adapter's first matrix, (rank, inputs)."""
LORA_TARGETS = (
    "qkv",
    "out",
    "c_fc",
    "c_proj",
)  # linears of open_clip's blocks after `_LinearAttention` replaces theirs
HF_TARGETS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "dense", "fc1", "fc2")


@dataclass(frozen=True)
class Trainable:
    """Trainable parts of a model with their parameter counts; parts without parameters are omitted.

    >>> print(Trainable("text", {"branch": 1200, "text tower": 3400}))
    text: branch (1,200 parameters), text tower (3,400 parameters)
    """

    mode: str
    parts: Mapping[str, int]

    def __str__(self) -> str:
        parts = ", ".join(f"{part} ({count:,} parameters)" for part, count in self.parts.items())
        return f"{self.mode}: {parts or 'nothing'}"


def set_trainable(
    backbone: Backbone, mode: str = "none", *, text: bool = True, lora: bool = False, upto: int | None = None
) -> Trainable:
    """Choose the part of the base model that trains, and return it.

    none: nothing. text: the text tower. last:N: the last N blocks of both towers and the layers after them. all:
    both towers (the STAN paper's own mode). With `text` False the text tower trains in no mode; with `lora` its
    adapters train. `upto` is the last level of the visual tower that runs (-1: the tower does not run; None: it runs to
    its end): blocks above it get no gradient, so they do not train.

    Raises ValueError for an unknown mode or if none of the last blocks runs, BackboneError for a tower without blocks.
    """
    check_train_clip("mode", mode)
    freeze(backbone)
    if mode == "none" and not lora:
        return trainable(backbone, mode)
    _store_fingerprint(backbone)
    chosen = _chosen(backbone, mode, text=text, lora=lora, upto=upto)
    backbone.forget_copies()
    weights = dict(backbone.clip.named_parameters())
    for name, parameter in weights.items():
        parameter.requires_grad_(name in chosen)
    backbone.unfrozen = {name: _hash_of_values(weights[name]) for name in chosen - backbone.trained}
    backbone.trained |= chosen
    backbone.trainable = frozenset(chosen)
    backbone.visual_trains = any(name.startswith("visual.") for name in chosen)
    backbone.text_trains = any(not name.startswith("visual.") for name in chosen)
    return trainable(backbone, mode)


def _chosen(backbone: Backbone, mode: str, *, text: bool, lora: bool, upto: int | None) -> set[str]:
    """Return the names of the base model's parameters that train in this mode."""
    chosen = {name for name, _ in backbone.clip.named_parameters() if lora and "lora_" in name}
    for name, _ in backbone.clip.named_parameters():
        visual = name.startswith("visual.")
        if "lora_" in name or name in ("logit_scale", "logit_bias") or (not visual and not text):
            continue
        if mode == "all" or (mode == "text" and not visual):
            chosen.add(name)
    if mode.startswith("last:"):
        chosen |= _last(backbone, int(mode.removeprefix("last:")), text=text)
    chosen -= _never_run(backbone, upto)
    if mode.startswith("last:") and not any(name.startswith("visual.") for name in chosen):
        raise ValueError(
            f"mode {mode!r} names blocks of the visual tower that do not run: this branch reads earlier levels and "
            "trains its own copies of these blocks; choose more blocks, or none, text or all"
        )
    return chosen


def trainable(backbone: Backbone, mode: str) -> Trainable:
    """Return the parts of the base model that train now."""
    counts = {"visual tower": 0, "text tower": 0, "text LoRA": 0}
    for name, parameter in backbone.clip.named_parameters():
        if parameter.requires_grad:
            part = "visual tower" if name.startswith("visual.") else "text LoRA" if "lora_" in name else "text tower"
            counts[part] += parameter.numel()
    return Trainable(mode, {part: count for part, count in counts.items() if count})


def check_trainable(backbone: Backbone) -> None:
    """Raise ValueError for weights of the base model that require gradients without `set_trainable`.

    The towers run without gradients unless `set_trainable` says otherwise, so these weights would never
    change, and `save` would omit them.
    """
    by_hand = [
        name for name, p in backbone.clip.named_parameters() if p.requires_grad and name not in backbone.trainable
    ]
    if by_hand:
        raise ValueError(
            f"weights of CLIP must be chosen by set_trainable to train, got requires_grad on {', '.join(by_hand[:3])} "
            f"({len(by_hand)} in all); call model.set_trainable('text', 'last:N' or 'all') for its towers, and set "
            "learn_temperature in TrainConfig for its temperature"
        )


def add_text_lora(backbone: Backbone, rank: int) -> None:
    """Add frozen low-rank adapters to the linears of the text tower; its output is unchanged until they train.

    The adapters are scaled by 2 (alpha is twice the rank). Raises ValueError for a rank < 1 or above the width of a
    linear, a second rank or a trained text tower, BackboneError for a tower without suitable linears,
    MissingExtraError if peft is not installed.
    """
    checks.integer("rank", rank, 1, advice="8 is a common choice")
    if backbone.lora_rank:
        if backbone.lora_rank == rank:
            return
        raise ValueError(
            f"rank must be {backbone.lora_rank}, the rank of the existing LoRA, got {rank}; attach a new model"
        )
    if changed := [name for name in backbone.trained if not name.startswith("visual.")]:
        raise ValueError(
            f"the text tower was trained already ({len(changed)} weights); add LoRA before that, or not at all"
        )
    peft = require("peft", why="LoRA on the text tower", extra="lora")
    _store_fingerprint(backbone)
    text = _text_blocks(backbone.clip)
    width = min((min(module.weight.shape) for module in text.modules() if isinstance(module, nn.Linear)), default=rank)
    if rank > width:
        raise ValueError(f"rank must be at most {width}, the width of the text tower, got {rank}; 8 is a common choice")
    for block in getattr(text, "resblocks", []):
        block.attn = _LinearAttention(block.attn)
    names = {name.rpartition(".")[2] for name, module in text.named_modules() if isinstance(module, nn.Linear)}
    targets = sorted(names & set(LORA_TARGETS if hasattr(text, "resblocks") else HF_TARGETS))
    if not targets:
        raise BackboneError(f"{type(text).__name__} has no linear that LoRA can adapt; train it instead (mode text)")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    before = {id(p) for p in backbone.clip.parameters()}
    peft.inject_adapter_in_model(config, text)
    backbone.clip.to(backbone.device).eval()
    added = {name for name, p in backbone.clip.named_parameters() if id(p) not in before}
    backbone.trained |= added
    backbone.lora_rank = rank
    freeze(backbone)


def restore(backbone: Backbone, state: Mapping[str, Tensor], *, text_lora: int) -> None:
    """Load the trained weights of the base model, then freeze it; raise CheckpointError for names that do not fit."""
    if text_lora:
        ranks = {len(value) for name, value in state.items() if LORA_INPUT in name}
        if ranks != {text_lora}:
            raise CheckpointError(f"text_lora is {text_lora}, but the saved adapters have ranks {sorted(ranks)}")
        add_text_lora(backbone, text_lora)
    parameters = backbone.clip.state_dict()
    wrong = [name for name, value in state.items() if name not in parameters or parameters[name].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f"the base model has no place for {', '.join(wrong[:3])} ({len(wrong)} in all); "
            "load the base model that it was trained on"
        )
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
    backbone.trained |= set(state)
    freeze(backbone)


def freeze(backbone: Backbone) -> None:
    """Freeze the base model; trained weights keep their values, and `trained` their names."""
    set_activation_checkpointing(backbone, on=False)
    parameters = dict(backbone.clip.named_parameters())
    backbone.loaded.note_changes(backbone.clip)
    if not backbone.trainable and not any(p.requires_grad for p in parameters.values()):
        return  # frozen already: what was computed from the weights stays valid
    backbone.trained -= {
        name for name, value in backbone.unfrozen.items() if _hash_of_values(parameters[name]) == value
    }
    backbone.unfrozen, backbone.trainable = {}, frozenset()
    backbone.clip.requires_grad_(False)
    backbone.visual_trains = backbone.text_trains = False
    backbone.loaded.refresh(backbone.clip)
    backbone.forget_copies()


def set_activation_checkpointing(backbone: Backbone, *, on: bool) -> bool:
    """Switch on or off that the blocks of towers that train run again in the backward pass; `freeze` switches it off.

    Returns False if no tower that trains is a stack of blocks that open_clip or timm can run again.
    """
    visual = [backbone.visual] if backbone.visual_trains and vit.vit_blocks(backbone.visual) else []
    texts: list[Any] = [_text_blocks(backbone.clip)] if backbone.text_trains else []
    # Hugging Face's towers run blocks again in training mode alone, and towers stay in eval mode.
    texts = [transformer for transformer in texts if hasattr(transformer, "grad_checkpointing")]
    if backbone.activation_checkpointing != on:
        for tower in visual:
            tower.set_grad_checkpointing(on)
        for transformer in texts:
            transformer.grad_checkpointing = on
        backbone.activation_checkpointing = on
        backbone.forget_copies()  # they have the switch of the time when they were made
    return bool(visual or texts)


def _hash_of_values(parameter: Tensor) -> str:
    """Return a hash of the values: torch's version counter misses writes through `.data`, as some optimisers do."""
    return "" if parameter.is_meta else hash_of({"": parameter})


def _store_fingerprint(backbone: Backbone) -> None:
    """Compute the fingerprint of the loaded weights before any of them changes."""
    if backbone.device.type != "meta":  # meta tensors have no values
        _ = backbone.fingerprint


def _never_run(backbone: Backbone, upto: int | None) -> set[str]:
    """Return the names of the visual tower's parameters that are unused if it stops after level `upto`."""
    visual = backbone.visual
    if upto is None:
        return set()
    ran: set[int] = set()
    if upto >= 0:
        ran = vit.stem_parameters(visual) | {id(p) for b in vit.vit_blocks(visual)[:upto] for p in b.parameters()}
    return {f"visual.{name}" for name, p in visual.named_parameters() if id(p) not in ran}


def _last(backbone: Backbone, depth: int, *, text: bool) -> set[str]:
    """Return the names of the parameters in the last `depth` blocks of each tower and in the layers after them."""
    visual = backbone.visual
    blocks = vit.vit_blocks(visual)
    if not blocks:
        raise BackboneError(f"{type(visual).__name__} has no transformer blocks, so no last {depth}; choose all")
    if depth > len(blocks):
        raise ValueError(
            f"the visual tower has {len(blocks)} blocks, mode 'last:{depth}' asks for {depth}; lower N, or choose all"
        )
    frozen = {id(p) for block in blocks[:-depth] for p in block.parameters()} | vit.stem_parameters(visual)
    chosen = {f"visual.{name}" for name, p in visual.named_parameters() if id(p) not in frozen}
    if not text:
        return chosen
    stack = list(getattr(_text_blocks(backbone.clip), "resblocks", []))
    if not stack:
        raise BackboneError(
            f"{type(backbone.clip).__name__} has a text tower without open_clip's blocks; choose text or all"
        )
    frozen = {id(p) for block in stack[:-depth] for p in block.parameters()}
    skip = ("visual.", "token_embedding", "positional_embedding", "text.token_embedding", "text.positional_embedding")
    skip = (*skip, "logit_", "text.cls_emb")
    return chosen | {
        name for name, p in backbone.clip.named_parameters() if id(p) not in frozen and not name.startswith(skip)
    }


def _text_blocks(clip: Any) -> nn.Module:
    """Return the transformer of the text tower."""
    text = getattr(clip, "text", clip)
    return text.transformer


class _LinearAttention(SelfAttention):
    """torch's multi-head attention built from linears, so that LoRA can adapt it.

    peft's adapter for MultiheadAttention adds its weights to the frozen ones and subtracts them again at every pass,
    and the rounding changes the frozen weights.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__(attention.embed_dim, attention.num_heads)
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        if weight is None or bias is None:
            raise BackboneError("the text tower's attention has separate or biasless projections; train it (mode text)")
        self.qkv.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        self.out.load_state_dict(attention.out_proj.state_dict(), assign=True)

    def forward(self, x: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
        """Attend like torch's module: x (B, L, D), additive mask (L, L) or (B heads, L, L); return (output, None)."""
        pattern = None if attn_mask is None else partial(attend, mask=_as_bool(attn_mask, heads=self.heads))
        return super().forward(x, pattern=pattern), None


def _as_bool(mask: Tensor, *, heads: int) -> Tensor:
    """Convert torch's additive or boolean mask to True for allowed keys, (1, 1, L, L) or (B, heads, L, L)."""
    allowed = ~mask if mask.dtype == torch.bool else mask == 0
    return allowed[None, None] if allowed.ndim == 2 else allowed.unflatten(0, (-1, heads))
