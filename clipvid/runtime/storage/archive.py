"""Sealed zip archives, as torch.save writes them: the hash of the file is the archive's comment.

Contract: `seal_archive` a file that is complete; `is_intact` compares it. Other readers ignore the comment. The
archive's own checksums cover the content of its members, but not their names and places, and torch compares none of
them. Knows nothing of the content.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from clipvid.runtime.files import open_regular
from clipvid.runtime.storage.manifest import HASH_LENGTH, hash_file

_END = struct.Struct("<4s4H2LH")
"""End of an archive without its comment (APPNOTE.TXT 4.3.16); the last number is the length of the comment."""
_MARK = b"clipvid-xxh3:"


def seal_archive(path: Path) -> None:
    """Append the hash of an archive that has no comment; raise ValueError for another file."""
    with open(path, "r+b") as file:
        file.seek(-min(_END.size, path.stat().st_size), os.SEEK_END)
        end = file.read()
        if len(end) < _END.size or not end.startswith(b"PK\x05\x06") or not end.endswith(b"\0\0"):
            raise ValueError(f"{path} must be a zip archive without a comment to be sealed")
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", len(_MARK) + HASH_LENGTH))
    digest = hash_file(path)
    with open(path, "ab") as file:
        file.write(_MARK + digest.encode())


def is_intact(path: Path) -> bool | None:
    """Return whether an archive is as it was sealed; None if it has no seal, as those of older versions."""
    length = len(_MARK) + HASH_LENGTH
    size = path.stat().st_size
    with open_regular(path) as file:
        file.seek(max(0, size - length))
        seal = file.read()
    if not seal.startswith(_MARK):
        return None
    return hash_file(path, size=size - length) == seal.removeprefix(_MARK).decode(errors="replace")
