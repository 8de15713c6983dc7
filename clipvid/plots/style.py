"""Style shared by all plots (colours, resolution), the kind of figure they return, and atomic writing of figures.

Contract: a figure and a path in, the file out. Correct and wrong answers differ in colour, shape and line style, for
colour-blind readers. Knows nothing of the contents of a figure.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

DPI = 130
INK, GREY, LINE, FILM, HOLE = "#1f2933", "#66737f", "#d9dee3", "#20242a", "#f2f4f6"
RIGHT, WRONG = "#0a8a66", "#c8402a"  # bluish green and vermilion differ for every common colour blindness
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEADING: dict[str, Any] = {"fontsize": 14, "fontweight": "bold", "color": INK, "parse_math": False}
HEAT = LinearSegmentedColormap.from_list("clipvid", ["#f6f9fb", "#b9d7e8", "#4b9ac4", "#0f5f94", "#0a2f55"])


class Picture(Figure):
    """A figure that no global state of matplotlib refers to, and that notebooks show."""

    def _repr_png_(self) -> bytes:
        """Return the figure as a PNG, for a notebook in which pyplot was never imported."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=DPI)
        return file.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure atomically and return the path; its suffix decides the format.

    Raise ValueError for a suffix that matplotlib cannot write.
    """
    path = Path(path)
    suffix, formats = path.suffix.lower().lstrip("."), figure.canvas.get_supported_filetypes()
    if suffix not in formats:
        raise ValueError(f"cannot draw {path.name!r}; choose a name that ends with one of {', '.join(sorted(formats))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(draft, format=suffix, dpi=DPI)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
