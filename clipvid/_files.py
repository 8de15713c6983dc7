"""Files and folders written whole or not at all: write beside, then rename; and where none can be written, said early.

Contract: paths in; files and folders out, or what the operating system said in plain words. Imports nothing of clipvid.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def require_writable(path: str | Path, *, folder: bool = False) -> None:
    """ValueError where `whole_file`, or with `folder` `whole_folder`, could not write `path`: now, not after hours."""
    if os.path.isdir(path) and not folder:
        raise ValueError(f"{path} is a folder, a file should go there; name a file in it")
    if os.path.isfile(path) and folder:
        raise ValueError(f"{path} is a file, a folder should go there; choose another name")
    place = next((parent for parent in Path(path).absolute().parents if os.path.lexists(parent)), path)
    if not os.path.isdir(place):
        raise ValueError(f"{path} cannot be written: {place} is no folder; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: {place} may not be changed; choose another place")


def explained(error: OSError) -> str:
    """What the operating system refused as a sentence of path and reason; an error with words of its own as it is."""
    if error.errno is None:
        return str(error)
    reason = (error.strerror or "unknown error").lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full; make room, or choose another place"
    path = re.sub(r"\.([^/\\]+)\.\d+\.(?:part|old)", r"\1", str(error.filename or ""))  # of a draft, what it is to be
    return f"{path} cannot be read or changed: {reason}" if path else reason


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` on success, delete it on any failure.

    An OSError that names no path, as that of a full disk, is given this one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as a write to a full disk, which knows no path
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Any], *, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file; OSError where it cannot be written, such as on a full disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # which is no OSError, though its cause is
        raise OSError(f"{path.parent} cannot be written ({error}); make room, or choose another folder") from error
    path.chmod(0o666 & ~_UMASK)  # safetensors keeps what it writes to its owner; others share caches and models


_UMASK = os.umask(0)
os.umask(_UMASK)  # it can be read by setting it alone


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder beside `path` to fill; it takes the place of `path` on success, and is gone on failure.

    Raises FileExistsError when `path` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, a folder should go there; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        if path.exists():
            os.replace(path, old)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
