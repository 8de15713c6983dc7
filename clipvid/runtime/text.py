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


def first_line(error: BaseException) -> str:
    """Return the kind of an error and what its message says first, in one line of at most 200 characters.

    The messages of torch and of the hub's client run over many lines, and go on about arguments that a user of clipvid
    cannot give.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else lines[0] if lines else ""
    sentence = text.partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {sentence[:200]}" if sentence else type(error).__name__
