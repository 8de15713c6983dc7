"""The checkpoint of a training run: written whole, read whole, and refused where it belongs to another run.

Contract: a path, and by name what a run cannot change on its way (facts, in words or hashes), in; the state that was
saved, or a CheckpointError that says what differs, out. Knows nothing of weights, data or what a state holds.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from clipvid.config.settings import TrainConfig
from clipvid.errors import CheckpointError
from clipvid.runtime.files import atomic_file

OTHER = {
    "clips": "was trained on other clips; give those that it started with",
    "origin": "was trained from {there}, here are {here}; go on with what it started with",
    "config": "belongs to a run with another config ({changed}); choose another out, or that config",
    "base": "was trained on another base model, or on one whose frozen weights were trained otherwise before; load the "
    "model it started from",
    "branch": "was trained with another branch or similarity; give the options that it started with",
    "readable": "was trained when other clips could be read; give those again, or start anew",
}
"""What is said of a fact that differs."""
EPOCHS = "epochs"
"""The setting with which a run may go on though it decides the result: a `Run` plans anew and says so."""
LATER = ("origin", "readable")
"""Facts that checkpoints were first written without."""


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state, whole or not at all; OSError where it cannot be written, such as on a full disk."""
    with atomic_file(path) as beside:
        try:
            torch.save(dict(state), beside)
        except RuntimeError as error:  # which tells of positions in a file, and not that a write failed
            raise OSError(f"{path} cannot be written ({error}); make room, or choose another folder") from error


def read_checkpoint(path: Path, facts: Mapping[str, str]) -> dict[str, Any] | None:
    """The state of a checkpoint, None where there is none; CheckpointError for a damaged one, or another run's."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}); remove it, and start again") from error
    if not isinstance(state, dict) or not {*OTHER} - {*LATER} <= state.keys():
        raise CheckpointError(f"{path} is no checkpoint of a training run; remove it, or choose another out")
    check_facts(path, state, facts)
    return state


def check_facts(path: Path, state: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """CheckpointError for the first fact that differs; one that was not known yet when it was written passes."""
    for name, here in facts.items():
        there = state.get(name, here)
        changed = _differences(there, here) if name == "config" else ""
        if there != here and (changed or name != "config"):
            raise CheckpointError(f"{path} {OTHER[name].format(there=there, here=here, changed=changed)}")


def free_settings(settings: Any, prefix: str = "") -> set[str]:
    """Return the dotted names of the settings that change no result, as the fields of their dataclass say."""
    free: set[str] = set()
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not field.metadata.get("decides_result", True):
            free.add(prefix + field.name)
        elif is_dataclass(value):
            free |= free_settings(value, f"{prefix}{field.name}.")
    return free


def _differences(there: str, here: str) -> str:
    """Name each setting that decides the result and differs, with both values."""
    default = TrainConfig()
    old, new = _flat(default.plain()) | _flat(json.loads(there)), _flat(json.loads(here))  # settings that came later
    compared = [name for name in old | new if name not in {*free_settings(default), EPOCHS}]
    return ", ".join(f"{k}: {old.get(k)} there, {new.get(k)} here" for k in compared if old.get(k) != new.get(k))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
