"""Names of the branch parameters in the released STAN code, and in clipvid's branch `stan-release`.

Contract: a model in, a table of names out. Knows nothing about files or values.
"""

from __future__ import annotations

from clipvid.models.convert_stan import _BRANCH_BLOCK, _BRANCH_STEP
from clipvid.models.video_clip import VideoCLIP


def released_names(model: VideoCLIP) -> dict[str, tuple[str, int | None]]:
    """Return our name of each released parameter, and its third (q 0, k 1, v 2) where ours is fused."""
    names: dict[str, tuple[str, int | None]] = {"STAN_time_embed.weight": ("position.time", None)}
    for k in range(len(model.branch.levels)):
        for stem, ours, table in (("S", "block", _BRANCH_BLOCK), ("T", "steps.0", _BRANCH_STEP)):
            for kind in ("weight", "bias"):
                for theirs, name in table.items():
                    names[f"STAN_{stem}_layers.{k}.{theirs}.{kind}"] = (f"layers.{k}.{ours}.{name}.{kind}", None)
                for third, letter in enumerate("qkv"):
                    name = f"STAN_{stem}_layers.{k}.self_attn.{letter}_proj.{kind}"
                    names[name] = (f"layers.{k}.{ours}.attention.qkv.{kind}", third)
    return names
