"""Names of files as they are printed: one line, no control characters, whatever bytes the name has.

Contract: a path in, text out that a terminal shows as it is and that UTF-8 can encode.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from contextlib import suppress

CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that a terminal does not show: controls, formats, surrogates, separators of lines."""
JOINERS = "\u200c\u200d"
"""Formats that ordinary words and emoji need."""


def show(path: str | os.PathLike[str]) -> str:
    r"""Return a path for a line of text: bytes that are no UTF-8, and invisible characters, become \xNN or \uNNNN."""
    return "".join(map(_visible, as_utf8(os.fspath(path))))


def as_utf8(text: str) -> str:
    r"""Return text that UTF-8 can encode: bytes of file names that are no UTF-8 become \xNN, all else stays."""
    with suppress(UnicodeEncodeError):
        text.encode()
        return text
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half a character outside the first 65,536, as of a text that was cut
        return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """Return text for a terminal: as in `show`, but line breaks and tabs stay."""
    return "".join(character if character in "\n\t" else _visible(character) for character in as_utf8(text))


def show_several(paths: Sequence[str | os.PathLike[str]], limit: int) -> str:
    """Return the first `limit` paths, with commas, and the number of the others."""
    others = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(map(show, paths[:limit])) + others


def _visible(character: str) -> str:
    """Return a character, or its escape if it controls a terminal, breaks the line or turns the direction of text."""
    if unicodedata.category(character) not in CONTROLS or character in JOINERS:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
