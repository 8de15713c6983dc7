"""Atomic files and folders: each is written in a staging folder beside its place, then moved there whole.

Contract: paths in; files and folders out, or the operating system's error in plain words. A reader finds the earlier
version or the new one, never a part of either, and after a power failure too. A killed writer leaves a staging folder
(`.NAME.XXXXXXXX.part`), which holds a lock while its writer lives; the next writer to that folder deletes it, and so
does `remove_leftovers`. Ctrl-C, SIGTERM and SIGHUP wait for the end of a write. Imports nothing of clipvid but the
other files of this room.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipvid.runtime.signals import uninterrupted
from clipvid.runtime.storage.exchange import exchange
from clipvid.runtime.storage.folder_lock import is_locked
from clipvid.runtime.storage.staging import LOCK, NEW, OLD, STAGING, remove_staging, staged

NOT_REGULAR = "not a regular file (a pipe, a device or a socket)"
"""Reason for which special files are refused."""


def require_writable(path: str | Path, *, folder: bool = False) -> None:
    """Raise ValueError if `atomic_file`, or with `folder` `atomic_folder`, could not write `path`.

    Call it before hours of work, not after them.
    """
    if os.path.isdir(path) and not folder:
        raise ValueError(f"{path} is a folder, a file should go there; name a file in it")
    if os.path.isfile(path) and folder:
        raise ValueError(f"{path} is a file, a folder should go there; choose another name")
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is a device, a pipe or a socket and would be replaced; choose another name")
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


def describe_os_error(error: OSError) -> str:
    """Return an operating system error as a sentence of path and reason; an error without errno as its own text."""
    if error.errno is None:
        return str(error)
    reason = (error.strerror or "unknown error").lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full; make room, or choose another place"
    path = _final(str(error.filename or ""))
    return f"{path} cannot be read or changed: {reason}" if path else reason


def _final(path: str) -> str:
    """Return a path with that of the staging folder taken out, so that messages name the place that a user chose."""
    return re.sub(r"\.[^/\\]+\.part[/\\](?:new|old)[/\\]", "", path)


def read_file(path: str | Path, *, limit: int | None = None) -> bytes:
    """Return the bytes of a regular file.

    Raise OSError for a folder, for a pipe, device or socket, which is never opened since it may have no end, and for
    more than `limit` bytes.
    """
    require_regular(path)
    with open(path, "rb") as file:
        content = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(content) > limit:
        raise OSError(errno.EFBIG, f"it exceeds the limit of {limit} bytes", str(path))
    return content


def require_regular(path: str | Path) -> None:
    """Raise OSError for a folder, and for a pipe, device or socket, which would block or never end if it were read."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


def open_regular(path: str | Path) -> FileIO:
    """Open a regular file to read its bytes; raise OSError, as `read_file` does, for anything else."""
    require_regular(path)
    return open(path, "rb", buffering=0)


