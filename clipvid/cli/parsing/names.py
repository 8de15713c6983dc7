"""Names that options accept, listed without heavy imports, so that a wrong name is refused before torch is loaded.

Contract: the name of an option in, the allowed values out. Registered members come from their registries, plugins
included where a name is unknown; tests compare the other tables with those of the modules that implement the names.
Knows nothing of parsing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches

from clipvid.config.data_config import AVERAGES, PRECISIONS
from clipvid.registry import BRANCHES, DECODERS, MIXERS, OBJECTIVES, PROTOCOLS, READERS, STORES, load_plugins
from clipvid.video.sampling import SAMPLERS

SIMILARITIES = ("mean", "wti", "mug", "mug_simple")
CACHE_KINDS = ("auto", "bf16", "fp16", "fp32", "int8")
CACHE_MODES = ("taps", "first_layer")
DEVICES = ("auto", "cpu", "cuda", "mps")
UNREADABLE = ("raise", "skip")
SYNONYMS = {"gpu": "cuda", "fp16": "16-mixed", "bf16": "bf16-mixed", "fp32": "32-true"}
"""Values that a user may know by another word, which are suggested for it where an option accepts them."""
COLUMNS = ("path", "caption", "label", "start", "end", "split")
"""Columns of a table, which --columns maps to the names that the table uses."""


def allowed(option: str) -> tuple[str, ...]:
    """Return the values that the option of this name accepts; empty for an option that takes any value."""
    names: dict[str, tuple[str, ...]] = {
        "branch": tuple(BRANCHES),
        "mixer": tuple(MIXERS),
        "task": tuple(OBJECTIVES),
        "store": tuple(STORES),
        "similarity": SIMILARITIES,
        "format": (*READERS, *PROTOCOLS),
        "sampler": tuple(SAMPLERS),
        "backend": tuple(DECODERS),
        "average": AVERAGES,
        "precision": PRECISIONS,
        "unreadable": UNREADABLE,
        "cache_kind": CACHE_KINDS,
        "cache_mode": CACHE_MODES,
        "device": DEVICES,
    }
    return names.get(option, ())


def check(option: str, value: str) -> None:
    """Raise ValueError for a value that the option does not accept; the message starts with the constraint."""
    names = allowed(option)
    if names and value not in names:
        load_plugins()
        names = allowed(option)
    if names and value not in names:
        raise ValueError(f"must be one of {', '.join(names)}, got {value!r}{suggestion(value, names)}")


def column_pairs(values: Sequence[str]) -> dict[str, str]:
    """Return the table's name of each column, from "path=video_path", "path=video_path,caption=text" or a JSON object.

    Raises ValueError for other words and unknown columns; the message starts with the constraint.
    """
    pairs: list[tuple[str, str]] = []
    for value in values:
        parts = [part.strip() for part in value.split(",")]
        given = _json_items(value) or [(name, column) for name, _, column in (part.partition("=") for part in parts)]
        for name, column in given:
            if not name or not column:
                raise ValueError(f"must be pairs such as path=video_path caption=text, got {value!r}; correct it")
            if name not in COLUMNS:
                raise ValueError(f"must name some of {', '.join(COLUMNS)}, got {name!r}{suggestion(name, COLUMNS)}")
            if name in dict(pairs):
                raise ValueError(
                    f"must name {name} once, got {dict(pairs)[name]!r} and {column!r}; leave one of them out"
                )
            pairs.append((name, column))
    return dict(pairs)


def _json_items(text: str) -> list[tuple[str, str]]:
    """Return the items of a JSON object of texts; [] for another text."""
    if not text.lstrip().startswith("{"):
        return []
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [(str(name), str(column)) for name, column in content.items()]


def suggestion(word: str, names: tuple[str, ...], *, prefix: str = "") -> str:
    """Return the names most similar to a word, as a suffix of a message; "" if none is similar."""
    similar = [name for name in names if name.startswith(word)] if len(word) > 2 else []
    similar = similar or [name for name in names if name == SYNONYMS.get(word.lower())]
    similar = similar or get_close_matches(word, names, n=1 if prefix else 2)
    return f"; did you mean {' or '.join(f'{prefix}{name}' for name in similar[:3])}" if similar else ""
