"""Filters of a search in an index: checks, paths relative to the working directory, the note if no video passes.

Contract: the text of a filter and a store in; a Filter, or a note, out. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from clipvid.search.filters import COLUMNS, Both, Compare, Either, Filter, Not, OneOf, Value, columns_of, parse
from clipvid.search.stores.base import Store

HAS_LABEL = parse('label = "" or label != ""')
"""Filter of the videos that have a label; those without one fail every comparison."""


def checked_filter(where: str | None) -> str | None:
    """Return the text of a filter, or None for none; raise ValueError for a wrong one."""
    if where is not None:
        parse(where, COLUMNS)
    return where


def filter_of(where: str | None, store: Store) -> Filter | None:
    """Return the filter of a search among the rows of a store, whose paths are absolute."""
    if where is None:
        return None
    return _with_absolute_paths(parse(where, COLUMNS), lambda name: store.count(Compare("path", "=", name)) > 0)


def describe_no_hits(where: str, store: Store) -> str | None:
    """Return the note on a filter that no row of a store passes; None if one does."""
    condition = filter_of(where, store)
    if store.count(condition):
        return None
    note = f"no video of the index passes the filter {where}"
    if condition is not None and "label" in columns_of(condition) and not store.count(HAS_LABEL):
        note += (
            "; no video of the index has a label, since labels come from class folders (clipvid index build SOURCE "
            "--format folder) or another data set with classes"
        )
    return note


def _with_absolute_paths(condition: Filter, is_indexed: Callable[[str], bool]) -> Filter:
    """Return the filter with the relative paths of `=`, `!=` and `in` made absolute, as an index has them.

    A name that `is_indexed` as it is, such as that of an array, stays.
    """

    def absolute(value: Value) -> Value:
        is_relative = isinstance(value, str) and not os.path.isabs(value) and not is_indexed(value)
        return os.path.abspath(str(value)) if is_relative else value

    match condition:
        case Compare("path", "=" | "!=", value):
            return replace(condition, value=absolute(value))
        case OneOf("path", values):
            return replace(condition, values=tuple(map(absolute, values)))
        case Not(part):
            return Not(_with_absolute_paths(part, is_indexed))
        case Both(parts):
            return Both(tuple(_with_absolute_paths(part, is_indexed) for part in parts))
        case Either(parts):
            return Either(tuple(_with_absolute_paths(part, is_indexed) for part in parts))
        case _:
            return condition
