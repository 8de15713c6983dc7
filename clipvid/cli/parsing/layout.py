"""Layout of help pages: paragraphs and tables wrapped to the width of the terminal, as plain text without colours."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable

COLUMN, WIDEST = 28, 100
"""Column of the descriptions, and the largest width of a page."""


def width() -> int:
    """Return the width of help pages: that of the terminal, from 40 to 100 characters."""
    return max(40, min(shutil.get_terminal_size().columns, WIDEST))


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of a name and a description as two columns."""
    lines = []
    for name, description in rows:
        wrapped = textwrap.wrap(description, width() - COLUMN, break_on_hyphens=False) or [""]
        if len(name) + 4 > COLUMN:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:<{COLUMN - 2}}{wrapped.pop(0)}".rstrip())
        lines += [" " * COLUMN + line for line in wrapped]
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """Return a paragraph wrapped to the width of the page."""
    return textwrap.fill(" ".join(text.split()), width(), break_on_hyphens=False)
