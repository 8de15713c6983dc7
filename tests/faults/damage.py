"""Random damage to stored files: of their bytes, whatever they hold, and of the JSON in them.

Contract: bytes or plain data and a random generator in; the same content after one change, and a description of the
change, out. Equal generators make equal changes. Knows nothing of the files of clipvid.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from typing import Any

ABSURD = (
    None, True, False, -1, 0, 1, 10**7, 10**9, 2**31, 2**63, 2**64, 10**30, -(10**12), 0.5, 1e308, -0.0,
    float("nan"), float("inf"), float("-inf"), "", "x", "../../x", "\x00", "\ud800", "é" * 1000, "9" * 5000,
    [], {}, [[]], [None], {"": None},
)  # fmt: skip
"""Values that replace a value of another type, or of a sensible size."""
NAMES = ("x", "", "..", "../x", "/dev/zero", "\x00", "\ud800", "é" * 1000, "__metadata__")
"""Keys in place of others."""
DEPTH = 100_000
"""Levels of brackets that no reader of JSON follows by recursion."""
NESTED = "@nested brackets@"
"""Text in place of which the written JSON gets nested brackets."""


def damaged(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return bytes that differ from `data` by one random change, and the name of the change."""
    while True:
        name = rng.choice(list(BYTES))
        changed = bytearray(data)
        BYTES[name](changed, rng)
        if changed != data:
            return bytes(changed), name


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 5, 20, 60))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.choice((rng.randrange(len(data)), len(data) - 1, 0)) :]


def _edit_header(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 8))):
        data[rng.randrange(min(64, len(data)))] = rng.choice((0, 255, 127, 128, rng.randrange(256)))


def _append(data: bytearray, rng: random.Random) -> None:
    data += rng.choice((b"\0", b"\n", b"x" * 100, rng.randbytes(4096), bytes(data)))


def _block(data: bytearray, rng: random.Random) -> slice:
    size = rng.randrange(1, max(2, len(data) // 4))
    start = rng.randrange(len(data) - size + 1)
    return slice(start, start + size)


def _zero_block(data: bytearray, rng: random.Random) -> None:
    block = _block(data, rng)
    data[block] = bytes(block.stop - block.start)


def _drop_block(data: bytearray, rng: random.Random) -> None:
    del data[_block(data, rng)]


def _move_block(data: bytearray, rng: random.Random) -> None:
    block = _block(data, rng)
    content = data[block]
    del data[block]
    start = rng.randrange(len(data) + 1)
    data[start:start] = content


def _double_block(data: bytearray, rng: random.Random) -> None:
    content = data[_block(data, rng)]
    start = rng.randrange(len(data) + 1)
    data[start:start] = content


BYTES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "flipped bits": _flip,
    "truncation": _truncate,
    "changed header": _edit_header,
    "appended bytes": _append,
    "zeroed block": _zero_block,
    "dropped block": _drop_block,
    "moved block": _move_block,
    "doubled block": _double_block,
}
"""Changes of bytes by name."""


class Doubled(dict[str, Any]):
    """A JSON object that is written with one of its keys twice; the second has another value."""

    extra: tuple[str, Any] = ("", None)

    def items(self) -> Any:
        """Return the entries and the extra one."""
        return [*super().items(), self.extra]


def edited(content: Any, rng: random.Random) -> tuple[Any, str]:
    """Return a copy of plain data with one random change, and a description; texts that are JSON are edited too.

    The result may hold `Doubled` objects and the text NESTED: write it by `written`.
    """
    content = json.loads(json.dumps(content))
    slots = [("root", None, content), *_slots(content)]
    path, parent, value = rng.choice(slots[rng.randrange(2) :] or slots)
    if isinstance(value, str) and value[:1] in ("[", "{") and rng.random() < 0.7:
        inner, change = edited(json.loads(value), rng)
        return _with(content, parent, path, written(inner).decode()), f"{path}, in its text: {change}"
    return _edit(content, parent, path, value, rng)


def _slots(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield path, container and value of everything below a value; the last part of a path is the key."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield f"{path}/{key}", (value, key), entry
        yield from _slots(entry, f"{path}/{key}")


def _with(content: Any, parent: Any, path: str, value: Any) -> Any:
    if parent is None:
        return value
    container, key = parent
    container[key] = value
    return content


def _edit(content: Any, parent: Any, path: str, value: Any, rng: random.Random) -> tuple[Any, str]:
    change = rng.choice(("replace", "replace", "replace", "nudge", "nudge", "drop", "rename", "double", "swap", "nest"))
    if change == "nest":
        return _with(content, parent, path, NESTED), f"{path}: nested brackets"
    if change == "nudge" and (near := _near(value, rng)) is not None:
        return _with(content, parent, path, near), f"{path}: {str(value)[:40]!r} to {str(near)[:40]!r}"
    if parent is not None and change in ("drop", "rename"):
        container, key = parent
        del container[key]
        if change == "rename" and isinstance(container, dict):
            container[rng.choice(NAMES)] = value
        return content, f"{path}: {change}"
    if change == "double" and isinstance(value, dict) and value:
        twice = Doubled(value)
        twice.extra = (rng.choice(list(value)), rng.choice([*ABSURD, *value.values()]))
        return _with(content, parent, path, twice), f"{path}: key {twice.extra[0]} twice, with {twice.extra[1]!r:.60}"
    if change == "double" and isinstance(value, list) and value:
        value.append(rng.choice(value))
        return content, f"{path}: an entry twice"
    if change == "swap" and isinstance(value, list) and len(value) > 1:
        i, j = rng.sample(range(len(value)), 2)
        value[i], value[j] = value[j], value[i]
        return content, f"{path}: entries {i} and {j} swapped"
    absurd = rng.choice(ABSURD)
    return _with(content, parent, path, absurd), f"{path}: {absurd!r:.60}"


def _near(value: Any, rng: random.Random) -> Any:
    """Return a value of the same type that is close to the given one; None for values without such a neighbour."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value - 1, 2 * value + 1, 1000 * value + 7))
    if isinstance(value, float):
        return rng.choice((value * 1.0001 + 1e-9, -value - 1.0, int(value)))
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return rng.choice((value[:at] + rng.choice(string.printable) + value[at + 1 :], value[:at], value + value[-1]))
    return None


def written(content: Any) -> bytes:
    """Return plain data as JSON, with NaN, duplicate keys and nested brackets as `edited` put them."""
    brackets = "[" * DEPTH + "]" * DEPTH
    return json.dumps(content).replace(json.dumps(NESTED), brackets).replace(NESTED, brackets).encode()
