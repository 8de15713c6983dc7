"""Schemas: JSON of a stored file to typed data, or one error that names the field, and data to JSON.

Contract: bytes and a type in, an object of the type out. The types are msgspec structs, whose fields say what a file
holds. The only file that imports msgspec's JSON. Knows nothing of what is stored.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_LONE_SURROGATE = re.compile(rb"\\ud[cC][89a-fA-F][0-9a-fA-F]")
"""A byte of a file name that is no UTF-8, as JSON in ASCII has it."""


def decode(
    content: bytes,
    kind: type[T] | GenericAlias,
    *,
    source: Path | str,
    error: type[Exception],
    advice: str,
    fault: str = "is damaged",
) -> T:
    """Return JSON as an object of `kind`; raise `error`, with the field, for anything else.

    Args:
        source: file that the content is from, for the message.
        advice: end of the message, such as "build the index again"; may be empty.
        fault: what the message says of a file that does not fit.
    """
    try:
        return _decoded(content, kind)
    except (msgspec.MsgspecError, UnicodeError) as problem:
        reason = _plain(problem)
        raise error(f"{source} {fault} ({reason}){advice and f'; {advice}'}") from problem
    except RecursionError as problem:
        raise error(f"{source} {fault} (brackets are nested too deeply){advice and f'; {advice}'}") from problem


def encode(value: object) -> bytes:
    """Return plain data as the JSON of a file, one value a line: in UTF-8, or in ASCII where a text is no UTF-8."""
    try:
        return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
    except UnicodeEncodeError:  # a file name has other bytes, which JSON can only escape
        return json.dumps(value, indent=1).encode() + b"\n"


def _decoded(content: bytes, kind: Any) -> Any:
    """Return JSON as an object of `kind`; file names may have bytes that are no UTF-8, which msgspec refuses."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError:
        if not _LONE_SURROGATE.search(content):
            raise
        try:
            value = json.loads(content, parse_constant=_refuse_constant)
            json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")  # raises for half a surrogate pair
        except ValueError as problem:
            raise msgspec.DecodeError(str(problem)) from problem
        return msgspec.convert(value, type=kind)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"JSON has no {name}")


def convert(value: object, kind: type[T], *, source: Path | str, error: type[Exception], advice: str) -> T:
    """Return plain data as an object of `kind`, as `decode` does for JSON."""
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise error(f"{source} is damaged ({_plain(problem)}); {advice}") from problem


def _plain(problem: Exception) -> str:
    """Return msgspec's message without its marks: "Expected `int`, got `str` - at `$.frames`"."""
    return str(problem).replace("`", "").replace("$.", "").replace(" - at ", " at ")
