"""Small tables of text as aligned columns, Markdown, LaTeX and HTML, with the special characters of each escaped.

Contract: a header and rows of strings in, text out. The HTML has no script, no style sheet and no link.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from clipvid.runtime.display.names import as_utf8
from clipvid.runtime.optional import require

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip
"""LaTeX's special characters and how each is written in text."""

CELL = 200
"""Number of characters of the longest cell in HTML."""
Rows = Sequence[Sequence[str]]


def markdown_table(header: Sequence[str], rows: Rows) -> str:
    """Return a Markdown table whose columns after the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines)


def latex_table(header: Sequence[str], rows: Rows) -> str:
    """Return a LaTeX tabular with the rules of the package booktabs."""
    lines = [" & ".join(latex_text(cell) for cell in line) + r" \\" for line in (header, *rows)]
    columns = "l" + "r" * (len(header) - 1)
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])


def latex_text(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def html_table(title: str, header: Sequence[str], rows: Rows, *, limit: int = 20, total: int | None = None) -> str:
    """Return an HTML table below a title, with at most `limit` rows and a last line that counts the others.

    Cells are cut to `CELL` characters, a title to five times as many.
    `total` is the number of rows if `rows` are only the first of them.
    """
    head = "".join(f"<th>{_html(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>" for row in rows[:limit])
    left = (len(rows) if total is None else total) - min(len(rows), limit)
    more = f"<p>and {left} more</p>" if left else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><p><b>{_html(title, longest=5 * CELL)}</b></p>{table}{more}</div>"


def data_frame(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> pd.DataFrame:
    """Return a pandas DataFrame whose texts UTF-8 can encode (`as_utf8`), as pandas demands; a file name may not be."""
    pandas: Any = require("pandas", why="to_frame")
    plain = [tuple(as_utf8(cell) if isinstance(cell, str) else cell for cell in row) for row in rows]
    return pandas.DataFrame(plain, columns=list(columns))


def _html(text: str, *, longest: int = CELL) -> str:
    """Return text for HTML: cut to a number of characters, then escaped."""
    return escape(text if len(text) <= longest else f"{text[: longest - 1]}…")


def _markdown(cell: str) -> str:
    """Return text for a cell of a Markdown table: one line, with | and HTML's characters escaped."""
    return escape(" ".join(cell.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")
