"""Branches: modules that turn the taps of a frozen tower into frame embeddings that depend on each other.

Contract of every branch: `levels` (the tower's levels that it reads), `options` (a dataclass that rebuilds it), and
Taps or Pixels -> (B, T, E). `BRANCHES` maps the names that users type to options; `build` makes the branch that some
options describe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.names import check_branch
from clipvid.models.branches import intermediate, mean, posterior, stan, standalone
from clipvid.models.branches.base import Branch, BranchOptions

BRANCHES: dict[str, BranchOptions] = {
    **mean.PRESETS,
    **posterior.PRESETS,
    **stan.PRESETS,
    **intermediate.PRESETS,
    **standalone.PRESETS,
}
"""Options by the names that users type."""

KINDS: dict[type[BranchOptions], Callable[..., Branch]] = {
    mean.MeanOptions: mean.Mean,
    posterior.PosteriorOptions: posterior.Posterior,
    stan.StanOptions: stan.STAN,
    intermediate.IntermediateOptions: intermediate.Intermediate,
    standalone.StandaloneOptions: standalone.Standalone,
}
"""Branches by the type of their options."""


def choose(branch: str | BranchOptions, changes: Mapping[str, Any] | None = None) -> BranchOptions:
    """Return the options of a named preset with `changes` applied; raise ValueError for an unknown name or option."""
    name = branch if isinstance(branch, str) else branch.preset()
    if isinstance(branch, str):
        check_branch(branch)
        branch = BRANCHES[branch]
    options = asdict(branch)
    for option in changes or {}:
        if option not in options and option.startswith("mixer"):
            raise ValueError(
                f"branch {name} has no cross-frame module, so {option} does not apply; mixers belong to "
                "stan and divided"
            )
        if option not in options:
            raise ValueError(f"branch {name} has no option {option!r}; it has {', '.join(options)}")
    return replace(branch, **(changes or {}))


def build(backbone: Backbone, options: BranchOptions) -> Branch:
    """Build the branch that `options` describe, on the backbone's device; in float32 where the tower is in half."""
    make = KINDS[type(options)]
    with torch.device(backbone.device):
        branch = make(backbone, options)
    return branch.float() if backbone.dtype in (torch.float16, torch.bfloat16) else branch


def from_config(config: Mapping[str, Any]) -> BranchOptions:
    """Invert `BranchOptions.to_config`; raise ValueError for a kind or an option of another version."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    kinds = {options.kind: options for options in KINDS}
    if kind not in kinds:
        raise ValueError(f"unknown branch kind {kind!r}; this version knows {', '.join(kinds)}")
    return choose(kinds[kind](), fields)
