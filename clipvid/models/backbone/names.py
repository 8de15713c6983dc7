"""Names of base models, available without heavy imports so that wrong names fail at once.

Contract: a name in, nothing or a ValueError with the nearest names out. Lists open_clip's config files, and imports
neither open_clip nor any of clipvid. Knows nothing about models.
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


@cache
def builtin_names() -> tuple[str, ...]:
    """Return open_clip's model names, the stems of its config files; empty if these are missing."""
    spec = find_spec("open_clip")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return tuple(sorted(path.stem for folder in folders for path in Path(folder, "model_configs").glob("*.json")))


def check_name(name: str, base_names: Sequence[str]) -> None:
    """Raise ValueError unless `name` is clipvid-mini, begins with a scheme of SCHEMES, or is one of `base_names`."""
    if name == MINI or name.startswith(SCHEMES) or name in base_names:
        return
    near = get_close_matches(name.replace("/", "-"), [*base_names, MINI], n=3)
    folder = os.path.isdir(name)
    if folder or ("/" in name and not near):
        kind = "a folder that clipvid did not save" if folder else "no existing folder"
        raise ValueError(
            f"unknown model {name!r}: {kind} and no model of open_clip; give the folder best of a training run, "
            f"local-dir:{name} for files in open_clip's format, or hf-hub:{name} for a model of the Hugging Face hub"
        )
    hint = f"did you mean {' or '.join(near)}" if near else "clipvid list models lists them"
    raise ValueError(f"unknown base model {name!r}; {hint}; a tag hf-hub:org/name or local-dir:folder works too")
