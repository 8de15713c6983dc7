"""Files and folders written whole or not at all: write beside, then rename; and where none can be written, said early.
Also folders that one process alone may fill.

Contract: paths in; files and folders out, or what the operating system said in plain words. Imports nothing of clipvid.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


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


@contextmanager
def held(folder: str | Path, *, whole: bool = False) -> Iterator[None]:
    """Fill `folder` alone in the block: FileExistsError where another process, or another block, holds it.

    What is held is a file .lock in it; beside it, named after it, with `whole`, for a folder that is replaced as one.
    The system frees it when its process ends, however it ends, so one that a killed process left means nothing. Where
    the file system has no locks nothing is held.
    """
    place = Path(folder).absolute()
    lock = place.with_name(f".{place.name}.lock") if whole else place / ".lock"
    made = not lock.parent.exists()
    file = _locked(lock)
    if file is None:
        raise FileExistsError(f"another run is writing to {folder}; wait until it ends, or choose another folder")
    try:
        yield
    finally:
        if fcntl is None:  # Windows, which removes no open file
            os.close(file)
        with suppress(OSError):
            lock.unlink()  # while it is held, so that whoever opened it meanwhile can see that it is gone
        if fcntl is not None:
            os.close(file)
        with suppress(OSError):  # where it holds something by now
            if made:
                lock.parent.rmdir()


def _locked(path: Path) -> int | None:
    """A descriptor of the file that holds its lock, None where another does."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # whoever made the folder has just removed it
            continue
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError:  # no locks here, as on some network file systems
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)  # it was removed in the meantime, by the one who held it


def describe_os_error(error: OSError) -> str:
    """What the operating system refused as a sentence of path and reason; an error with words of its own as it is."""
    if error.errno is None:
        return str(error)
    reason = (error.strerror or "unknown error").lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full; make room, or choose another place"
    path = re.sub(r"\.([^/\\]+)\.\d+\.(?:part|old)", r"\1", str(error.filename or ""))  # of a draft, what it is to be
    return f"{path} cannot be read or changed: {reason}" if path else reason


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
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
    path.chmod(_mode_of_a_new_file(path))  # safetensors writes for the owner alone; others share caches and models


def _mode_of_a_new_file(path: Path) -> int:
    """Return the mode that the system gives a new file beside `path`: it follows the umask without setting it."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.mode")
    file = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        return stat.S_IMODE(os.fstat(file).st_mode)
    finally:
        os.close(file)
        probe.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
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
