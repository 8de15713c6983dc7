"""Names of files as they are printed: one line, no control characters, whatever bytes the name has.

Contract: a path in, text out that a terminal shows as it is and that UTF-8 can encode.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

_SURROGATE = re.compile("[\ud800-\udfff]")


def show(path: str | os.PathLike[str]) -> str:
    r"""Return a path for a line of text: bytes that are no UTF-8 and control characters become \xNN or \uNNNN."""
    return "".join(character if character.isprintable() else _escaped(character) for character in os.fspath(path))


def as_utf8(text: str) -> str:
    r"""Return text that UTF-8 can encode: bytes of file names that are no UTF-8 become \xNN, all else stays.

    Half of a surrogate pair, which JSON and names of Windows may hold, becomes \uNNNN.
    """
    return _SURROGATE.sub(lambda match: _escaped(match[0]), text)


def printable(text: str) -> str:
    """Return text whose lines a terminal shows as they are: all but line breaks is escaped as in `show`."""
    return "\n".join(map(show, text.split("\n")))


def show_several(paths: Sequence[str | os.PathLike[str]], limit: int) -> str:
    """Return the first `limit` paths, with commas, and the number of the others."""
    others = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(map(show, paths[:limit])) + others


def _escaped(character: str) -> str:
    r"""Return the escape of a character; \xNN beyond ASCII is always a byte, so that two names are printed as two."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python writes it in a name (PEP 383)
        code -= 0xDC00
        return f"\\x{code:02x}"
    return f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
