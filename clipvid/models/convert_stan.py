"""Conversion of checkpoints of the authors' released STAN code (farewellthree/STAN) to a VideoCLIP.

Contract: an open_clip CLIP of the same architecture and a checkpoint file in, a model with its weights out. The
checkpoint holds a complete fine-tuned CLIP and the branch, under Hugging Face's names in mmengine's layout; all weights
are loaded. Knows nothing of training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.errors import CheckpointError
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.open_clip import Tokenizer
from clipvid.models.branches.stan import STAN
from clipvid.models.factory import attach
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import require_regular
from clipvid.runtime.text import first_line

BRANCH = "STAN_"
"""Prefix of the branch's weights."""
_LAYER = {  # one CLIPEncoderLayer, Hugging Face -> open_clip; q, k and v are joined separately
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_VISUAL = {
    "class_embedding": "class_embedding",
    "patch_embedding.weight": "conv1.weight",
    "position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",  # sic: Hugging Face's spelling
    "post_layernorm": "ln_post",
}
_TEXT = {
    "token_embedding": "token_embedding",
    "position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
_BRANCH_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attention.out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_BRANCH_STEP = {"layer_norm1": "norm", "self_attn.out_proj": "attention.out", "temporal_fc": "out"}


def load_stan_checkpoint(clip_model: nn.Module, path: str | Path, *, tokenizer: Tokenizer | None = None) -> VideoCLIP:
    """Read a checkpoint of the released STAN code into a VideoCLIP with branch `stan-release`.

    `clip_model` is an open_clip CLIP of the checkpoint's architecture (quick_gelu for OpenAI-based ones); its weights
    are overwritten by the checkpoint's fine-tuned towers. The depth is inferred from the file. Raises CheckpointError,
    naming keys, if weights are missing, unexpected or of another shape.
    """
    if not checks.path("path", path).is_file():
        raise FileNotFoundError(f"{path} is not a file; give the checkpoint that the released STAN code saved")
    advice = "create it by open_clip.create_model"
    checks.of_type("clip_model", clip_model, nn.Module, must="an open_clip model", advice=advice)
    state = read_state(path)
    groups = _grouped(state, path)
    if "STAN_time_embed.weight" not in groups["branch"] or not any("STAN_S_layers." in k for k in groups["branch"]):
        raise CheckpointError(f"{path} lacks STAN_time_embed.weight or STAN_S_layers.*; the STAN branch is incomplete")
    clip = _clip_state(groups)
    clip_weights = clip_model.state_dict()
    # The checkpoint has no buffers, and no temperature because STAN trains with a fixed one.
    optional = {"logit_scale", "logit_bias", "attn_mask"} | {k for k in clip_weights if k.endswith("attn_mask")}
    _check(clip, {k: v for k, v in clip_weights.items() if k not in optional or k in clip}, path)
    clip_model.load_state_dict({**clip_weights, **clip})

    depth = 1 + max(int(m[1]) for k in groups["branch"] if (m := re.match(r"STAN_S_layers\.(\d+)\.", k)))
    options = {"depth": depth, "time_size": len(groups["branch"]["STAN_time_embed.weight"])}
    model = attach(Backbone(clip_model, tokenizer=tokenizer), "stan-release", branch_kwargs=options)
    assert isinstance(model.branch, STAN)
    branch = _branch_state(groups["branch"])
    _check(branch, model.branch.state_dict(), path)
    model.branch.load_state_dict(branch)
    return model.eval()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of a third-party checkpoint file; reads tensors only, never code."""
    try:
        require_regular(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many types for a file that is not a checkpoint
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of tensors: {first_line(error)}; "
            "give the file that the released STAN code saved"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state_dict of tensors; give the file that the released STAN code saved")
    return dict(state)


def _grouped(state: Mapping[str, Tensor], path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Group the weights into branch, vision tower, text tower and projections, and strip their prefixes."""
    groups: dict[str, dict[str, Tensor]] = {"branch": {}, "vision": {}, "text": {}, "projection": {}}
    unexpected = []
    for key, value in state.items():
        name = re.sub(r"^module\.", "", key)
        if "position_ids" in name:
            continue  # a buffer of older transformers: 0, 1, 2, ...
        if f".{BRANCH}" in name:
            groups["branch"][BRANCH + name.split(f".{BRANCH}", 1)[1]] = value
        elif match := re.search(r"(visual_projection|text_projection)\.weight$", name):
            groups["projection"][match[1]] = value
        elif match := re.match(r"(text_)?backbone\.(?:\w+_model\.)?(?:embeddings\.|encoder\.)?(.+)$", name):
            groups["text" if match[1] else "vision"][match[2]] = value
        elif not name.startswith("data_preprocessor."):
            unexpected.append(key)
    if unexpected:
        raise CheckpointError(
            f"{path} holds weights that are neither tower nor branch: {', '.join(unexpected[:4])} ({len(unexpected)} "
            "in all); a model with a trained head cannot be converted without it"
        )
    empty = [group for group, weights in groups.items() if not weights]
    if empty:
        raise CheckpointError(
            f"{path} is not a checkpoint of the released STAN code: no {' or '.join(empty)} weights among its "
            f"{len(state)} keys (first: {', '.join(list(state)[:3])}); "
            "give the file that the released STAN code saved"
        )
    return groups


def _clip_state(groups: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return both towers under open_clip's names."""
    visual = {f"visual.{k}": v for k, v in _renamed(groups["vision"], _VISUAL).items()}
    text = _renamed(groups["text"], _TEXT)
    projection = groups["projection"]
    return {
        **visual,
        **text,
        "visual.proj": projection["visual_projection"].T.contiguous(),
        "text_projection": projection["text_projection"].T.contiguous(),
    }


def _renamed(tower: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return one tower's weights under open_clip's names."""
    blocks: dict[str, dict[str, Tensor]] = {}
    out: dict[str, Tensor] = {}
    for key, value in tower.items():
        if match := re.match(r"layers\.(\d+)\.(.+)$", key):
            blocks.setdefault(match[1], {})[match[2]] = value
        else:
            out[_rename(key, names)] = value
    for index, block in blocks.items():
        for key, value in _joined(block, qkv="attn.in_proj_", table=_LAYER).items():
            out[f"transformer.resblocks.{index}.{key}"] = value
    return out


def _branch_state(branch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the branch under clipvid's names."""
    out = {"position.time": branch["STAN_time_embed.weight"]}
    blocks: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in branch.items():
        if match := re.match(r"STAN_([ST])_layers\.(\d+)\.(.+)$", key):
            blocks.setdefault((match[1], match[2]), {})[match[3]] = value
        elif key not in ("STAN_time_embed.weight",):
            out[key] = value
    for (stem, index), block in blocks.items():
        ours, table = ("block", _BRANCH_BLOCK) if stem == "S" else ("steps.0", _BRANCH_STEP)
        for key, value in _joined(block, qkv="attention.qkv.", table=table).items():
            out[f"layers.{index}.{ours}.{key}"] = value
    return out


def _joined(block: Mapping[str, Tensor], *, qkv: str, table: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename one layer by `table` and stack q, k and v into one tensor named `qkv` + weight or bias."""
    out = {_rename(k, table): v for k, v in block.items() if not re.match(r"self_attn\.[qkv]_proj\.", k)}
    for kind in ("weight", "bias"):
        parts = [
            block[f"self_attn.{letter}_proj.{kind}"] for letter in "qkv" if f"self_attn.{letter}_proj.{kind}" in block
        ]
        if len(parts) == 3:
            out[f"{qkv}{kind}"] = torch.cat(parts)
    return out


def _rename(key: str, names: Mapping[str, str]) -> str:
    """Return the key with its prefix replaced by the table `names`; unchanged if no prefix matches."""
    for theirs, ours in names.items():
        if key == theirs or key.startswith(f"{theirs}."):
            return ours + key[len(theirs) :]
    return key


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError for missing or unexpected weights and for other shapes."""
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(expected[k].shape)}"
        for k in sorted(set(state) & set(expected))
        if state[k].shape != expected[k].shape
    ]
    problems = [
        f"{problem}: {', '.join(keys[:4])}{' ...' if len(keys) > 4 else ''}"
        for problem, keys in (("missing", missing), ("unexpected", extra), ("other shapes", shapes))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit this CLIP; {'; '.join(problems)}")
