"""Names of files as they are printed: one line, no control characters, whatever bytes the name has.

Contract: a path in, text out that a terminal shows as it is and that UTF-8 can encode.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

_HALF_PAIR = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates that do not stand for a byte of a file name."""


def show(path: str | os.PathLike[str]) -> str:
    r"""Return a path for a line of text: bytes that are no UTF-8 and control characters become \xNN or \uNNNN."""
    text = as_utf8(os.fspath(path))
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def as_utf8(text: str) -> str:
    r"""Return text that UTF-8 can encode: bytes of file names that are no UTF-8 become \xNN, all else stays.

    Halves of surrogate pairs, which no file name has but JSON may, become \uNNNN.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = _HALF_PAIR.sub(lambda half: f"\\u{ord(half[0]):04x}", text)
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return text


def printable(text: str) -> str:
    """Return text whose lines a terminal shows as they are: all but line breaks is escaped as in `show`."""
    return "\n".join(map(show, text.split("\n")))


def show_several(paths: Sequence[str | os.PathLike[str]], limit: int) -> str:
    """Return the first `limit` paths, with commas, and the number of the others."""
    others = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(map(show, paths[:limit])) + others


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
