"""Table: the text of a csv file or a DataFrame, with the locations that error messages give.

Contract: plain data. Knows nothing of columns' meanings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table as text: `columns` in lower case, and (number, row) pairs; `unit` is what the numbers count.

    A field is None for a missing value, which a csv file cannot express: its empty field is an empty text.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[tuple[int, Mapping[str, str | None]]]
    unit: str = "line"

    @property
    def header(self) -> str:
        """Location of the column names for messages."""
        return f"{self.name}, line 1" if self.unit == "line" else self.name

    def at(self, number: int) -> str:
        """Return the location of a row for messages."""
        return f"{self.name}, {self.unit} {number}"
