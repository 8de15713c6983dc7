"""The folder of a saved index: its metadata, its store, and the check that no other files are replaced.

Contract: paths in, metadata and stores out; CheckpointError for a folder that `VideoIndex.save` did not write. Knows
nothing of models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipvid.config.data_config import PRECISIONS
from clipvid.config.settings import INDEX
from clipvid.errors import CheckpointError
from clipvid.registry import STORES
from clipvid.search.stores.base import Store
from clipvid.search.stores.faiss import VECTORS, FaissStore, Vectors

FORMAT = 2
"""Version of the format that is written. Version 1, which is read too, has faiss's file beside the metadata."""
METADATA, STORE = INDEX, "store"
"""Names of an index's file of metadata, and of the folder of its store."""
READ_AS = ("frames", "sampler", "temporal_views", "spatial_views", "tokens", "backend", "precision")
"""Fields of the data config that an embedding depends on, saved with the index."""


def check_replaceable(folder: Path) -> None:
    """Raise ValueError for a file, and for a folder that holds anything but an index."""
    if folder.is_dir():
        other_files = sorted({path.name for path in folder.iterdir()} - {METADATA, STORE, VECTORS})
        if other_files:
            raise ValueError(f"{folder} holds other files ({other_files[0]}); save the index to a separate folder")
    elif folder.exists():
        raise ValueError(f"{folder} is a file; give a folder for the index")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of a saved index; raise CheckpointError if the file is missing, damaged or unsupported.

    Settings that older indexes were saved without get the values that they had: faiss, flat, auto, one view.
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
    if version not in (1, FORMAT) or not expected <= set(metadata):
        raise CheckpointError(
            f"{folder} has index format {version!r}, this version of clipvid reads 1 and {FORMAT}; build it again"
        )
    added_later = {
        "store": "faiss",
        "kind": "flat",
        "precision": "auto",
        "temporal_views": 1,
        "spatial_views": 1,
        "tokens": None,
    }
    metadata = added_later | metadata
    try:
        STORES.lookup(metadata["store"]).check(metadata["kind"])
    except ValueError as error:
        raise CheckpointError(
            f"{folder} cannot be read ({error}); build the index again, or install its store"
        ) from error
    if metadata["precision"] not in PRECISIONS:
        raise CheckpointError(
            f"the precision of {folder} must be one of {', '.join(PRECISIONS)}, got {metadata['precision']!r}; build "
            "the index again"
        )
    return metadata


def read_store(folder: Path, metadata: dict[str, Any]) -> Store | None:
    """Return the store of a saved index, or None for an index without videos; raise CheckpointError for damage."""
    ids = metadata["paths"]
    if not ids:
        return None
    if metadata["format"] == 1:
        return FaissStore.of_rows(Vectors.load(folder / VECTORS, kind=metadata["kind"], rows=len(ids)), ids)
    store = STORES.lookup(metadata["store"]).load(folder / STORE)
    if sorted(store.ids()) != sorted(ids) or store.kind != metadata["kind"]:
        raise CheckpointError(
            f"{folder} lists {len(ids)} videos in a {metadata['kind']} index, and its store holds {store.count()} or "
            f"other videos in a {store.kind} index; build the index again"
        )
    return store
