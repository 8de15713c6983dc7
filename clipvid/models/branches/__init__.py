"""Branches: what turns the taps of a frozen tower into frame embeddings that know of each other.

Contract of every branch: `levels` (of the tower, that it reads), `options` (a dataclass that rebuilds it), and Taps or
Pixels -> (B, T, E).
`BRANCHES` maps the names that users type to options; `build` makes the branch that some options describe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.names import check_branch
from clipvid.models.branches import intermediate, stan, standalone
from clipvid.models.branches.base import Branch, LayeredBranch
from clipvid.models.branches.intermediate import Intermediate, IntermediateOptions
from clipvid.models.branches.mean import Mean, MeanOptions
from clipvid.models.branches.posterior import Posterior, PosteriorOptions
from clipvid.models.branches.stan import STAN, StanOptions
from clipvid.models.branches.standalone import Standalone, StandaloneOptions

__all__ = [
    "BRANCHES",
    "Branch",
    "BranchOptions",
    "LayeredBranch",
    "build",
    "choose",
    "from_config",
    "preset_of",
    "to_config",
]

BranchOptions = StanOptions | MeanOptions | PosteriorOptions | IntermediateOptions | StandaloneOptions
BRANCHES: dict[str, BranchOptions] = {
    "mean": MeanOptions(),
    "posterior": PosteriorOptions(),
    "seqtransf": PosteriorOptions(init="text", fusion="release"),
    **stan.PRESETS,
    **intermediate.PRESETS,
    **standalone.PRESETS,
}
KINDS: dict[str, tuple[type, Callable[..., Branch]]] = {
    "mean": (MeanOptions, Mean),
    "posterior": (PosteriorOptions, Posterior),
    "stan": (StanOptions, STAN),
    "intermediate": (IntermediateOptions, Intermediate),
    "standalone": (StandaloneOptions, Standalone),
}


def choose(branch: str | BranchOptions, changes: Mapping[str, Any] | None = None) -> BranchOptions:
    """Return the options of a named preset with `changes` applied; raise ValueError for an unknown name or option."""
    name_of = branch if isinstance(branch, str) else preset_of(branch)
    if isinstance(branch, str):
        check_branch(branch)
        branch = BRANCHES[branch]
    known = asdict(branch)
    for name in changes or {}:
        if name not in known and name.startswith("mixer"):
            raise ValueError(
                f"branch {name_of} has no cross-frame module, so {name} does not apply; mixers belong to "
                "stan and divided"
            )
        if name not in known:
            raise ValueError(f"branch {name_of} has no option {name!r}; it has {', '.join(known)}")
    return replace(branch, **(changes or {}))


def build(backbone: Backbone, options: BranchOptions) -> Branch:
    """Build the branch that `options` describe, on the backbone's device; in float32 where the tower is in half."""
    make = next(module for kind, module in KINDS.values() if kind is type(options))
    with torch.device(backbone.device):
        branch = make(backbone, options)
    return branch.float() if backbone.dtype in (torch.float16, torch.bfloat16) else branch


def preset_of(options: BranchOptions) -> str:
    """Return the name of the preset that differs from these options in the fewest fields."""
    own = asdict(options)
    kin = {name: asdict(preset) for name, preset in BRANCHES.items() if type(preset) is type(options)}
    return min(kin, key=lambda name: sum(kin[name][field] != value for field, value in own.items()))


def to_config(options: BranchOptions) -> dict[str, Any]:
    """Return the options as plain data for config.json."""
    return {"kind": next(name for name, (kind, _) in KINDS.items() if kind is type(options)), **asdict(options)}


def from_config(config: Mapping[str, Any]) -> BranchOptions:
    """Invert `to_config`; raise ValueError for a kind or an option of another version."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"unknown branch kind {kind!r}; this version knows {', '.join(KINDS)}")
    return choose(KINDS[kind][0](), fields)
