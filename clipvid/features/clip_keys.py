"""Keys of clips in a cache: a hash of the file or array and the clip's part in seconds, whatever its name.

Contract: records in, keys out. Knows nothing of models, taps or folders.
"""

from __future__ import annotations

from collections.abc import Iterable

from clipvid.data.files import content_hash
from clipvid.data.records import Record


def clip_key(record: Record) -> str:
    """Return a clip's key: the hash of its file or array, start and end.

    Raise OSError for a file that cannot be opened.
    """
    content = content_hash(record.path) if record.array is None else record.array.content
    return f"{content[:32]}:{record.start}:{record.end}"


def clip_keys(records: Iterable[Record]) -> list[str | None]:
    """Return the key of every clip; None for a file that is missing or cannot be opened."""
    keys: list[str | None] = []
    for record in records:
        try:
            keys.append(clip_key(record))
        except OSError:
            keys.append(None)
    return keys
