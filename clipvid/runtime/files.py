"""Atomic files and folders: each is written under a temporary name, then renamed.

Also folder locks, and early checks that a path can be written.

Contract: paths in; files and folders out, or the operating system's error in plain words. Imports nothing of clipvid.
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
from tempfile import TemporaryDirectory
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None

_RETRIES = 100
"""Number of times that a lock's folder is made again; other processes hardly remove it that often."""


def require_writable(path: str | Path, *, folder: bool = False) -> None:
    """Raise ValueError if `atomic_file`, or with `folder` `atomic_folder`, could not write `path`.

    Call it before hours of work, not after them.
    """
    if os.path.isdir(path) and not folder:
        raise ValueError(f"{path} is a folder, a file should go there; name a file in it")
    if os.path.isfile(path) and folder:
        raise ValueError(f"{path} is a file, a folder should go there; choose another name")
    nearest = next((parent for parent in Path(path).absolute().parents if os.path.lexists(parent)), path)
    if not os.path.isdir(nearest):
        raise ValueError(f"{path} cannot be written: {nearest} is not a folder; choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: {nearest} is not writable; choose another place")
    try:
        # Only an attempt shows it: on a read-only file system and in /proc os.access may answer yes.
        with TemporaryDirectory(prefix=".clipvid-", dir=nearest):
            pass
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise ValueError(
            f"{path} cannot be written: {nearest} takes no new files ({reason}); choose another place"
        ) from error


@contextmanager
def lock_folder(folder: str | Path, *, outside: bool = False) -> Iterator[None]:
    """Lock `folder` during a `with` block; raise FileExistsError if it is locked already, by this process or another.

    The lock is a file .lock in the folder. Use `outside` for a folder that is replaced as a whole: the lock file is
    then beside the folder, and named after it. The system releases the lock when the process that holds it ends, even
    if it is killed, so a lock file that is left over locks nothing. On Windows, and on file systems without locks,
    nothing is locked.
    """
    path = Path(folder).absolute()
    lock = path.with_name(f".{path.name}.lock") if outside else path / ".lock"
    created = not lock.parent.exists()
    file = _open_locked(lock)
    if file is None:
        raise FileExistsError(f"another run is writing to {folder}; wait until it ends, or choose another folder")
    try:
        yield
    finally:
        if fcntl is None:  # Windows cannot remove an open file
            os.close(file)
        with suppress(OSError):
            lock.unlink()  # still locked: a process that opened the file earlier then finds it gone, and retries
        if fcntl is not None:
            os.close(file)
        with suppress(OSError):  # the folder may have been filled
            if created:
                lock.parent.rmdir()


def _open_locked(path: Path) -> int | None:
    """Return a descriptor of the file at `path` that holds its lock; None if another descriptor holds it.

    Raises OSError if the file cannot be created.
    """
    retries = _RETRIES
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the process that created the folder has just removed it
            if retries == 0:  # another cause, such as a folder in /proc
                raise
            retries -= 1
            continue
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError:  # some network file systems have no locks
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)  # The previous holder removed this file after it was opened here: try again.


def describe_os_error(error: OSError) -> str:
    """Return an operating system error as a sentence of path and reason; an error without errno as its own text."""
    if error.errno is None:
        return str(error)
    reason = (error.strerror or "unknown error").lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full; make room, or choose another place"
    # The message names the final path instead of the temporary one (.NAME.PID.part).
    path = re.sub(r"\.([^/\\]+)\.\d+\.(?:part|old)", r"\1", str(error.filename or ""))
    return f"{path} cannot be read or changed: {reason}" if path else reason


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; rename it to `path` on success, delete it on any failure.

    An OSError without a file name, such as that of a full disk, gets the name of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # such as a write to a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Any], *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raise OSError if it cannot be written, such as on a full disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # safetensors wraps the OSError
        path.unlink(missing_ok=True)  # before 0.8 it leaves the incomplete file
        raise OSError(f"{path.parent} cannot be written ({error}); make room, or choose another folder") from error
    # safetensors gives access to the owner alone, but caches and models are shared.
    path.chmod(_mode_of_a_new_file(path))


def _mode_of_a_new_file(path: Path) -> int:
    """Return the permissions of a new file beside `path`, found without setting the umask."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.mode")
    file = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        return stat.S_IMODE(os.fstat(file).st_mode)
    finally:
        os.close(file)
        probe.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` to fill; rename it to `path` on success, delete it on any failure.

    Raises FileExistsError if `path` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, a folder should go there; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
