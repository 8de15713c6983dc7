"""Schemas: JSON of a stored file to typed data, or one error that names the field.

Contract: bytes and a type in, an object of the type out. The types are msgspec structs, whose fields say what a file
holds. The only file that imports msgspec's JSON. Knows nothing of what is stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode(
    content: bytes, kind: type[T], *, source: Path | str, error: type[Exception], advice: str, fault: str = "is damaged"
) -> T:
    """Return JSON as an object of `kind`; raise `error`, with the field, for anything else.

    Args:
        source: file that the content is from, for the message.
        advice: end of the message, such as "build the index again"; may be empty.
        fault: what the message says of a file that does not fit.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        reason = _plain(problem)
        raise error(f"{source} {fault} ({reason}){advice and f'; {advice}'}") from problem
    except RecursionError as problem:
        raise error(f"{source} {fault} (brackets are nested too deeply){advice and f'; {advice}'}") from problem


def convert(value: object, kind: type[T], *, source: Path | str, error: type[Exception], advice: str) -> T:
    """Return plain data as an object of `kind`, as `decode` does for JSON."""
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise error(f"{source} is damaged ({_plain(problem)}); {advice}") from problem


def _plain(problem: Exception) -> str:
    """Return msgspec's message without its marks: "Expected `int`, got `str` - at `$.frames`"."""
    return str(problem).replace("`", "").replace("$.", "").replace(" - at ", " at ")
