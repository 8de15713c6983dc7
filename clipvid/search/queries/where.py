"""Filters of a search in an index: their check, the condition on a store's rows, the note if no video passes.

Contract: the text of a filter and a store in; a Filter, or a note, out. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable

from clipvid.search.queries.filters import COLUMNS, Filter, Value, columns_of, parse, with_values
from clipvid.search.stores.base import Store

HAS_LABEL = parse('label = "" or label != ""')
"""Filter of the videos that have a label; those without one fail every comparison."""


def checked_filter(where: str | None) -> str | None:
    """Return the text of a filter, or None for none; raise ValueError for a wrong one."""
    if where is not None:
        parse(where, COLUMNS)
    return where


def filter_of(where: str | None, path_of: Callable[[Value], Value]) -> Filter | None:
    """Return the filter of a search; `path_of` gives what a store's column path has for a path in the filter."""
    return None if where is None else with_values(parse(where, COLUMNS), "path", path_of)


def describe_no_hits(where: str, condition: Filter, store: Store) -> str | None:
    """Return the note on a filter that no row of a store passes; None if one does."""
    if store.count(condition):
        return None
    note = f"no video of the index passes the filter {where}"
    if "label" in columns_of(condition) and not store.count(HAS_LABEL):
        note += (
            "; no video of the index has a label, since labels come from class folders (clipvid index build SOURCE "
            "--format folder) or another data set with classes"
        )
    return note
