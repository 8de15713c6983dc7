"""What of the base model trains, beside the branch: nothing, the text tower, the last blocks, everything, or LoRA.

Contract: a Backbone and a mode in; its parameters switched on or off, their names kept so that a saved model can hold
what was changed. Modes that train the visual tower give up cached taps. The only file that imports peft. Knows nothing
of branches, losses or optimisers.
Papers: STAN (CVPR 2023), section 4.1, trains all of CLIP at a tenth of the branch's rate; Hu et al., LoRA (ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.config.settings import check_train_clip
from clipvid.errors import BackboneError, CheckpointError
from clipvid.models.backbone import vit
from clipvid.models.backbone.backbone import Backbone, hash_of
from clipvid.nn.attention import SelfAttention, attend
from clipvid.runtime.optional import require

MODES = ("none", "text", "last:N", "all")
"""Values of `set_trainable`: the part of the base model that trains beside the branch."""
LORA_TARGETS = ("qkv", "out", "c_fc", "c_proj")  # of open_clip's blocks, once their attention is made of linears
HF_TARGETS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "dense", "fc1", "fc2")


@dataclass(frozen=True)
class Trainable:
    """The parts of a model that train, with their numbers of parameters; parts without any are left out.

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
    adapters train. `upto` is the last level of the visual tower that runs (-1: it does not run at all; None: to its
    end): blocks above it get no gradient, so they do not train.

    Raises ValueError for another mode and for last blocks of which none runs, BackboneError for a tower without blocks.
    """
    check_train_clip("mode", mode)
    freeze(backbone)
    if mode == "none" and not lora:
        return trainable(backbone, mode)
    _remember(backbone)
    chosen = _chosen(backbone, mode, text=text, lora=lora, upto=upto)
    weights = dict(backbone.clip.named_parameters())
    for name, parameter in weights.items():
        parameter.requires_grad_(name in chosen)
    backbone.unfrozen = {name: _value(weights[name]) for name in chosen - backbone.trained}
    backbone.trained |= chosen
    backbone.trainable = frozenset(chosen)
    backbone.visual_trains = any(name.startswith("visual.") for name in chosen)
    backbone.text_trains = any(not name.startswith("visual.") for name in chosen)
    return trainable(backbone, mode)


def _chosen(backbone: Backbone, mode: str, *, text: bool, lora: bool, upto: int | None) -> set[str]:
    """Names of the base model's parameters that train in this mode."""
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
            f"mode {mode!r} names blocks of the visual tower that do not run: this branch reads what comes before "
            "them and trains copies of its own; choose more blocks, or none, text or all"
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

    The towers run without gradients unless `set_trainable` says otherwise, so these would never move, and `save`
    would leave them out.
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
    """Give the linears of the text tower low-rank adapters, frozen so far; the tower computes the same at first.

    They are scaled by 2 (alpha is twice the rank). Raises MissingExtraError where peft is not installed.
    """
    if rank < 1:
        raise ValueError(f"rank starts at 1, got {rank}")
    if backbone.lora_rank:
        if backbone.lora_rank == rank:
            return
        raise ValueError(f"the text tower has LoRA of rank {backbone.lora_rank} already, {rank} was asked for")
    if changed := [name for name in backbone.trained if not name.startswith("visual.")]:
        raise ValueError(
            f"the text tower was trained already ({len(changed)} weights); add LoRA before that, or not at all"
        )
    peft = require("peft", why="LoRA on the text tower", extra="lora")
    _remember(backbone)
    text = _text_blocks(backbone.clip)
    for block in getattr(text, "resblocks", []):
        block.attn = _OfLinears(block.attn)
    names = {name.rpartition(".")[2] for name, module in text.named_modules() if isinstance(module, nn.Linear)}
    targets = sorted(names & set(LORA_TARGETS if hasattr(text, "resblocks") else HF_TARGETS))
    if not targets:
        raise BackboneError(f"{type(text).__name__} has no linear that LoRA knows; train it (mode text)")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    before = {id(p) for p in backbone.clip.parameters()}
    peft.inject_adapter_in_model(config, text)
    backbone.clip.to(backbone.device).eval()
    added = {name for name, p in backbone.clip.named_parameters() if id(p) not in before}
    backbone.trained |= added
    backbone.lora_rank = rank
    freeze(backbone)


