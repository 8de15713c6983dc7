"""The folder of a saved index: what it holds, and what must not be replaced.

Contract: paths in, facts out; CheckpointError for what no `VideoIndex.save` wrote. Knows nothing of models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipvid.config.data_config import PRECISIONS
from clipvid.config.settings import INDEX
from clipvid.errors import CheckpointError
from clipvid.search.stores.faiss import KINDS

FORMAT = 1
FACTS, VECTORS = INDEX, "vectors.faiss"


def check_place(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but an index."""
    if folder.is_dir():
        others = sorted({path.name for path in folder.iterdir()} - {FACTS, VECTORS})
        if others:
            raise ValueError(f"{folder} holds other files ({others[0]}); an index needs a folder of its own")
    elif folder.exists():
        raise ValueError(f"{folder} is a file; an index is saved to a folder")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read what is written beside the vectors; CheckpointError if it is damaged.

    An index that names no kind is flat, one that names no precision is auto.
    """
    if not (folder / FACTS).is_file():
        raise CheckpointError(f"{folder} holds no index (no {FACTS}); clipvid index VIDEOS --out {folder} makes one")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        version, expected = facts["format"], {"fingerprint", "frames", "sampler", "backend", "paths", "skipped"}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / FACTS} is damaged ({error!r}); build it again") from error
    if version != FORMAT or not expected <= set(facts):
        raise CheckpointError(f"{folder} has index format {version!r}, this clipvid reads {FORMAT}; build it again")
    facts = {"kind": "flat", "precision": "auto"} | facts
    if facts["kind"] not in KINDS:
        raise CheckpointError(f"{folder} is of kind {facts['kind']!r}, this clipvid reads {', '.join(KINDS)}")
    if facts["precision"] not in PRECISIONS:
        raise CheckpointError(
            f"the precision of {folder} must be one of {', '.join(PRECISIONS)}, got {facts['precision']!r}; build the "
            "index again"
        )
    return facts
