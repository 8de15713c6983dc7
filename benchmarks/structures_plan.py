"""What benchmarks/structures.py compares, and what each row may spend. Plain data: nothing here runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from clipvid.config.data_config import DataConfig
from clipvid.config.selfsup import SelfSupervision

DATA_CONFIG = DataConfig(frames=8, sampler="linspace", batch_size=64)
TAPPED = (4, 5, 6)  # level 4 enters the last two blocks, 5 and 6 leave them
FIGURES = ("R@1", "R@5", "v2t R@1", "v2t R@5")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class FewLabels:
    """What the few-shot rows get."""

    structure: str = "stan-conv_full"
    lr: float = 1e-3
    """For the labelled clips."""
    shots: int = 16
    """Labelled clips a class."""
    epochs: int = 30
    clips: int = 1600
    """Unlabelled ones to learn from before."""
    pretrain_epochs: int = 2
    pretrain_rates: tuple[float, ...] = (1e-4, 1e-3)
    """Learning rates for them; one is chosen for all rows by the validation clips, after ConST-CL as released."""


@dataclass(frozen=True)
class Budget:
    """What every structure gets."""

    train_clips: int = 3200
    val_clips: int = 200
    test_clips: int = 400
    retrieval_epochs: int = 3
    recognition_epochs: int = 2
    batch_size: int = 32
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Learning rates that every structure may choose from: by the validation clips, in a run of its own seed."""
    pretrained_lr_scale: float = 1.0
    head_lr: float = 3e-3
    keep_together: int = 2
    """A clip and itself played backwards share a batch: each is the other's hard negative."""
    videos: int = 10
    """Seed of the clips, which are the same for all."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of weights and order."""
    tuning_seed: int = 50
    """Of the runs that choose a rate; no row of the table has it."""
    few: FewLabels = FewLabels()


@dataclass(frozen=True)
class Structure:
    """A row of the table: a branch and what differs of it from its preset."""

    branch: str
    options: dict[str, Any] = field(default_factory=dict)
    similarity: str = "mean"
    where: str = ""
    """Posterior, intermediate or side branch."""


def _stan(**options: Any) -> Structure:
    similarity = options.pop("similarity", "mean")
    return Structure("stan", {"depth": 2, "drop_path": 0.0, **options}, similarity, "side branch")


def _published(name: str) -> Structure:
    return Structure(name, {"depth": 2, "drop_path": 0.0}, where="side branch")


def _between(name: str) -> Structure:
    return Structure(name, {"depth": 2, "drop_path": 0.0}, where="intermediate")


STRUCTURES: dict[str, Structure] = {
    "zero-shot": Structure("mean", where="none"),
    "mean": Structure("mean", {"hidden": 512}, where="posterior"),
    "posterior": Structure("posterior", {"depth": 2}, where="posterior"),
    "seqtransf": Structure("seqtransf", {"depth": 2}, where="posterior"),
    **{name: _between(name) for name in ("space", "joint", "divided", "local_global", "axial")},
    "vivit1": _between("vivit1"),
    "vivit2": replace(_between("vivit2"), options={"depth": 2, "drop_path": 0.0, "temporal_depth": 2}),
    "vivit3": _between("vivit3"),
    "vivit4": _between("vivit4"),
    "stan-attention": _stan(mixer="attention"),
    "stan-conv": _stan(mixer="conv"),
    "stan-conv_full": _stan(mixer="conv_full"),
    "stan-rsa": _stan(mixer="rsa", mixer_options={"kernel": (5, 3, 3)}),
    "stan-release": _published("stan-release"),
    "stan-paper": _published("stan-paper"),
    "stan-attention + WTI": _stan(mixer="attention", similarity="wti"),
    "stan-attention + Mug": _stan(mixer="attention", similarity="mug"),
}


AS_RELEASED = "few-shot constcl"
PRETRAINED: dict[str, SelfSupervision | None] = {
    "few-shot scratch": None,
    AS_RELEASED: SelfSupervision(),
    "few-shot constcl, unmirrored": SelfSupervision(flip=0.0),
}
"""Rows that learn motions from a few labels, and what the branch (stan-conv_full) learned from unlabelled clips before.
As released, ConST-CL pulls a clip and its mirror image together, and with them the motions to the left and right."""
ROWS = (*STRUCTURES, *PRETRAINED)
