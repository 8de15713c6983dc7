"""TimeSformer and ViViT weights of Hugging Face's `transformers`, read into clipvid's video transformer.

Contract: a state dict of TimesformerModel / VivitModel (or their classification models, whose classifier is left) and
the video transformer that it fits; every weight is placed, or an error names those that are not. Imports no
transformers. Knows nothing of CLIP or training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from clipvid.branches.standalone import Standalone
from clipvid.errors import CheckpointError
from clipvid.model import VideoCLIP
from clipvid.nn.video_transformer import VideoTransformer

_TIMESFORMER = {  # in a layer: theirs -> ours
    "attention.attention.qkv": "block.attention.qkv",
    "attention.output.dense": "block.attention.out",
    "layernorm_before": "block.norm1",
    "layernorm_after": "block.norm2",
    "intermediate.dense": "block.mlp.0",
    "output.dense": "block.mlp.2",
    "temporal_layernorm": "steps.0.norm",
    "temporal_attention.attention.qkv": "steps.0.attention.qkv",
    "temporal_attention.output.dense": "steps.0.attention.out",
    "temporal_dense": "steps.0.out",
}
_VIVIT = {
    "attention.o_proj": "block.attention.out",
    "layernorm_before": "block.norm1",
    "layernorm_after": "block.norm2",
    "mlp.fc1": "block.mlp.0",
    "mlp.fc2": "block.mlp.2",
}
_JOINED = {  # in memory, as transformers 5 has it, and in the files that it and ViViT's releases write
    **{f"attention.{letter}_proj": letter for letter in "qkv"},
    **{f"attention.attention.{word}": word[0] for word in ("query", "key", "value")},
}
_STEM = {
    "embeddings.cls_token": "stem.cls",
    "embeddings.position_embeddings": "stem.space",
    "embeddings.time_embeddings": "stem.time",
    "embeddings.patch_embeddings.projection.weight": "stem.conv.weight",
    "embeddings.patch_embeddings.projection.bias": "stem.conv.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
LEFT = ("classifier.", "pooler.")
"""What heads of theirs have no place here."""


def load_video_weights(model: VideoCLIP | VideoTransformer, state: Mapping[str, Tensor] | str | Path) -> None:
    """Fill the video transformer (of a model with a standalone branch) with TimeSformer's or ViViT's weights, in place.

    `state` is a state dict, or the path of a safetensors file. Raises CheckpointError, naming keys, when something is
    missing, left over, or of another shape.
    """
    if not isinstance(state, Mapping):
        from safetensors.torch import load_file

        state = load_file(state)
    target = model
    if isinstance(model, VideoCLIP):
        if not isinstance(model.branch, Standalone):
            raise CheckpointError(
                f"the model's branch is {type(model.branch).__name__}, which has no place for these weights; create it "
                "with branch='timesformer' or 'vivit-b1'"
            )
        target = model.branch.video
    found = _renamed(state)
    own = target.state_dict()
    wrong = sorted(set(own) ^ set(found)) or sorted(k for k in own if own[k].shape != found[k].shape)
    if wrong:
        told = [f"{k} {tuple(found[k].shape) if k in found else 'missing'}" for k in wrong[:4]]
        raise CheckpointError(
            f"these weights do not fit the video transformer: {', '.join(told)} ({len(wrong)} in all); build it with "
            "the scheme, frames, image_size, patch and tubelet that they were trained with"
        )
    target.load_state_dict(found)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = re.sub(r"^(timesformer|vivit)\.", "", key)
        layer = re.match(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)$", name)
        if name.startswith(LEFT):
            continue
        if layer is None:
            out[_STEM.get(name, name)] = _shaped(name, value)
            continue
        index, part, kind = layer.groups()
        if part in _JOINED:
            joined.setdefault(f"blocks.{index}.block.attention.qkv.{kind}", {})[_JOINED[part]] = value
        else:
            ours = {**_VIVIT, **_TIMESFORMER}.get(part, part)
            out[f"blocks.{index}.{ours}.{kind}"] = value
    for name, parts in joined.items():
        if set(parts) != set("qkv"):
            raise CheckpointError(f"{name} needs q, k and v, the weights have {', '.join(sorted(parts))}")
        out[name] = torch.cat([parts[letter] for letter in "qkv"])
    return out


def _shaped(name: str, value: Tensor) -> Tensor:
    """Tables without their batch axis; the kernel of single frames as one of tubelets of one."""
    if name.endswith("cls_token"):
        return value.flatten()
    if name.endswith(("position_embeddings", "time_embeddings")):
        return value[0]
    if name.endswith("projection.weight") and value.ndim == 4:
        return value[:, :, None]
    return value
