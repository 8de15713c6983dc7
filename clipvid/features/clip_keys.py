"""What a clip is called in a cache: by its file's content and its part in seconds, whatever the file is called.

Contract: records in, names out. Knows nothing of models, taps or folders.
"""

from __future__ import annotations

from collections.abc import Iterable

from clipvid.data.files import content_hash
from clipvid.data.records import Record


def clip_key(record: Record) -> str:
    """Of a clip's content: its file's, and the part of it in seconds. OSError for a file that cannot be opened."""
    return f"{content_hash(record.path)[:32]}:{record.start}:{record.end}"


def clip_keys(records: Iterable[Record]) -> list[str | None]:
    """Key of every clip; None where the file is not there or cannot be opened."""
    found: list[str | None] = []
    for record in records:
        try:
            found.append(clip_key(record))
        except OSError:
            found.append(None)
    return found