def restore(backbone: Backbone, state: Mapping[str, Tensor], *, text_lora: int) -> None:
    """Put back what of the base model was trained; it is frozen after that. CheckpointError for what has no place."""
    if text_lora:
        add_text_lora(backbone, text_lora)
    own = dict(backbone.clip.named_parameters())
    wrong = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise CheckpointError(f"the base model has no place for {', '.join(wrong[:3])} ({len(wrong)} in all)")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
    backbone.trained |= set(state)
    freeze(backbone)


def freeze(backbone: Backbone) -> None:
    """Nothing of the base model trains from here on; what was trained stays as it is, and is known by name."""
    own = dict(backbone.clip.named_parameters())
    backbone.trained -= {name for name, value in backbone.unfrozen.items() if _value(own[name]) == value}
    backbone.unfrozen, backbone.trainable = {}, frozenset()
    backbone.clip.requires_grad_(False)
    backbone.visual_trains = backbone.text_trains = False
    backbone.forget_copies()


def _value(parameter: Tensor) -> str:
    """A hash of the numbers: torch's count of writes misses those through `.data`, as some optimisers write."""
    return "" if parameter.is_meta else hash_of({"": parameter})


def _remember(backbone: Backbone) -> None:
    """The fingerprint is that of the weights as they came: take it before any of them changes."""
    if backbone.device.type != "meta":  # shapes have none
        _ = backbone.fingerprint


def _never_run(backbone: Backbone, upto: int | None) -> set[str]:
    """Names of the visual tower's parameters that no pass touches when it stops behind level `upto`."""
    visual = backbone.visual
    if upto is None:
        return set()
    ran: set[int] = set()
    if upto >= 0:
        ran = vit.stem_parameters(visual) | {id(p) for b in vit.vit_blocks(visual)[:upto] for p in b.parameters()}
    return {f"visual.{name}" for name, p in visual.named_parameters() if id(p) not in ran}


def _last(backbone: Backbone, depth: int, *, text: bool) -> set[str]:
    """Names of the parameters of the last `depth` blocks of each tower, and of all that comes after the blocks."""
    visual = backbone.visual
    blocks = vit.vit_blocks(visual)
    if not blocks:
        raise BackboneError(f"{type(visual).__name__} is no stack of blocks, so it has no last {depth}; choose all")
    if depth > len(blocks):
        raise ValueError(f"the visual tower has {len(blocks)} blocks, mode 'last:{depth}' asks for {depth}")
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
    """The transformer of the text tower."""
    text = getattr(clip, "text", clip)
    return text.transformer


class _OfLinears(SelfAttention):
    """torch's multi-head attention made of linears, which LoRA can stand beside.

    peft's own adapter for it adds its weights to the frozen ones and takes them away again at every pass, so that
    rounding moves what should stay frozen.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__(attention.embed_dim, attention.num_heads)
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        if weight is None or bias is None:
            raise BackboneError("the text tower's attention has separate or biasless projections; train it (mode text)")
        self.qkv.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        self.out.load_state_dict(attention.out_proj.state_dict(), assign=True)

    def forward(self, x: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
        """As torch's: (B, L, D) and an additive mask, (L, L) or (B heads, L, L), in, a pair out."""
        pattern = None if attn_mask is None else partial(attend, mask=_as_bool(attn_mask, heads=self.heads))
        return super().forward(x, pattern=pattern), None


def _as_bool(mask: Tensor, *, heads: int) -> Tensor:
    """True where a key may be attended, (1, 1, L, L) or (B, heads, L, L), of torch's additive or boolean masks."""
    allowed = ~mask if mask.dtype == torch.bool else mask == 0
    return allowed[None, None] if allowed.ndim == 2 else allowed.unflatten(0, (-1, heads))
