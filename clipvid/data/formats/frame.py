"""A pandas DataFrame as a table of text, for the checks that a csv file passes.

Contract: a DataFrame in, a Table out. A missing value (None, NaN, NA) is None; rows are counted from 0, as
`df.iloc` does. Does not import pandas: the frame brings its own methods.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from clipvid.data.clips.labels import as_text
from clipvid.data.formats.table import Table
from clipvid.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def frame_table(df: pd.DataFrame) -> Table:
    """Return the content of a DataFrame as text; raise DataError for cells that hold several values."""
    if not hasattr(df, "columns"):
        raise ValueError(f"df must be a pandas DataFrame, got {df!r:.80}; build one by pandas.DataFrame(rows)")
    name = "the DataFrame"
    columns = [str(column).strip().lower() for column in df.columns]
    if duplicates := sorted({column for column in columns if columns.count(column) > 1}):
        raise DataError(f"{name}: duplicate column {duplicates[0]!r}; rename one (case does not matter)")
    cells = []
    for position, column in enumerate(columns):
        series = df.iloc[:, position]
        pairs = zip(series.tolist(), series.isna().tolist(), strict=True)
        cells.append(
            [None if empty else _text(value, column, f"{name}, row {i}") for i, (value, empty) in enumerate(pairs)]
        )
    rows = [(number, dict(zip(columns, row, strict=True))) for number, row in enumerate(zip(*cells, strict=True))]
    return Table(name, columns, rows, unit="row")


def _text(value: Any, column: str, location: str) -> str:
    """Return a cell as a csv file would have it."""
    if isinstance(value, list | tuple | set | dict) or hasattr(value, "tolist"):
        raise DataError(
            f"{location}: the {column} must be a single value, got {type(value).__name__}; "
            f"df.explode({column!r}) makes a row of each value"
        )
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return as_text(value).strip()
