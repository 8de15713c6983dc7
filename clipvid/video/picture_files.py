"""Picture files by their names, without importing what reads them, so that wrong paths are refused at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Lower-case suffixes of the files that are read as pictures."""


def in_frame_order(pictures: Iterable[Path]) -> list[Path]:
    """Return pictures in the order in which they are the frames of a clip: by the last number of their names.

    Pictures of which one has no number, and which make no clip, are sorted by name.
    """
    numbers = {picture: re.findall(r"\d+", picture.stem)[-1:] for picture in pictures}
    if all(numbers.values()):
        return sorted(numbers, key=lambda picture: (int(numbers[picture][0]), picture.name))
    return sorted(numbers)


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures directly in `folder`, sorted by name, without hidden files."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