def append_line(path: Path, content: bytes) -> None:
    """Append lines in one write, so that those of several processes do not mix; raise OSError, which names the file.

    Lines of which a full disk took only a part are removed again.
    """
    if path.exists():
        require_regular(path)
    with _named_after(path), open(path, "ab", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        try:
            while content:  # a disk that fills up takes a part first, and fails at the rest
                content = content[file.write(content) :]
        except OSError:
            with suppress(OSError):
                file.truncate(start)
            raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; move it to `path` on success, delete it on any failure.

    The content reaches the disk before the move. An OSError without a file name, such as that of a full disk, gets the
    name of `path`. Raises FileExistsError, before anything is written, if `path` is neither a file nor free.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a file, and would be replaced by one; choose another name")
    with uninterrupted(), _named_after(path), staged(path) as staging:
        yield staging / NEW / path.name
        _sync(staging / NEW / path.name)
        os.replace(staging / NEW / path.name, path)
        _sync(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; put it in the place of `path` on success, delete it on any failure.

    An existing folder is replaced in one step where the system can exchange two names, as Linux and macOS can.
    Elsewhere there is a moment without a folder; if the process is killed in it, `recover` brings the earlier one back.
    Raises FileExistsError if `path` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, a folder should go there; choose another name")
    recover(path)
    with uninterrupted(), _named_after(path), staged(path) as staging:
        new = staging / NEW / path.name
        new.mkdir()
        yield new
        for parent, _, names in os.walk(new):
            for name in names:
                _sync(Path(parent, name))
            _sync(Path(parent))
        _move_folder(new, path, aside=staging / OLD / path.name)
        _sync(path.parent)


def _move_folder(new: Path, path: Path, *, aside: Path) -> None:
    """Put the folder `new` in the place of `path`, whose folder goes to the staging folder."""
    if not path.exists():
        try:
            os.rename(new, path)
            return
        except OSError as error:  # another writer has put its folder there meanwhile
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    if not exchange(new, path):
        aside.parent.mkdir()
        try:
            os.rename(path, aside)
            os.rename(new, path)
        except BaseException:
            if aside.exists() and not path.exists():
                os.rename(aside, path)
            raise


@contextmanager
def _named_after(path: Path) -> Iterator[None]:
    """Give an OSError without a file name, such as a write to a full disk, that of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def recover(path: Path) -> None:
    """Bring back a folder whose replacement was killed between two renames; do nothing if `path` exists."""
    if path.exists() or not path.parent.is_dir():
        return
    for staging in sorted(path.parent.glob(STAGING)):
        aside = staging / OLD / path.name
        if aside.is_dir() and not is_locked(staging / LOCK):
            with suppress(OSError):  # another process may be bringing it back as well
                os.rename(aside, path)
                shutil.rmtree(staging, ignore_errors=True)
            return
    # Versions before the staging folders renamed the earlier folder to .NAME.PID.old.
    for aside in path.parent.glob(f".{_escaped(path.name)}.*.old"):
        if aside.is_dir() and re.fullmatch(r"\d+", aside.name.split(".")[-2]):
            with suppress(OSError):
                os.rename(aside, path)
            return


def is_being_replaced(path: Path) -> bool:
    """Return True in the moment in which a living writer has moved a folder aside and not yet put the new one there."""
    return not path.exists() and any(
        (staging / OLD / path.name).is_dir() and is_locked(staging / LOCK) for staging in path.parent.glob(STAGING)
    )


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what killed writers left in a folder, and return the paths; those of living writers stay.

    A folder that was moved aside by a killed replacement is brought back first.
    """
    removed = []
    for leftover in sorted(folder.glob(STAGING)):
        if leftover.is_dir() and is_locked(leftover / LOCK, unknown=True):
            continue
        if leftover.is_dir():
            remove_staging(leftover)
            shutil.rmtree(leftover, ignore_errors=True)
        else:  # versions before the staging folders wrote single files under such names
            leftover.unlink(missing_ok=True)
        removed.append(leftover)
    return removed


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _sync(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk, as far as it can."""
    flags = os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR
    try:
        descriptor = os.open(path, flags)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # file systems without it, such as some pipes
            raise
    finally:
        os.close(descriptor)


def write_tensors(path: Path, tensors: Mapping[str, Any], *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raise OSError if it cannot be written, such as on a full disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # safetensors wraps the OSError
        path.unlink(missing_ok=True)  # before 0.8 it leaves the incomplete file
        target = _final(str(path))
        raise OSError(f"{target} cannot be written ({error}); make room, or choose another folder") from error
    # safetensors gives access to the owner alone, but caches and models are shared.
    path.chmod(_mode_of_a_new_file(path))


def _mode_of_a_new_file(path: Path) -> int:
    """Return the permissions of a new file beside `path`, found without setting the umask."""
    probe = path.with_name("mode")
    file = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        return stat.S_IMODE(os.fstat(file).st_mode)
    finally:
        os.close(file)
        probe.unlink()
