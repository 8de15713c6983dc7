"""The files of a saved model: config.json, branch.safetensors, and the manifest with the hashes of both.

Contract: plain data and tensors in and out, in a folder that holds nothing else; reading also accepts the name of a hub
repository. Writing replaces the folder whole. Reading anything but an unchanged saved model raises CheckpointError with
the reason. Knows nothing of the meaning of config and tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from clipvid.config import checks
from clipvid.errors import CheckpointError
from clipvid.runtime.files import (
    atomic_folder,
    describe_os_error,
    read_file,
    recover,
    require_regular,
    write_tensors,
)
from clipvid.runtime.storage.manifest import MANIFEST, is_sealed, read_sealed, seal
from clipvid.runtime.storage.schema import decode
from clipvid.runtime.text import first_line

FORMAT = 3
"""Version of the format that is written. Version 2, which is read too, has no manifest."""
CONFIG, WEIGHTS = "config.json", "branch.safetensors"
"""File names of a saved model."""
ADVICE = "take a copy of the folder that is whole, or save the model again"
"""Advice at the end of messages about a damaged model."""
Modules = dict[str, dict[str, Tensor]]


class BaseEntry(msgspec.Struct, forbid_unknown_fields=True):
    """Base model of a saved model; the name is None for a CLIP that was built in memory."""

    name: str | None
    pretrained: str | None
    fingerprint: str


class ClipEntry(msgspec.Struct, forbid_unknown_fields=True):
    """Changes of the base model that were saved."""

    text_lora: int
    """Rank of LoRA on the text tower; 0 for none."""


class SavedConfig(msgspec.Struct):
    """Content of config.json."""

    base: BaseEntry
    preprocess: dict[str, Any]
    clip: ClipEntry
    branch: dict[str, Any]
    similarity: str
    head: dict[str, Any] | None
    training: dict[str, Any] | None


class _Version(msgspec.Struct):
    format_version: Any = None
    format: Any = None
    """Name of the version's field up to version 2."""


def write_model(folder: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Path:
    """Write all files; raise FileExistsError for a folder that holds other files."""
    other_files = sorted({p.name for p in Path(folder).glob("*")} - {CONFIG, WEIGHTS, MANIFEST})
    if other_files:
        raise FileExistsError(f"{folder} holds other files ({', '.join(other_files[:3])}); save to an empty folder")
    with atomic_folder(folder) as staging:
        write_tensors(staging / WEIGHTS, state)
        text = json.dumps({"format_version": FORMAT, **config}, indent=2) + "\n"
        (staging / CONFIG).write_text(text, encoding="utf-8")
        read_config(staging, sealed=False)  # a model that could not be read again is not saved
        seal(staging)
    return Path(folder)


def read_model(folder: Path) -> tuple[SavedConfig, Modules]:
    """Return the config and the tensors of a saved model by module, both of one version of the folder.

    "branch.norm.bias" is at ["branch"]["norm.bias"]. Raises CheckpointError for anything but a whole saved model.
    """
    return read_sealed(folder, lambda folder: (read_config(folder), _read_weights(folder)), **_REFUSAL)


_REFUSAL: Any = {"error": CheckpointError, "advice": ADVICE}


def fingerprint(base_fingerprint: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return a hash (SHA-256) that changes with the base model, the branch's options or the weights in `state`."""
    digest = hashlib.sha256(base_fingerprint.encode())
    digest.update(json.dumps(options, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_config(folder: Path, *, sealed: bool = True) -> SavedConfig:
    """Return the config of a saved model; raise CheckpointError if it is not one, or one of another format.

    With `sealed`, a folder of the present format must have a manifest.
    """
    path = folder / CONFIG
    try:
        content = read_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{folder} has no {CONFIG}, so it is not a saved clipvid model; give the folder of model.save, or best in "
            "that of a training run"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{describe_os_error(error)}; {ADVICE}") from error
    version = decode(content, _Version, source=path, **_REFUSAL)
    version = version.format if version.format_version is None else version.format_version
    if version not in (2, FORMAT):
        raise CheckpointError(
            f"{path} has format {version!r}, this version of clipvid reads 2 and {FORMAT}; load the model with the "
            "version that saved it"
        )
    if version == FORMAT and sealed and not is_sealed(folder):
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} is missing; {ADVICE}")
    return decode(content, SavedConfig, source=path, **_REFUSAL)


def _read_weights(folder: Path) -> Modules:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        require_regular(folder / WEIGHTS)
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder} does not hold a complete clipvid model: {first_line(error)}; {ADVICE}"
        ) from error
    modules: Modules = {}
    for name, value in state.items():
        module, _, rest = name.partition(".")
        modules.setdefault(module, {})[rest] = value
    return modules


def local_folder(folder: str | Path) -> Path:
    """Return the folder itself, or the downloaded files of a hub repository ("org/name").

    Raises CheckpointError for neither, or if the hub cannot be reached.
    """
    checks.path("folder", folder, must="the folder of a saved model, or a hub repository")
    recover(Path(folder))
    if Path(folder).is_dir():
        return Path(folder)
    name = str(folder).removeprefix("hf-hub:")
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"{folder} is not a folder; give the folder of VideoCLIP.save, or a hub repository org/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, MANIFEST]))
    except Exception as error:  # the client raises errors of its own, of the network and of the file system
        raise CheckpointError(
            f"{folder} is neither an existing folder (looked in {Path.cwd()}) nor a repository that could be fetched "
            f"from the hub ({first_line(error)}); correct the path, or check the name and the network"
        ) from error
