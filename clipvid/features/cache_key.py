"""Cache keys: everything that determines the bytes in a cache folder, of taps or of caption embeddings.

Contract: plain data in, folder names and a cache_key.json out, and back. A folder is named after its cache key and
holds it. Knows nothing of the other files in the folder.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from clipvid.errors import CacheError
from clipvid.runtime.files import atomic_file, read_file
from clipvid.runtime.storage.schema import decode
from clipvid.runtime.text import pluralize

CACHE_KEY_FILE = "cache_key.json"
"""File name of the cache key in its folder."""
TEXT = "text-"
"""Prefix of the names of folders of caption embeddings."""
MODES = ("taps", "first_layer")
"""Cache modes: taps, every level that the branch reads; first_layer, the lowest of them alone."""


@dataclass(frozen=True)
class CacheKey:
    """Everything that determines the bytes of a clip's taps, except the clip itself."""

    tower_fingerprint: str
    """`Backbone.tower_fingerprint`."""
    preprocess: str
    """Image preprocessing, as JSON."""
    precision: str
    """Precision in which the tower ran; auto is resolved."""
    frames: int
    sampler: str
    levels: tuple[int, ...]
    """Levels that are stored."""
    kind: str
    """Storage format of the features: see clipvid.features.taps.codec."""
    mode: str
    """One of MODES."""
    augmented_views: str = ""
    """Settings of augmented views, as JSON; empty for one fixed view."""
    content_hash: str = ""
    """Hash by which clips are known; empty in caches of versions that hashed samples of a file, which are not read."""

    @property
    def key(self) -> str:
        """Name of the folder of such taps."""
        optional = ("augmented_views", "content_hash")
        return _hash({name: value for name, value in asdict(self).items() if name not in optional or value})

    def __str__(self) -> str:
        levels = ", ".join(map(str, self.levels)) or "none"
        summary = f"{pluralize(self.frames, 'frame')} ({self.sampler}), levels {levels}, {self.kind}, {self.precision}"
        extras = [", first_layer"] if self.mode == "first_layer" else []
        extras += [f", augmented views {self.augmented_views}"] if self.augmented_views else []
        extras += [] if self.content_hash else [", of an earlier version, no longer read"]
        return f"{summary}{''.join(extras)}, tower {self.tower_fingerprint[:12]}"


@dataclass(frozen=True)
class TextCacheKey:
    """Everything that determines the embedding of token ids, except the ids themselves."""

    tower_fingerprint: str
    """`Backbone.text_fingerprint`."""
    precision: str
    """Precision in which the text tower ran; auto is resolved."""

    @property
    def key(self) -> str:
        """Name of the folder of such embeddings."""
        return f"{TEXT}{_hash(asdict(self))}"

    def __str__(self) -> str:
        return f"caption embeddings, {self.precision}, text tower {self.tower_fingerprint[:12]}"


def _hash(fields: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def write_cache_key(folder: Path, cache_key: CacheKey | TextCacheKey) -> None:
    """Create the folder and write its cache key into it, unless the file already has this content."""
    path = folder / CACHE_KEY_FILE
    text = json.dumps(asdict(cache_key), indent=2) + "\n"
    if not path.exists() or read_file(path) != text.encode():
        with atomic_file(path) as draft:
            draft.write_bytes(text.encode())


def repair_cache_key(folder: Path, cache_key: CacheKey | TextCacheKey) -> None:
    """Rewrite the cache key of an existing folder if the file is damaged or missing and the folder is writable."""
    if folder.is_dir():
        with suppress(OSError):
            write_cache_key(folder, cache_key)


def read_cache_key(folder: Path) -> CacheKey | TextCacheKey:
    """Return the cache key of a folder. Raise CacheError if it is unreadable or differs from the folder's name."""
    path = folder / CACHE_KEY_FILE
    try:
        content = read_file(path)
    except OSError as error:
        raise CacheError(f"{path} is not a valid cache key ({error})") from error
    kind = TextCacheKey if folder.name.startswith(TEXT) else CacheKey
    cache_key = decode(content, kind, source=path, error=CacheError, advice="", fault="is not a valid cache key")
    if cache_key.key != folder.name:
        raise CacheError(f"{folder / CACHE_KEY_FILE} does not match the name of its folder")
    return cache_key
