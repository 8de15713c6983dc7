"""Rows and budgets of benchmarks/structures.py, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from clipvid.config.data_config import DataConfig
from clipvid.config.selfsup import SelfSupervision

DATA_CONFIG = DataConfig(frames=8, sampler="linspace", batch_size=64)
TAPPED = (4, 5, 6)  # level 4 is the input of the last two blocks, 5 and 6 are their outputs
METRICS = ("R@1", "R@5", "v2t R@1", "v2t R@5")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class FewLabels:
    """Budget of the few-shot rows."""

    structure: str = "stan-conv_full"
    lr: float = 1e-3
    """Learning rate for the labelled clips."""
    shots: int = 16
    """Labelled clips per class."""
    epochs: int = 30
    clips: int = 1600
    """Unlabelled clips for pre-training."""
    pretrain_epochs: int = 2
    pretrain_rates: tuple[float, ...] = (1e-4, 1e-3)
    """Learning rates of pre-training; validation clips choose one for all rows, after ConST-CL as released."""


@dataclass(frozen=True)
class Budget:
    """Budget of every structure."""

    train_clips: int = 3200
    val_clips: int = 200
    test_clips: int = 400
    retrieval_epochs: int = 3
    recognition_epochs: int = 2
    batch_size: int = 32
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Learning rates to choose from; validation clips choose one per structure, in runs with `tuning_seed`."""
    pretrained_lr_scale: float = 1.0
    head_lr: float = 3e-3
    keep_together: int = 2
    """Clips per group that shares a batch: a clip and its reverse are hard negatives of each other."""
    videos: int = 10
    """Seed of the clips, the same for all structures."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of weights and batch order."""
    tuning_seed: int = 50
    """Seed of the runs that choose a learning rate; no row of the table uses it."""
    few: FewLabels = FewLabels()


@dataclass(frozen=True)
class Structure:
    """A row of the table: a branch and the options that differ from its preset."""

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
"""Few-shot rows, and the self-supervised pre-training of their branch (stan-conv_full) on unlabelled clips.
ConST-CL as released pulls a clip and its mirror image together, and so motions to the left and to the right."""
ROWS = (*STRUCTURES, *PRETRAINED)
