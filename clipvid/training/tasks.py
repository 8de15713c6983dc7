"""Training tasks by name: registration of the package's own objectives, and what each needs of the data.

Contract: an objective is a callable (model, config) that returns a module from a TrainBatch to the loss. Its attribute
`needs` says what it reads of a clip: "caption", "label", "pairs" (two random clips per video) or "clips", the default,
which needs neither. Registering the objectives imports no torch.
"""

from __future__ import annotations

from clipvid.config.settings import SCORES
from clipvid.registry import OBJECTIVES, register_objective

_HOME = "clipvid.training.objectives"
register_objective("retrieval", f"{_HOME}:Retrieval", summary="contrastive loss between clips and captions")
register_objective("recognition", f"{_HOME}:Recognition", summary="cross entropy over the data's classes")
register_objective(
    "selfsup",
    "clipvid.training.selfsup.objective:SelfSupervised",
    summary="ConST-CL between two clips of each video",
)
NEEDS = ("caption", "label", "pairs", "clips")
"""Allowed values of an objective's `needs`."""


def needs_of(task: str) -> str:
    """Return what the objective of a task needs of the data; raise ValueError for an unknown task or need."""
    needs = getattr(OBJECTIVES.lookup(task), "needs", "clips")
    if needs not in NEEDS:
        raise ValueError(f"needs of task {task} must be one of {', '.join(NEEDS)}, got {needs!r}; choose one of these")
    return needs


def score_name(task: str) -> str:
    """Return the name of the metric that selects the best epoch: a custom task's is its negated validation loss."""
    return SCORES.get(task, "negative loss")
