"""Names of base models and of branches, known before anything heavy is loaded: a wrong one is told at once.

Contract: a name in, nothing or a ValueError with the nearest names out. Reads which files open_clip brings, and imports
neither it nor anything of clipvid. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MINI = "clipvid-mini"
SCHEMES = ("hf-hub:", "local-dir:")
BRANCHES = (
    *("mean", "posterior", "seqtransf", "stan", "stan-release", "stan-paper", "bt-adapter"),
    *("space", "joint", "divided", "local_global", "axial", "vivit1", "vivit2", "vivit3", "vivit4"),
    *("timesformer", "timesformer-hr", "timesformer-l", "vivit-b1", "vivit-b2", "vivit-b3", "vivit-b4"),
)
"""Those of clipvid.models.branches.BRANCHES, which a test holds them to."""


@cache
def builtin_names() -> tuple[str, ...]:
    """What open_clip names its models, each after a file of its own; none where these are not found."""
    spec = find_spec("open_clip")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return tuple(sorted(path.stem for place in places for path in Path(place, "model_configs").glob("*.json")))


def check_name(name: str, known: Sequence[str]) -> None:
    """ValueError for what is neither clipvid-mini, nor a tag or folder with its scheme, nor a `known` name."""
    if name == MINI or name.startswith(SCHEMES) or name in known:
        return
    near = get_close_matches(name.replace("/", "-"), [*known, MINI], n=3)
    folder = os.path.isdir(name)
    if folder or ("/" in name and not near):
        what = "a folder, but none that clipvid saved" if folder else "no folder that there is"
        raise ValueError(
            f"unknown model {name!r}: {what}, nor a model of open_clip; a training run's model is its folder best, "
            f"open_clip's own files are local-dir:{name}, and a hub's are hf-hub:{name}"
        )
    hint = f"did you mean {' or '.join(near)}" if near else "see open_clip.list_models()"
    raise ValueError(f"unknown base model {name!r}; {hint}; a tag hf-hub:org/name or local-dir:folder works too")


def check_branch(name: str) -> None:
    """ValueError for a name that no branch has."""
    if name not in BRANCHES:
        raise ValueError(f"unknown branch {name!r}; choose one of {', '.join(BRANCHES)}")
