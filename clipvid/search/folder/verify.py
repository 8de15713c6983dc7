"""The check of a saved index without its model: its files against their hashes, its videos against their content.

Contract: a folder in, a report out; CheckpointError for a damaged index. Reads every file of the index, and those
videos whose stamp has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipvid.search.folder.catalog import Catalog
from clipvid.search.folder.storage import verify_files


@dataclass(frozen=True)
class Verified:
    """Result of the check of a saved index."""

    files: int
    """Number of files of the index that are as they were written; 0 for an index of an older format, without hashes."""
    videos: int
    outdated: dict[Path, str]
    """Videos whose file is not, or not known to be, the one that was embedded: "changed", "gone" or "unreadable"."""


def verified(folder: Path, *, root: str | Path | None = None) -> Verified:
    """Check a saved index; raise CheckpointError if any of its files differs from what was written."""
    metadata, n_files = verify_files(folder)
    catalog = Catalog.of(metadata, folder, root)
    return Verified(n_files, len(catalog.entries), catalog.outdated())
