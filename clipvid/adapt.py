"""What of the base model trains, beside the branch: nothing, the text tower, the last blocks, everything, or LoRA.

Contract: a Backbone and a mode in; its parameters switched on or off, their names kept so that a saved model can hold
what was changed. Modes that train the visual tower give up cached taps. The only file that imports peft. Knows nothing
of branches, losses or optimisers.
Papers: STAN (CVPR 2023), section 4.1, trains all of CLIP at a tenth of the branch's rate; Hu et al., LoRA (ICLR 2022).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipvid import tower
from clipvid._optional import require
from clipvid.backbone import Backbone, hash_of
from clipvid.errors import BackboneError, CheckpointError
from clipvid.nn.attention import SelfAttention, attend

MODES = ("all", "visual", "last:N", "none")
LORA_TARGETS = ("qkv", "out", "c_fc", "c_proj")  # of open_clip's blocks, once their attention is made of linears
HF_TARGETS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "dense", "fc1", "fc2")


def unfreeze(
    backbone: Backbone, mode: str = "all", *, text: bool = True, lora: bool = False, upto: int | None = None
) -> None:
    """Let the parts train that `mode` leaves unfrozen.

    all: nothing trains. visual: the visual tower is frozen, the text tower trains. last:N: the last N blocks of each
    tower and what comes after them. none: everything (the STAN paper's own mode). With `text` False the text tower
    stays frozen in any mode; with `lora` its adapters train. `upto` is the last level of the visual tower that runs
    (-1: it does not run at all; None: to its end): what lies above gets no gradient, so it is left frozen.

    Raises ValueError for another mode and for last blocks of which none runs, BackboneError for a tower without blocks.
    """
    match = re.fullmatch(r"last:([1-9]\d*)", mode)
    if match is None and (mode not in MODES or mode == "last:N"):
        raise ValueError(f"unknown freeze {mode!r}; choose one of {', '.join(MODES)} with N from 1")
    freeze(backbone)
    if mode == "all" and not lora:
        return
    _remember(backbone)
    chosen = {name for name, _ in backbone.clip.named_parameters() if lora and "lora_" in name}
    for name, _ in backbone.clip.named_parameters():
        visual = name.startswith("visual.")
        if "lora_" in name or name in ("logit_scale", "logit_bias") or (not visual and not text):
            continue
        if mode == "none" or (mode == "visual" and not visual):
            chosen.add(name)
    if match is not None:
        chosen |= _last(backbone, int(match[1]), text=text)
    chosen -= _never_run(backbone, upto)
    if match is not None and not any(name.startswith("visual.") for name in chosen):
        raise ValueError(
            f"freeze {mode!r} names blocks of the visual tower that do not run: this branch reads what comes before "
            "them and trains copies of its own; choose more blocks, or all, visual or none"
        )
    for name, parameter in backbone.clip.named_parameters():
        parameter.requires_grad_(name in chosen)
    own = dict(backbone.clip.named_parameters())
    backbone.unfrozen = {name: _value(own[name]) for name in chosen - backbone.trained}
    backbone.trained |= chosen
    backbone.visual_trains = any(name.startswith("visual.") for name in chosen)
    backbone.text_trains = any(not name.startswith("visual.") for name in chosen)


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
        raise BackboneError(f"{type(text).__name__} has no linear that LoRA knows; train it (freeze visual)")
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
    backbone.unfrozen = {}
    backbone.clip.requires_grad_(False)
    backbone.visual_trains = backbone.text_trains = False


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
        ran = tower.stem_parameters(visual) | {id(p) for b in tower.vit_blocks(visual)[:upto] for p in b.parameters()}
    return {f"visual.{name}" for name, p in visual.named_parameters() if id(p) not in ran}


def _last(backbone: Backbone, depth: int, *, text: bool) -> set[str]:
    """Names of the parameters of the last `depth` blocks of each tower, and of all that comes after the blocks."""
    visual = backbone.visual
    blocks = tower.vit_blocks(visual)
    if not blocks:
        raise BackboneError(f"{type(visual).__name__} is no stack of blocks, so it has no last {depth}; choose none")
    if depth > len(blocks):
        raise ValueError(f"the visual tower has {len(blocks)} blocks, freeze 'last:{depth}' asks for {depth}")
    frozen = {id(p) for block in blocks[:-depth] for p in block.parameters()} | tower.stem_parameters(visual)
    chosen = {f"visual.{name}" for name, p in visual.named_parameters() if id(p) not in frozen}
    if not text:
        return chosen
    stack = list(getattr(_text_blocks(backbone.clip), "resblocks", []))
    if not stack:
        raise BackboneError(
            f"{type(backbone.clip).__name__} has a text tower without open_clip's blocks; choose visual or none"
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
            raise BackboneError(
                "the text tower's attention has separate or biasless projections; train it (freeze visual)"
            )
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
