"""The folder of a saved index: its files, its metadata, and the check that no other files are replaced.

Contract: paths in, metadata out; CheckpointError for a folder that `VideoIndex.save` did not write. Knows nothing of
models.
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
METADATA, VECTORS = INDEX, "vectors.faiss"
"""Names of the two files of an index."""
READ_AS = ("frames", "sampler", "temporal_views", "spatial_views", "tokens", "backend", "precision")
"""Fields of the data config that an embedding depends on, saved with the index."""


def check_replaceable(folder: Path) -> None:
    """Raise ValueError for a file, and for a folder that holds anything but an index."""
    if folder.is_dir():
        other_files = sorted({path.name for path in folder.iterdir()} - {METADATA, VECTORS})
        if other_files:
            raise ValueError(f"{folder} holds other files ({other_files[0]}); save the index to a separate folder")
    elif folder.exists():
        raise ValueError(f"{folder} is a file; give a folder for the index")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of a saved index; raise CheckpointError if the file is missing, damaged or unsupported.

    Settings that older indexes were saved without get the values that they had: flat, auto, one view.
    """
    if not (folder / METADATA).is_file():
        raise CheckpointError(
            f"{folder} holds no index (no {METADATA}); clipvid index build VIDEOS --out {folder} makes one"
        )
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        version, expected = metadata["format"], {"fingerprint", "frames", "sampler", "backend", "paths", "skipped"}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / METADATA} is damaged ({error!r}); build the index again") from error
    if version != FORMAT or not expected <= set(metadata):
        raise CheckpointError(
            f"{folder} has index format {version!r}, this version of clipvid reads {FORMAT}; build the index again"
        )
    added_later = {"kind": "flat", "precision": "auto", "temporal_views": 1, "spatial_views": 1, "tokens": None}
    metadata = added_later | metadata
    if metadata["kind"] not in KINDS:
        raise CheckpointError(
            f"the kind of {folder} must be one of {', '.join(KINDS)}, got {metadata['kind']!r}; build the index again"
        )
    if metadata["precision"] not in PRECISIONS:
        raise CheckpointError(
            f"the precision of {folder} must be one of {', '.join(PRECISIONS)}, got {metadata['precision']!r}; build "
            "the index again"
        )
    return metadata
