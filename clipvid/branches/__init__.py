"""Branches: what turns the taps of a frozen tower into frame embeddings that know of each other.

Contract of every branch: `depth` (levels it reads), `options` (a dataclass that rebuilds it), and Taps -> (B, T, E).
`BRANCHES` maps the names that users type to options; `build` makes the branch that some options describe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from clipvid.backbone import Backbone
from clipvid.branches.branch import Branch, mean_over_frames
from clipvid.branches.mean import Mean, MeanOptions
from clipvid.branches.stan import PRESETS, STAN, StanOptions

__all__ = ["BRANCHES", "Branch", "BranchOptions", "build", "choose", "from_config", "mean_over_frames", "to_config"]

BranchOptions = StanOptions | MeanOptions
BRANCHES: dict[str, BranchOptions] = {"mean": MeanOptions(), **PRESETS}
KINDS: dict[str, tuple[type, Callable[..., Branch]]] = {"mean": (MeanOptions, Mean), "stan": (StanOptions, STAN)}


def choose(branch: str | BranchOptions, changes: Mapping[str, Any] | None = None) -> BranchOptions:
    """Options of a named preset, with `changes` applied; ValueError for a name or an option that does not exist."""
    if isinstance(branch, str):
        if branch not in BRANCHES:
            raise ValueError(f"unknown branch {branch!r}; choose one of {', '.join(BRANCHES)}")
        branch = BRANCHES[branch]
    known = asdict(branch)
    for name in changes or {}:
        if name not in known:
            raise ValueError(f"{type(branch).__name__} has no option {name!r}; it has {', '.join(known)}")
    return replace(branch, **(changes or {}))


def build(backbone: Backbone, options: BranchOptions) -> Branch:
    """The branch that `options` describe, on this backbone and its device."""
    make = next(module for kind, module in KINDS.values() if kind is type(options))
    with torch.device(backbone.device):
        return make(backbone, options)


def to_config(options: BranchOptions) -> dict[str, Any]:
    """Options as plain data for config.json."""
    return {"kind": next(name for name, (kind, _) in KINDS.items() if kind is type(options)), **asdict(options)}


def from_config(config: Mapping[str, Any]) -> BranchOptions:
    """The inverse of `to_config`; ValueError for a kind or an option of another version."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"unknown branch kind {kind!r}; this version knows {', '.join(KINDS)}")
    return choose(KINDS[kind][0](), fields)
