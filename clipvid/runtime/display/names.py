"""Names of files as they are printed: one line, no control characters, whatever bytes the name has.

Contract: a path in, text out that a terminal shows as it is and that UTF-8 can encode.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence

CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that a terminal does not show: controls, formats, surrogates, separators of lines."""
JOINERS = "\u200c\u200d"
"""Formats that ordinary words and emoji need."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def show(path: str | os.PathLike[str]) -> str:
    r"""Return a path for a line of text: bytes that are no UTF-8, and invisible characters, become \xNN or \uNNNN."""
    return "".join(map(_visible, os.fspath(path)))


def as_utf8(text: str) -> str:
    r"""Return text that UTF-8 can encode: bytes of file names that are no UTF-8 become \xNN, all else stays.

    Half of a surrogate pair, which JSON and names of Windows may hold, becomes \uNNNN.
    """
    return _SURROGATE.sub(lambda match: _escaped(match[0]), text)


def printable(text: str) -> str:
    """Return text for a terminal: as in `show`, but line breaks and tabs stay."""
    return "".join(character if character in "\n\t" else _visible(character) for character in text)


def show_several(paths: Sequence[str | os.PathLike[str]], limit: int) -> str:
    """Return the first `limit` paths, with commas, and the number of the others."""
    others = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(map(show, paths[:limit])) + others


def _visible(character: str) -> str:
    """Return a character, or its escape if it controls a terminal, breaks the line or turns the direction of text."""
    if unicodedata.category(character) not in CONTROLS or character in JOINERS:
        return character
    return _escaped(character)


def _escaped(character: str) -> str:
    r"""Return the escape of a character; \xNN beyond ASCII is always a byte, so that two names are printed as two."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python writes it in a name (PEP 383)
        code -= 0xDC00
        return f"\\x{code:02x}"
    return f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
