"""Keys of clips in a cache: a hash of the file or array and the clip's part in seconds, whatever its name.

Contract: records in, keys out. Knows nothing of models, taps or folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from clipvid.data.files import files_of
from clipvid.data.probing.content import HashLog, content_hash
from clipvid.data.records import Record, VideoDataset
from clipvid.runtime.display.progress import progress_bar

CONTENT_HASH = "xxh3-128"
"""Name of the hash by which clips are known; part of the cache key."""

PART = 1000
"""Clips that are hashed before their hashes are stored."""
HASHES = "hashes.jsonl"
"""Name of the file, in the folder of a cache, with the hashes of clips by the stamps of their files."""


def clip_key(record: Record) -> str:
    """Return a clip's key: the hash of its file or array, start and end.

    Raise OSError for a file that cannot be opened.
    """
    content = content_hash(record.path) if record.array is None else record.array.content
    return f"{content[:32]}:{record.start}:{record.end}"


def stored_clip_keys(data: VideoDataset, folder: Path, *, progress: bool = False) -> list[str | None]:
    """Return `clip_keys`, and store the hashes of the files in the folder of a cache, for later runs, on the way."""
    log = HashLog(folder / HASHES)
    keys: list[str | None] = []
    parts = [data.records[start : start + PART] for start in range(0, len(data), PART)]
    with progress_bar(len(data), f"hash {data.name}", unit="file", shown=progress and len(parts) > 1) as bar:
        for part in parts:
            keys += clip_keys(part)
            if folder.is_dir():
                with suppress(OSError):  # a cache that may only be read
                    log.add([file for r in part if r.array is None and r.path.exists() for file in files_of(r.path)])
            bar.update(len(part))
    return keys


def clip_keys(records: Iterable[Record]) -> list[str | None]:
    """Return the key of every clip, of files hashed side by side; None for a file that cannot be opened."""

    def key(record: Record) -> str | None:
        try:
            return clip_key(record)
        except OSError:
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter's lock
        return list(pool.map(key, records))
