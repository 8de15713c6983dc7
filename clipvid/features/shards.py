"""Shards, the files of a cache: a few clips or captions each, written atomically, memory-mapped, checked at first read.

Contract: named tensors with one row per clip, and the clips' keys, in; the same rows by key out. A shard is a
safetensors file whose header holds the keys, a CRC-32 of every clip's bytes, the folder that it was written for and a
hash of these three, so a flipped bit, a cut file, a foreign or a stale one raises an error that names the file. Several
processes may write to one folder: each shard has its own name, and a clip written by two of them is stored twice, with
equal bytes. Knows nothing of towers, videos or the meaning of the tensors.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipvid.errors import CacheError
from clipvid.runtime.files import atomic_file, require_regular, write_tensors
from clipvid.runtime.precision import is_finite
from clipvid.runtime.storage.manifest import hash_bytes
from clipvid.runtime.storage.schema import decode

SUFFIX = ".safetensors"
FORMAT, OLDER = "clipvid-cache-3", "clipvid-cache-2"
"""Name of the format that is written, and of the earlier one that is read too, whose header has no hash."""


def write_shard(folder: Path, keys: Sequence[str], tensors: Mapping[str, Tensor], *, name: str | None = None) -> Path:
    """Write one shard of these clips and return its path; `tensors` have one row per clip, in the order of `keys`.

    The file gets a random unique name, or `name` for content that is known beforehand.
    """
    if uneven := [name for name, tensor in tensors.items() if len(tensor) != len(keys)]:
        raise ValueError(f"{uneven[0]} has {len(tensors[uneven[0]])} rows for {len(keys)} clips; give one row per clip")
    if wrong := [part for part, tensor in tensors.items() if not is_finite(tensor)]:
        raise CacheError(
            f"{wrong[0]} of a clip is not finite, so it is not stored; check the model's weights, or take another "
            "precision"
        )
    checks = [_crc(_row(tensors, row)) for row in range(len(keys))]
    header = {"format": FORMAT, "keys": json.dumps(list(keys)), "checks": json.dumps(checks), "folder": folder.name}
    header["hash"] = _header_hash(header)
    path = folder / f"{name or uuid.uuid4().hex}{SUFFIX}"
    with atomic_file(path) as draft:
        write_tensors(draft, tensors, metadata=header)
    return path


class Shards:
    """All shards of a folder, each opened when needed; a clip stored more than once is read from one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        self._location: dict[str, tuple[Path, int]] = {}
        self._checks: dict[str, int] = {}
        self._checked: set[str] = set()
        self._indexed: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """Index the shards that were written since the last call, by this or another process."""
        for path in shard_files(self.folder):
            if path not in self._indexed:
                self._index(path)

    def _index(self, path: Path) -> None:
        header = _header(path)
        for row, (key, check) in enumerate(zip(*header, strict=True)):
            if key not in self._location:
                self._location[key], self._checks[key] = (path, row), check
        self._indexed.add(path)

    def __contains__(self, key: str) -> bool:
        return key in self._location

    def path_of(self, key: str) -> Path:
        """Return the file that holds a clip."""
        return self._location[key][0]

    def row(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of one clip, mapped from its file. Raise CacheError if its bytes have changed."""
        path, row = self._location[key]
        if path not in self._open:
            self._open[path] = _tensors(path)
        clip = _row(self._open[path], row)
        if key not in self._checked:
            _check(clip, self._checks[key], path=path, row=row)
            self._checked.add(key)
        return clip


ADVICE = "clipvid cache prune removes such files, and the next run encodes their clips again"
"""Advice at the end of every message about a damaged shard."""


def shard_files(folder: Path) -> list[Path]:
    """Return the finished shards of a folder; names of unfinished ones begin with a dot."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def check_shard(path: Path, *, full: bool) -> int:
    """Return the number of clips in a shard. Raise CacheError if its header, or with `full` any byte, has changed."""
    keys, checks = _header(path)
    if full:
        tensors = _tensors(path)
        for row, check in enumerate(checks):
            _check(_row(tensors, row), check, path=path, row=row)
    return len(keys)


def read_shard(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """Return all tensors of a shard of exactly these keys. Raise CacheError if any byte has changed."""
    stored, checks = _header(path)
    if stored != list(keys):
        raise CacheError(f"{path} is damaged: its rows do not match its name; {ADVICE}")
    tensors = _tensors(path)
    for row, check in enumerate(checks):
        _check(_row(tensors, row), check, path=path, row=row)
    return tensors


def _row(tensors: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: tensor[row] for name, tensor in tensors.items()}


def _check(clip: Mapping[str, Tensor], check: int, *, path: Path, row: int) -> None:
    if _crc(clip) != check:
        raise CacheError(f"{path} is damaged: the bytes of clip {row} have changed since they were written; {ADVICE}")
    if not all(map(is_finite, clip.values())):
        raise CacheError(f"{path} is damaged: a value of clip {row} is not finite; {ADVICE}")


def _require_readable(path: Path) -> None:
    """Raise PermissionError for a file that this user may not read: it is not damaged, so pruning must keep it."""
    if path.exists() and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _header(path: Path) -> tuple[list[str], list[int]]:
    _require_readable(path)
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CacheError(f"{path} is damaged or cut off ({error}); {ADVICE}") from error
    if metadata.get("format") not in (FORMAT, OLDER):
        raise CacheError(f"{path} has format {metadata.get('format')}, this version reads {FORMAT}; {ADVICE}")
    if metadata["format"] == FORMAT and metadata.get("hash") != _header_hash(metadata):
        raise CacheError(f"{path} is damaged: its header has changed since it was written; {ADVICE}")
    refusal: Any = {"source": path, "error": CacheError, "advice": ADVICE}
    keys = decode(metadata.get("keys", "").encode(), list[str], **refusal)
    checks = decode(metadata.get("checks", "").encode(), list[int], **refusal)
    if metadata.get("folder") != path.parent.name:
        raise CacheError(
            f"{path} is stale: it was written for {metadata.get('folder')}, by another tower or data config; {ADVICE}"
        )
    rows = sorted({shape[0] if shape else 0 for shape in shapes})
    if rows != [len(keys)] or len(checks) != len(keys):
        raise CacheError(f"{path} is damaged: its header lists {len(keys)} clips, its tensors hold {rows}; {ADVICE}")
    return keys, checks


def _header_hash(header: Mapping[str, str]) -> str:
    """Return a hash of everything that a header says of the rows, apart from the hash itself."""
    return hash_bytes(json.dumps({**header, "hash": ""}, sort_keys=True).encode())


def _tensors(path: Path) -> dict[str, Tensor]:
    _require_readable(path)
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # mapped, not read
    except (SafetensorError, OSError) as error:
        raise CacheError(f"{path} is damaged or gone ({error}); {ADVICE}") from error


def _crc(tensors: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the names, shapes, types and bytes of one clip."""
    checksum = 0
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), checksum)
        data: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(data, checksum)
    return checksum
