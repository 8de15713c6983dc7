"""Keys of clips in a cache: a hash of the file or array and the clip's part in seconds, whatever its name.

Contract: records in, keys out. Knows nothing of models, taps or folders.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from clipvid.data.content import HashLog, content_hash
from clipvid.data.files import files_of
from clipvid.data.records import Record, VideoDataset

CONTENT_HASH = "xxh3-128"
"""Name of the hash by which clips are known; part of the cache key."""

HASHES = "hashes.jsonl"
"""Name of the file, in the folder of a cache, with the hashes of clips by the stamps of their files."""


def clip_key(record: Record) -> str:
    """Return a clip's key: the hash of its file or array, start and end.

    Raise OSError for a file that cannot be opened.
    """
    content = content_hash(record.path) if record.array is None else record.array.content
    return f"{content[:32]}:{record.start}:{record.end}"


def stored_clip_keys(data: VideoDataset, folder: Path) -> list[str | None]:
    """Return `clip_keys`, and store the hashes of the files in the folder of a cache for later runs."""
    log = HashLog(folder / HASHES)
    keys = clip_keys(data)
    if folder.is_dir():
        with suppress(OSError):  # a cache that may only be read
            log.add([file for r in data if r.array is None and r.path.exists() for file in files_of(r.path)])
    return keys


def clip_keys(records: Iterable[Record]) -> list[str | None]:
    """Return the key of every clip; None for a file that is missing or cannot be opened."""
    keys: list[str | None] = []
    for record in records:
        try:
            keys.append(clip_key(record))
        except OSError:
            keys.append(None)
    return keys
