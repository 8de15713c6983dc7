"""Manifests: the hashes of all files of a stored folder, compared when the folder is read.

Contract: `seal` a folder that is complete, and read it with `read_sealed`: a changed or missing file raises
the given error, and so does a changed manifest. A folder that is replaced while it is read is read again, so the result
is of one version. Hashes are XXH3-128: they find accidents, not forgery. The only file that imports xxhash. Knows
nothing of the content.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import xxhash

from clipvid.runtime.display.names import show
from clipvid.runtime.files import describe_os_error, is_being_replaced, open_regular, read_file, recover
from clipvid.runtime.storage.schema import decode

MANIFEST = "manifest.json"
"""Name of the manifest in a sealed folder."""
VERSION = 1
"""Version of the manifest's format."""
BLOCK = 1 << 22
"""Bytes that are read and hashed at a time."""
HASH_LENGTH = 32
"""Hexadecimal digits of a hash."""
TRIES, PAUSE = 200, 0.002
"""Readings of a folder that is replaced each time, before it is an error, and seconds between them."""
T = TypeVar("T")


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """Hashes of the files of a folder by their relative names."""

    format_version: int
    id: str
    """Random, so that two versions of a folder differ even where their files are equal."""
    files: dict[str, str]
    """Hash of each file, as XXH3-128 in hexadecimal digits."""
    check: str
    """Hash of the fields above."""


def seal(folder: Path) -> None:
    """Write the manifest of all files in `folder` and below it."""
    identity, hashes = uuid.uuid4().hex, {name: hash_file(folder / name) for name in _files(folder)}
    manifest = Manifest(VERSION, identity, hashes, _check(VERSION, identity, hashes))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def is_sealed(folder: Path) -> bool:
    """Return True if the folder has a manifest; folders of older versions have none."""
    return (folder / MANIFEST).is_file()


def read_sealed(
    folder: Path,
    read: Callable[[Path], T],
    *,
    error: type[Exception],
    advice: str,
    only: Collection[str] | None = None,
) -> T:
    """Return `read(folder)` of one version of a folder, whose files are compared with its manifest first.

    A folder without a manifest is read as it is. `read` is called again if the folder was replaced meanwhile, so it
    should only read files. Files that the manifest does not list are ignored.

    Args:
        error: exception to raise for a folder that differs from its manifest.
        advice: end of its message, such as "save the model again".
        only: names of the files that `read` reads, if it does not read all: the others are not compared.
    """
    recover(folder)
    for _ in range(TRIES):
        before = _content(folder, error=error, advice=advice)
        try:
            if before is not None:
                _compare(folder, before, only=only, error=error, advice=advice)
            result = read(folder)
        except Exception:
            if _content(folder, error=error, advice=advice) == before and not is_being_replaced(folder):
                raise
            time.sleep(PAUSE)
            continue
        if _content(folder, error=error, advice=advice) == before:
            return result
    raise error(f"{folder} was replaced {TRIES} times while it was read; wait for its writers and try again")


def verify(folder: Path, *, error: type[Exception], advice: str) -> int:
    """Compare a folder with its manifest, and return the number of files compared: 0 without a manifest."""
    return read_sealed(
        folder, lambda folder: count_files(folder, error=error, advice=advice), error=error, advice=advice
    )


def count_files(folder: Path, *, error: type[Exception], advice: str) -> int:
    """Return the number of files in the manifest of a folder, 0 without a manifest; the files are not compared."""
    content = _content(folder, error=error, advice=advice)
    return 0 if content is None else len(_parsed(folder, content, error=error, advice=advice).files)


def _content(folder: Path, *, error: type[Exception], advice: str) -> bytes | None:
    try:
        return read_file(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise error(f"{describe_os_error(problem)}; {advice}") from problem


def _parsed(folder: Path, content: bytes, *, error: type[Exception], advice: str) -> Manifest:
    path = folder / MANIFEST
    manifest = decode(content, Manifest, source=path, error=error, advice=advice)
    if manifest.format_version != VERSION:
        raise error(f"{path} has format {manifest.format_version}, this version of clipvid reads {VERSION}; {advice}")
    if manifest.check != _check(manifest.format_version, manifest.id, manifest.files):
        raise error(f"{path} is damaged: it has changed since it was written; {advice}")
    return manifest


def _compare(
    folder: Path, content: bytes, *, only: Collection[str] | None, error: type[Exception], advice: str
) -> None:
    """Raise `error` for a file that is missing, or whose bytes are not those of the manifest."""
    files = _parsed(folder, content, error=error, advice=advice).files
    for name, expected in files.items():
        if only is not None and name not in only:
            continue
        if not _is_below(name):
            raise error(f"{folder / MANIFEST} is damaged: it names {show(name)}, which is not in the folder; {advice}")
        try:
            actual = hash_file(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as problem:
            # ValueError: no path has a NUL or half a surrogate pair.
            raise error(f"{folder} is damaged: {show(name)} is missing; {advice}") from problem
        except PermissionError:
            raise
        except OSError as problem:
            raise error(f"{describe_os_error(problem)}; {advice}") from problem
        if actual != expected:
            raise error(f"{folder / name} is damaged: its bytes have changed since it was written; {advice}")


def _is_below(name: str) -> bool:
    """Return True for the relative name of a file in a folder or below it."""
    path = Path(name)
    return bool(path.name) and not path.anchor and ".." not in path.parts


def hash_bytes(data: bytes | memoryview) -> str:
    """Return the XXH3-128 of bytes in hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def hash_file(path: Path, *, size: int | None = None) -> str:
    """Return the XXH3-128 of a file, or of its first `size` bytes, in hexadecimal digits.

    Raise OSError for a pipe, device or socket, which is never opened since it may have no end.
    """
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        buffer = memoryview(bytearray(min(BLOCK, max(1, os.fstat(file.fileno()).st_size))))
        left = len(buffer) if size is None else size
        while n_bytes := file.readinto(buffer[: min(left, len(buffer))]):
            digest.update(buffer[:n_bytes])
            left = left if size is None else left - n_bytes
    return digest.hexdigest()


def _files(folder: Path) -> list[str]:
    names = [
        Path(parent, name).relative_to(folder).as_posix() for parent, _, entries in os.walk(folder) for name in entries
    ]
    return sorted(name for name in names if name != MANIFEST)


def _check(version: int, identity: str, hashes: Mapping[str, str]) -> str:
    return hash_bytes(msgspec.json.encode([version, identity, sorted(hashes.items())]))
