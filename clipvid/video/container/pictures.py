"""The files that are read as pictures, by their suffix.

Contract: paths in, paths out; nothing is opened. Imports neither torch nor Pillow, so that listing clips needs neither.
"""

from __future__ import annotations

from pathlib import Path

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Lower-case suffixes of the files that are read as pictures."""


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures directly in `folder`, sorted by name, without hidden files."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
