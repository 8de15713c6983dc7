"""Numbers and nouns for messages. Imports nothing of clipvid."""

from __future__ import annotations


def pluralize(number: int, noun: str) -> str:
    """Return the number with its noun, plural unless the number is 1.

    >>> pluralize(1, "video"), pluralize(2, "class"), pluralize(0, "query")
    ('1 video', '2 classes', '0 queries')
    """
    if number == 1:
        return f"{number} {noun}"
    if noun.endswith(("s", "x")):
        return f"{number} {noun}es"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"
