"""What decides the bytes of a cache's folder: of taps, or of caption embeddings. A folder is named by it and holds it.

Contract: plain data in, folder names and a cache_key.json out, and back. Knows nothing of what the files beside it
hold.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from clipvid.errors import CacheError
from clipvid.runtime.files import atomic_file
from clipvid.runtime.text import pluralize

RECIPE = "cache_key.json"
TEXT = "text-"
"""With this the names of folders of caption embeddings begin."""
MODES = ("taps", "first_layer")
"""What is kept of the tower: taps, every level that the branch reads; first_layer, the lowest of them alone."""


@dataclass(frozen=True)
class CacheKey:
    """Everything that decides the bytes of a clip's taps, but the clip itself."""

    tower: str
    """`Backbone.tower_fingerprint`."""
    preprocess: str
    """How images are prepared, as JSON."""
    precision: str
    """In which the tower ran, by name; auto is resolved."""
    frames: int
    sampler: str
    levels: tuple[int, ...]
    """Those that are kept."""
    kind: str
    """How features are kept: see clipvid.features.codec."""
    mode: str
    """One of MODES."""
    drawn: str = ""
    """How views were drawn by chance, as JSON; empty for the one view that is fixed."""

    @property
    def key(self) -> str:
        """What a folder of such taps is called."""
        return _hash({name: value for name, value in asdict(self).items() if name != "drawn" or value})

    def __str__(self) -> str:
        levels = ", ".join(map(str, self.levels)) or "none"
        told = f"{pluralize(self.frames, 'frame')} ({self.sampler}), levels {levels}, {self.kind}, {self.precision}"
        more = [", first_layer"] if self.mode == "first_layer" else []
        more += [f", views drawn by {self.drawn}"] if self.drawn else []
        return f"{told}{''.join(more)}, tower {self.tower[:12]}"


@dataclass(frozen=True)
class TextCacheKey:
    """Everything that decides the embedding of token ids."""

    tower: str
    """`Backbone.text_fingerprint`."""
    precision: str
    """In which the text tower ran, by name; auto is resolved."""

    @property
    def key(self) -> str:
        """What a folder of such embeddings is called."""
        return f"{TEXT}{_hash(asdict(self))}"

    def __str__(self) -> str:
        return f"caption embeddings, {self.precision}, text tower {self.tower[:12]}"


def _hash(fields: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def write_cache_key(folder: Path, cache_key: CacheKey | TextCacheKey) -> None:
    """Make the folder and note in it what it holds, unless that is done."""
    path = folder / RECIPE
    text = json.dumps(asdict(cache_key), indent=2) + "\n"
    if not path.exists() or path.read_bytes() != text.encode():
        with atomic_file(path) as beside:
            beside.write_bytes(text.encode())


def repair_cache_key(folder: Path, cache_key: CacheKey | TextCacheKey) -> None:
    """Write the note of a folder that is there anew, where it is damaged or gone and the folder can be written to."""
    if folder.is_dir():
        with suppress(OSError):
            write_cache_key(folder, cache_key)


def read_cache_key(folder: Path) -> CacheKey | TextCacheKey:
    """What a folder holds; CacheError where that cannot be read, or is not what the folder's name stands for."""
    try:
        told = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        cache_key = CacheKey(**{**told, "levels": tuple(told["levels"])}) if "levels" in told else TextCacheKey(**told)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CacheError(f"{folder / RECIPE} is no recipe of a tap cache ({error})") from error
    if cache_key.key != folder.name:
        raise CacheError(f"{folder / RECIPE} describes other taps than its folder's name stands for")
    return cache_key
