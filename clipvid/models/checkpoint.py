"""The two files of a saved model: config.json and branch.safetensors.

Contract: plain data and tensors in and out, in a folder that holds nothing else; reading also accepts the name of a hub
repository. Writing is atomic; reading anything but a saved model raises CheckpointError with the reason. Knows nothing
of the meaning of config and tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipvid.config import checks
from clipvid.errors import CheckpointError
from clipvid.runtime.files import atomic_folder, write_tensors

FORMAT = 2
"""Version of the format of config.json."""
CONFIG, WEIGHTS = "config.json", "branch.safetensors"
"""File names of a saved model."""
REQUIRED_KEYS = ("base", "preprocess", "clip", "branch", "similarity", "head", "training")
"""Required keys of config.json."""


def write_model(folder: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Path:
    """Write both files; raise FileExistsError for a folder that holds other files."""
    other_files = sorted({p.name for p in Path(folder).glob("*")} - {CONFIG, WEIGHTS})
    if other_files:
        raise FileExistsError(f"{folder} holds other files ({', '.join(other_files[:3])}); save to an empty folder")
    with atomic_folder(folder) as staging:
        write_tensors(staging / WEIGHTS, state)
        text = json.dumps({"format": FORMAT, **config}, indent=2) + "\n"
        (staging / CONFIG).write_text(text, encoding="utf-8")
    return Path(folder)


def fingerprint(base_fingerprint: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return a hash (SHA-256) that changes with the base model, the branch's options or the weights in `state`."""
    digest = hashlib.sha256(base_fingerprint.encode())
    digest.update(json.dumps(options, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a saved model; raise CheckpointError if it is not one, or one of another format."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {CONFIG}, so it is not a saved clipvid model; "
            "give the folder of model.save, or best in that of a training run"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        saved_format = config["format"]
        missing = set(REQUIRED_KEYS) - set(config)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not the config of a clipvid model: {error!r}; save the model again"
        ) from error
    if saved_format != FORMAT or missing:
        raise CheckpointError(
            f"{path} has format {saved_format} and missing keys {sorted(missing)}; this version of clipvid reads only "
            f"format {FORMAT} with all keys, so load the model with the version that saved it"
        )
    return config


def read_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a saved model, grouped by module: "branch.norm.bias" is at ["branch"]["norm.bias"]."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder} does not hold a complete clipvid model: {error}; save or copy it again"
        ) from error
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        module, _, rest = name.partition(".")
        modules.setdefault(module, {})[rest] = value
    return modules


def local_folder(folder: str | Path) -> Path:
    """Return the folder itself, or the downloaded files of a hub repository ("org/name").

    Raises CheckpointError for neither, or if the hub cannot be reached.
    """
    checks.path("folder", folder, must="the folder of a saved model, or a hub repository")
    if Path(folder).is_dir():
        return Path(folder)
    name = str(folder).removeprefix("hf-hub:")
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"{folder} is not a folder; give the folder of VideoCLIP.save, or a hub repository org/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub's library raises errors of many kinds
        answer = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"there is no folder {folder}, and no such hub repository could be read: {answer}; check the name and the "
            "connection"
        ) from error
