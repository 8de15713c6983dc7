"""The files of a cache: a few clips or captions each, written whole or not at all, mapped, checked when first read.

Contract: named tensors with one row a clip, and the clips' keys, in; the same rows by key out. A file is one of
safetensors whose header holds the keys, a CRC-32 of every clip's bytes and the folder that it was written for, so a
flipped bit, a cut file, a foreign or a stale one is an error that names the file. Several processes may write to one
folder: each file has a name of its own, and a clip that two of them wrote is there twice and equal. Knows nothing of
towers, videos or what the tensors mean.
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
from clipvid.runtime.files import atomic_file, write_tensors

SUFFIX = ".safetensors"
FORMAT = "clipvid-cache-2"


def write_shard(folder: Path, keys: Sequence[str], tensors: Mapping[str, Tensor], *, name: str | None = None) -> Path:
    """One file of these clips; `tensors` have one row a clip, in the order of `keys`. It has a name of its own, or
    `name`, for whoever knows of the content beforehand.
    """
    if wrong := [name for name, tensor in tensors.items() if len(tensor) != len(keys)]:
        raise ValueError(f"{wrong[0]} has {len(tensors[wrong[0]])} rows for {len(keys)} clips; give one a clip")
    checks = [_crc(_row(tensors, row)) for row in range(len(keys))]
    header = {"format": FORMAT, "keys": json.dumps(list(keys)), "checks": json.dumps(checks), "folder": folder.name}
    path = folder / f"{name or uuid.uuid4().hex}{SUFFIX}"
    with atomic_file(path) as beside:
        write_tensors(beside, tensors, metadata=header)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before what it names
    return path


class Shards:
    """All files of a folder, each opened when it is needed; of a clip that is there more than once, one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        self._place: dict[str, tuple[Path, int]] = {}
        self._checks: dict[str, int] = {}
        self._checked: set[str] = set()
        self._known: set[Path] = set()
        self.look()

    def look(self) -> None:
        """Take note of files that others have written since."""
        for path in shard_files(self.folder):
            if path not in self._known:
                self._note(path)

    def _note(self, path: Path) -> None:
        header = _header(path)
        for row, (key, check) in enumerate(zip(*header, strict=True)):
            if key not in self._place:
                self._place[key], self._checks[key] = (path, row), check
        self._known.add(path)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def row(self, key: str) -> dict[str, Tensor]:
        """The tensors of one clip, mapped from its file; CacheError where its bytes are not those that were written."""
        path, row = self._place[key]
        if path not in self._open:
            self._open[path] = _tensors(path)
        found = _row(self._open[path], row)
        if key not in self._checked:
            _check(found, self._checks[key], path=path, row=row)
            self._checked.add(key)
        return found


ADVICE = "clipvid cache prune removes such files, and the next run makes their clips anew"


def shard_files(folder: Path) -> list[Path]:
    """The finished files of a folder; drafts begin with a dot."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def check_shard(path: Path, *, whole: bool) -> int:
    """How many clips a file holds; CacheError where its header, or with `whole` any byte, is not what was written."""
    keys, checks = _header(path)
    if whole:
        tensors = _tensors(path)
        for row, check in enumerate(checks):
            _check(_row(tensors, row), check, path=path, row=row)
    return len(keys)


def read_shard(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """All of a file that holds these clips in this order; CacheError where any byte is not what was written."""
    found, checks = _header(path)
    if found != list(keys):
        raise CacheError(f"{path} is damaged: it holds other rows than its name stands for; {ADVICE}")
    tensors = _tensors(path)
    for row, check in enumerate(checks):
        _check(_row(tensors, row), check, path=path, row=row)
    return tensors


def _row(tensors: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: tensor[row] for name, tensor in tensors.items()}


def _check(clip: Mapping[str, Tensor], check: int, *, path: Path, row: int) -> None:
    if _crc(clip) != check:
        raise CacheError(f"{path} is damaged: the bytes of clip {row} are not those that were written; {ADVICE}")


def _require_readable(path: Path) -> None:
    """PermissionError for a file of which this user may not see the content: that is no damage."""
    if path.exists() and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _header(path: Path) -> tuple[list[str], list[int]]:
    _require_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            keys, checks = json.loads(told["keys"]), json.loads(told["checks"])
            rows = {file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CacheError(f"{path} is damaged or cut off ({error}); {ADVICE}") from error
    if told.get("format") != FORMAT:
        raise CacheError(f"{path} has format {told.get('format')}, this version reads {FORMAT}; {ADVICE}")
    if told.get("folder") != path.parent.name:
        raise CacheError(
            f"{path} is stale: it was written for {told.get('folder')}, by another tower or reading; {ADVICE}"
        )
    if rows != {len(keys)} or len(checks) != len(keys):
        raise CacheError(
            f"{path} is damaged: {len(keys)} clips are announced, its tensors hold {sorted(rows)}; {ADVICE}"
        )
    return keys, checks


def _tensors(path: Path) -> dict[str, Tensor]:
    _require_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # mapped, not read
    except (SafetensorError, OSError) as error:
        raise CacheError(f"{path} is damaged or gone ({error}); {ADVICE}") from error


def _crc(tensors: Mapping[str, Tensor]) -> int:
    """Of the names, shapes, types and bytes of one clip."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), found)
        data: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
        found = zlib.crc32(data, found)
    return found
