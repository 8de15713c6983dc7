"""Checkpoints of training runs: written atomically, and refused by other runs.

Contract: a path and the run's metadata (names, settings and hashes that a run cannot change) in; the saved state out,
or a CheckpointError that names the difference. Knows nothing of weights, data or the content of a state.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import torch
from torch import Tensor

from clipvid.config.settings import TrainConfig
from clipvid.errors import CheckpointError
from clipvid.runtime.files import atomic_file, describe_os_error
from clipvid.runtime.storage.archive import is_intact, seal_archive
from clipvid.runtime.storage.schema import convert, decode

FORMAT = 2
"""Version of the format that is written. Version 1, which is read too, has neither number nor seal."""
ADVICE = "remove it and start again, or resume from a copy of it"
"""Advice at the end of messages about a damaged checkpoint."""
OTHER = {
    "clips": "was trained on other clips; give the clips that it started with",
    "origin": "was trained from {saved}, this run reads {current}; give the same source{option}",
    "config": "belongs to a run with another config ({changed}); choose another out, or that config",
    "base": "was trained on another base model, or on one whose frozen weights differ from earlier training; load the "
    "model it started from",
    "branch": "was trained with another branch or similarity; give the options that it started with",
    "loss_name": "was trained with loss {saved}, this run has {current}; give the same loss, or choose another out",
    "optimizer_name": "was trained with optimizer {saved}, this run has {current}; give the same optimizer, or choose "
    "another out",
    "readable": "was trained when other clips could be read; make the same clips readable, or start a new run",
}
"""Message for each entry of the metadata that differs."""
EPOCHS = "epochs"
"""The only setting that changes the result and may differ: a `Run` then reschedules its learning rates and warns."""
LATER = ("origin", "readable", "loss_name", "optimizer_name")
"""Metadata that the first version of checkpoints lacks."""
DEFAULT = "the default"
"""Name of the loss and of the optimizer if they are not custom, as in checkpoints that have no name."""
Count = Annotated[int, msgspec.Meta(ge=0)]
PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Types of the values that a checkpoint can hold, apart from tensors, lists, tuples, sets and dictionaries."""


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state atomically.

    Raises OSError if it cannot be written, such as on a full disk, TypeError if it could not be read again.
    """
    for name in ("optimizer", "loss", "callbacks"):  # parts whose content the user may decide
        check_plain(state.get(name), f"the state of the {name}")
    with atomic_file(path) as draft:
        try:
            torch.save({"format_version": FORMAT, **state}, draft)
        except RuntimeError as error:  # torch's text names offsets in the file, not the failed write
            raise OSError(f"{path} cannot be written ({error}); make room, or choose another folder") from error
        seal_archive(draft)


def read_checkpoint(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the state of a checkpoint, or None if there is none.

    Raises CheckpointError for a damaged file, and for the checkpoint of another run.
    """
    if not path.exists():
        return None
    try:
        intact = is_intact(path)
    except OSError as error:
        raise CheckpointError(f"{describe_os_error(error)}; {ADVICE}") from error
    if intact is False:
        raise CheckpointError(f"{path} is damaged: its bytes have changed since it was written; {ADVICE}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise errors of many kinds for damaged files
        reason = str(error).partition("\n")[0]  # torch goes on about its arguments
        raise CheckpointError(f"{path} is damaged or cut off ({reason}); {ADVICE}") from error
    if not isinstance(state, dict) or not {*OTHER} - {*LATER} <= state.keys():
        raise CheckpointError(f"{path} is no checkpoint of a training run; remove it, or choose another out")
    version = state.pop("format_version", 1)
    if version not in (1, FORMAT):
        raise CheckpointError(
            f"{path} has format {version!r}, this version of clipvid reads 1 and {FORMAT}; resume with the version "
            "that wrote it"
        )
    if version == FORMAT and intact is None:
        raise CheckpointError(f"{path} is damaged or cut off: its hash is missing; {ADVICE}")
    _check_schema(path, state)
    check_metadata(path, state, metadata)
    return state


class _Config(msgspec.Struct):
    epochs: Count


class _Position(msgspec.Struct):
    epoch: Count
    batch: Count
    added: Count
    losses: list[float]


class _Entry(msgspec.Struct):
    epoch: float
    loss: float
    lr: float
    score: float = 0.0


class _Best(msgspec.Struct):
    score: float | None
    epoch: Count
    state: dict[str, Tensor] | None


class _Optimizer(msgspec.Struct):
    state: dict[int, dict[Any, Any]]
    param_groups: list[dict[str, Any]]


class _CallbackState(msgspec.Struct):
    name: str
    state: Any


class _State(msgspec.Struct):
    """Entries of a checkpoint that a run restores or compares."""

    clips: str
    config: str
    base: str
    branch: str
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    optimizer: _Optimizer
    scaler: dict[str, Any]
    rng: Tensor
    cuda_rng: list[Tensor]
    position: _Position
    history: list[_Entry]
    best: _Best
    callbacks: list[_CallbackState] = []
    rescheduled: list[Count] = []
    stopped_at: Count | None = None
    origin: str = ""
    readable: str = ""
    loss_name: str = ""
    optimizer_name: str = ""


def _check_schema(path: Path, state: Mapping[str, Any]) -> None:
    refusal: dict[str, Any] = {"source": path, "error": CheckpointError, "advice": ADVICE}
    content = convert(dict(state), _State, **refusal)
    decode(content.config.encode(), _Config, **refusal)


def check_tensors(path: Path, state: Mapping[str, Any], trained: Mapping[str, Tensor], optimizer: Any) -> None:
    """Raise CheckpointError for tensors that are not those of the `trained` parameters and their optimizer.

    Settings of the optimizer that the checkpoint lacks, as those of a later torch, are taken from `optimizer`.
    """
    best, rng = state["best"]["state"], torch.get_rng_state()
    parts = [("weights", state["weights"], trained), ("generator", {"rng": state["rng"]}, {"rng": rng})]
    parts += [("gradients", state["gradients"], {n: trained.get(n, rng) for n in state["gradients"]})]
    parts += [] if best is None else [("best weights", best, trained)]
    for name, saved, expected in parts:
        may_overflow = name == "gradients"  # those of float16 are scaled
        wrong = sorted(saved.keys() ^ expected.keys()) or [
            key for key in saved if not _fits(saved[key], expected[key], finite=not may_overflow)
        ]
        if wrong:
            raise CheckpointError(f"{path} is damaged: {wrong[0]} of its {name} is not that of this run; {ADVICE}")
    groups, current = state["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"]
    if len(groups) != len(current) or not all(map(_is_like, groups, current)):
        raise CheckpointError(f"{path} is damaged: its optimizer has other parameters or settings; {ADVICE}")
    groups[:] = [{**new, **old} for old, new in zip(groups, current, strict=True)]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    is_adamw = isinstance(optimizer, torch.optim.AdamW) and not any(group["amsgrad"] for group in current)
    for number, moments in state["optimizer"]["state"].items():
        if number >= len(parameters) or (is_adamw and not _can_step(moments, parameters[number])):
            raise CheckpointError(f"{path} is damaged: the optimizer cannot go on with parameter {number}; {ADVICE}")


def _fits(saved: Tensor, expected: Tensor, *, finite: bool = True) -> bool:
    """Return True for a tensor of the same shape and type, and with `finite` without infinite values."""
    is_like = saved.shape == expected.shape and saved.dtype == expected.dtype
    return is_like and (not finite or bool(saved.isfinite().all()))


def _is_like(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Return True for a group of the same parameters whose settings are finite and have the types of the current ones.

    A switch may be on, off or, on another device, left to torch.
    """
    switches, compared = (bool, type(None)), [name for name in current if name in saved and name != "params"]
    for name in compared:
        value, kind = saved[name], type(current[name])
        numbers = value if isinstance(value, tuple) else (value,)
        if not isinstance(value, switches if kind in switches else kind if kind in (float, tuple) else object):
            return False
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            return False
    return saved.get("params") == current["params"]


def _can_step(moments: Mapping[Any, Any], parameter: Tensor) -> bool:
    """Return True for the state that AdamW keeps for a parameter: two finite moments, the second of them positive."""
    shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    if moments.keys() != shapes.keys() or not all(isinstance(value, Tensor) for value in moments.values()):
        return False
    fit = all(moments[name].shape == shape and bool(moments[name].isfinite().all()) for name, shape in shapes.items())
    return fit and bool((moments["exp_avg_sq"] >= 0).all()) and float(moments["step"]) >= 0


def check_metadata(path: Path, state: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Raise CheckpointError for the first entry that differs; entries that the checkpoint lacks are not compared."""
    for name, current in metadata.items():
        saved = state.get(name, DEFAULT if name.endswith("_name") else current)
        changed = _differences(saved, current) if name == "config" else ""
        if saved != current and (changed or name != "config"):
            caches = name == "origin" and "tap cache" in str(saved) and "tap cache" not in current
            option = " (--cache DIR, in Python cache=)" if caches else ""
            raise CheckpointError(
                f"{path} {OTHER[name].format(saved=saved, current=current, changed=changed, option=option)}"
            )


def check_epochs(path: Path, requested: int, *, least: int, planned: int, begun: int) -> None:
    """Raise CheckpointError if a run of `planned` epochs, `begun` of them begun, cannot end after `requested`."""
    if requested < least:
        raise CheckpointError(
            f"epochs must be >= {least} to resume {path}, got {requested}; of the {planned} epochs planned, "
            f"{begun} {'has' if begun == 1 else 'have'} begun"
        )


def check_plain(value: object, name: str) -> None:
    """Raise TypeError for state that a checkpoint could store but not read again: objects of custom classes."""
    if type(value) in (dict, OrderedDict):
        for key, entry in cast(dict[object, object], value).items():
            check_plain(key, f"a key of {name}")
            check_plain(entry, f"{name}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for entry in cast(Iterable[object], value):
            check_plain(entry, f"an entry of {name}")
    elif type(value) not in PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name} must be made of tensors, numbers, texts, lists and dictionaries, got {type(value).__name__}; "
            "convert it in state_dict"
        )


def free_settings(settings: Any, prefix: str = "") -> set[str]:
    """Return the dotted names of the settings that change no result, according to the metadata of their fields."""
    free: set[str] = set()
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not field.metadata.get("decides_result", True):
            free.add(prefix + field.name)
        elif is_dataclass(value):
            free |= free_settings(value, f"{prefix}{field.name}.")
    return free


def _differences(saved: str, current: str) -> str:
    """Name each setting that decides the result and differs, with both values."""
    default = TrainConfig()
    # Settings that are newer than the checkpoint had their default then
    old, new = _flat(default.plain()) | _flat(json.loads(saved)), _flat(json.loads(current))
    compared = [name for name in old | new if name not in {*free_settings(default), EPOCHS}]
    return ", ".join(f"{k}: {old.get(k)} saved, {new.get(k)} now" for k in compared if old.get(k) != new.get(k))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
