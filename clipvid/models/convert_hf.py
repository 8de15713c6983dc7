"""Conversion of TimeSformer, ViViT and image ViT weights of Hugging Face's `transformers` to the video transformer.

Contract: a state dict of TimesformerModel, VivitModel or ViTModel (or of their classification models, whose classifier
is ignored) and a video transformer that fits it. Every weight is loaded, or an error names those that are not. Does not
import transformers. Knows nothing of CLIP or training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from clipvid.errors import CheckpointError
from clipvid.models.branches.standalone import Standalone
from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.mixers import AttentionStep
from clipvid.nn.spacetime import SpaceTimeBlock
from clipvid.nn.stem import Inflation, Stem, inflated, resized_space, tiled
from clipvid.nn.video_transformer import VideoTransformer
from clipvid.runtime.text import first_line

_TIMESFORMER = {  # within a layer, transformers -> clipvid
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
_JOINED = {  # names in the memory of transformers 5, and in the files of transformers and of ViViT's releases
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
"""Prefixes of weights that are not loaded: those of the heads."""


def load_video_weights(model: VideoCLIP | VideoTransformer, state: Mapping[str, Tensor] | str | Path) -> None:
    """Load TimeSformer's or ViViT's weights in place into a video transformer, or a model with a standalone branch.

    `state` is a state dict, or the path of a safetensors file. Raises CheckpointError, naming keys, if weights are
    missing, unexpected or of another shape.
    """
    target, weights = _target(model), _renamed(_read(state))
    _check(
        target.state_dict(), weights, hint="the scheme, frames, image_size, patch and tubelet they were trained with"
    )
    target.load_state_dict(weights)


def load_image_weights(
    model: VideoCLIP | VideoTransformer, state: Mapping[str, Tensor] | str | Path, *, inflation: Inflation = "central"
) -> None:
    """Initialise a video transformer, or that of a model with a standalone branch, from an image ViT, in place.

    Blocks, norms and class token are copied unchanged, the patch kernel is inflated to tubelets, and positions are
    resized to the grid (bicubic) and repeated for every frame if the table has an entry per token (ViViT, section 3.4).
    Cross-frame steps of an untrained transformer copy their block's norm and attention and remain identities; temporal
    tables and a temporal transformer keep their initial values. The number of heads cannot be read off the weights, so
    the transformer must be built with the right one. `state` and errors are those of `load_video_weights`.
    """
    target, weights = _target(model), _renamed(_read(state))
    target_state = target.state_dict()
    stem = target.stem
    if stem.cls is None:
        weights.pop("stem.cls", None)
    kernel, table = weights.get("stem.conv.weight"), weights.get("stem.space")
    if kernel is not None and kernel.shape[2] == 1:
        weights["stem.conv.weight"] = inflated(kernel[:, :, 0], stem.tubelet, how=inflation)
    if table is not None:
        weights["stem.space"] = _positions(table, stem, rows=len(target_state["stem.space"]))
    temporal = {k: v for k, v in target_state.items() if ".steps." in k or k.startswith(("stem.time", "temporal."))}
    _check(
        {k: v for k, v in target_state.items() if k not in temporal},
        weights,
        hint="the width, depth, heads and patch of the image model",
    )
    target.load_state_dict(weights, strict=False)
    for block in target.blocks:
        for step in cast(SpaceTimeBlock, block).steps:
            cast(AttentionStep, step).copy_attention(cast(SpaceTimeBlock, block).block)


def _positions(table: Tensor, stem: Stem, *, rows: int) -> Tensor:
    """Resize the image model's table (class token first) to the stem's grid and repeat it up to `rows` rows."""
    side = round((len(table) - 1) ** 0.5)
    if side * side != len(table) - 1:
        raise CheckpointError(
            f"position table must have 1 + a square number of rows, got {len(table)}; use a plain ViT"
        )
    space = resized_space(table[1:], (side, side), stem.grid)
    first = 0 if stem.cls is None else 1
    return torch.cat([table[:first], tiled(space, (rows - first) // len(space))])


def _read(state: Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    """Return a state dict, read from a safetensors file if a path is given."""
    if isinstance(state, Mapping):
        return state
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(state).is_file():
        raise CheckpointError(f"{state} is no file; give the path of a safetensors file")
    try:
        return load_file(state)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{state} cannot be read as a safetensors file ({first_line(error)})") from error


def _target(model: VideoCLIP | VideoTransformer) -> VideoTransformer:
    """Return the video transformer to load into; raise CheckpointError for a model with another branch."""
    if not isinstance(model, VideoCLIP):
        return model
    if not isinstance(model.branch, Standalone):
        raise CheckpointError(
            f"the model's branch is {model.branch.options.preset()}, which cannot hold these weights; create "
            "it with branch='timesformer' or 'vivit-b1'"
        )
    return model.branch.video


def _check(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, hint: str) -> None:
    """Raise CheckpointError if names or shapes of the weights differ from the expected ones."""
    wrong = sorted(set(expected) ^ set(weights)) or sorted(k for k in expected if expected[k].shape != weights[k].shape)
    if wrong:
        examples = [f"{k} {tuple(weights[k].shape) if k in weights else 'missing'}" for k in wrong[:4]]
        raise CheckpointError(
            f"these weights do not fit the video transformer: {', '.join(examples)} ({len(wrong)} in all); "
            "build it with " + hint
        )


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the video transformer's names, with q, k and v joined."""
    out: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = re.sub(r"^(timesformer|vivit|vit)\.", "", key)
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
            raise CheckpointError(
                f"{name} needs q, k and v, the weights have {', '.join(sorted(parts))}; give a complete state_dict"
            )
        out[name] = torch.cat([parts[letter] for letter in "qkv"])
    return out


def _shaped(name: str, value: Tensor) -> Tensor:
    """Drop the batch axis of tables; add a tubelet axis of length one to an image kernel."""
    if name.endswith("cls_token"):
        return value.flatten()
    if name.endswith(("position_embeddings", "time_embeddings")):
        return value[0]
    if name.endswith("projection.weight") and value.ndim == 4:
        return value[:, :, None]
    return value
