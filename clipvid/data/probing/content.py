"""Identity of clips: the hash of all bytes of a file, or of the pictures of a folder.

Contract: a path in, its hash out; equal for copies, different for other bytes (XXH3-128: accidents, not forgery). A
file is hashed once: its `Stamp` (device, inode, size and times) tells whether it is still the one that was hashed,
unless it changed within the last seconds, in which a change may leave the stamp as it is. `HashLog` stores hashes
beside derived data for later runs. Knows nothing of what is derived.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from clipvid.data.files import files_of
from clipvid.runtime.files import append_line, read_file
from clipvid.runtime.storage import stamps
from clipvid.runtime.storage.manifest import hash_bytes, hash_file
from clipvid.runtime.storage.stamps import Stamp as Stamp

_hashes: dict[Stamp, str] = {}
_lock = threading.Lock()


def content_hash(clip: Path) -> str:
    """Return the hash of a clip: of its bytes for a file, of the hashes of its pictures in order for a folder.

    Raises OSError for a file that cannot be read.
    """
    if not clip.is_dir():
        return _hash_of(clip)
    return hash_bytes("/".join(["pictures", *map(_hash_of, files_of(clip))]).encode())


def stamp_of(clip: Path) -> Stamp:
    """Return the stamp of a file, or of a folder of pictures: their sizes in all, and the latest times.

    Raises OSError if there is none.
    """
    stamp = stamps.stamp_of(clip)
    if not clip.is_dir():
        return stamp
    pictures = [stamps.stamp_of(path) for path in files_of(clip)]
    every = [stamp, *pictures]
    return stamp._replace(
        size=sum(picture.size for picture in pictures),
        modified=max(each.modified for each in every),
        changed=max(each.changed for each in every),
    )


def remember(stamp: Stamp, content: str) -> None:
    """Store a hash for files with this stamp in the memory of this process."""
    with _lock:
        _hashes[stamp] = content


def _hash_of(path: Path) -> str:
    stamp = stamp_of(path)
    if stamp.is_settled and (content := _hashes.get(stamp)):
        return content
    content = hash_file(path)
    if stamp_of(path) != stamp:  # The file is being written: the hash is of its present bytes, and is not stored.
        return hash_file(path)
    if stamp.is_settled:
        remember(stamp, content)
    return content


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One line of a log."""

    stamp: Stamp
    content: str
    check: str


class HashLog:
    """A file of hashes by stamp, a JSON line each, beside derived data; damaged lines are hashed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logged: set[Stamp] = set()
        decoder = msgspec.json.Decoder(_Entry)
        self._start = b""
        with suppress(OSError):
            content = read_file(path)
            self._start = b"" if content.endswith(b"\n") or not content else b"\n"  # after a line that was cut off
            for line in content.splitlines():
                with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    entry = decoder.decode(line)
                    if entry.check == _check(entry.stamp, entry.content):
                        remember(entry.stamp, entry.content)
                        self._logged.add(entry.stamp)

    def add(self, files: list[Path]) -> None:
        """Append the hashes of these files that are remembered and not logged yet."""
        new = {}
        for path in files:
            with suppress(OSError):
                stamp = stamp_of(path)
                if stamp not in self._logged and (content := _hashes.get(stamp)):
                    new[stamp] = content
        if not new:
            return
        lines = [msgspec.json.encode(_Entry(stamp, content, _check(stamp, content))) for stamp, content in new.items()]
        append_line(self.path, self._start + b"".join(line + b"\n" for line in lines))
        self._start = b""
        self._logged |= set(new)


def _check(stamp: Sequence[object], content: object) -> str:
    return hash_bytes(f"{tuple(stamp)} {content}".encode())[:8]
