"""Hits of a search, and the files of an index, as tables, JSON and a few lines.

Contract: hits in, best first, or paths and errors; text and tables out. Knows nothing of models or stores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvid.errors import VideoError
from clipvid.runtime.display.names import as_utf8, show
from clipvid.runtime.display.tables import data_frame, html_table
from clipvid.runtime.files import atomic_file
from clipvid.runtime.text import pluralize

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10
"""Number of hits that `repr` and notebooks show."""


@dataclass(frozen=True)
class Hit:
    """One search result: absolute path of a video, cosine similarity to the query, and rank (from 1)."""

    path: Path
    score: float
    rank: int
    outdated: str | None = None
    """"gone" or "changed" if the file is no longer the one that was embedded, so that the score is not of it;
    "unreadable" if the system refuses to look it up, so that this is unknown."""

    def __str__(self) -> str:
        advice = "; clipvid index refresh" if self.outdated in ("gone", "changed") else ""
        outdated = f" ({self.outdated}{advice})" if self.outdated else ""
        return f"{self.rank:>3}  {self.score:.3f}  {show(self.path)}{outdated}"


class Hits(list[Hit]):
    """The hits of one query, best first; a list. `query` is the sentence or the path; None for an embedding."""

    def __init__(self, hits: Iterable[Hit] = (), *, query: str | None = None) -> None:
        super().__init__(hits)
        self.query = query

    def to_frame(self) -> pd.DataFrame:
        """Return one row per hit: query, rank, path, score, outdated."""
        columns = ["query", "rank", "path", "score", "outdated"]
        rows = [(self.query, hit.rank, str(hit.path), hit.score, hit.outdated) for hit in self]
        return data_frame(rows, columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the query and its hits as plain data, the content of `to_json`."""
        hits = [{"rank": hit.rank, **asdict(hit), "path": str(hit.path)} for hit in self]
        return {"query": self.query, "hits": hits}

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the query and its hits as JSON: {"query": ..., "hits": [{"rank", "path", "score", "outdated"}, ...]}.

        With `path` the JSON is also written there, atomically.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        if as_utf8(text) != text:  # a file name has other bytes, which JSON can only escape
            text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            with atomic_file(path) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        return text

    def __repr__(self) -> str:
        query = "" if self.query is None else f" for {self.query!r}"
        lines = [str(hit) for hit in self[:SHOWN]]
        more = [f"     and {len(self) - SHOWN} more"] if len(self) > SHOWN else []
        return "\n".join([f"Hits({len(self)}{query})", *lines, *more])

    def _repr_html_(self) -> str:
        query = "" if self.query is None else f" for “{self.query}”"
        rows = [[str(hit.rank), f"{hit.score:.3f}", str(hit.path)] for hit in self]
        return html_table(f"{pluralize(len(self), 'hit')}{query}", ["rank", "score", "path"], rows, limit=SHOWN)


class IndexTable:
    """Base of an index, with its files as a table and for notebooks."""

    paths: tuple[Path, ...]
    skipped: tuple[VideoError, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per file: path, indexed (True or False) and reason (why a file was skipped, else "")."""
        rows = [(str(path), True, "") for path in self.paths]
        rows += [(str(error.path), False, error.reason) for error in self.skipped]
        return data_frame(rows, ["path", "indexed", "reason"])

    def _repr_html_(self) -> str:
        paths, skipped = self.paths, self.skipped
        rows = [[str(path), ""] for path in paths[:SHOWN]] + [[str(error.path), error.reason] for error in skipped]
        total = len(paths) + len(skipped)
        return html_table(repr(self), ["path", "skipped because"], rows, limit=SHOWN, total=total)
