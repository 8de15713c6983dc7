"""Names that options accept, listed without heavy imports, so that a wrong name is refused before torch is loaded.

Contract: the name of an option in, the allowed values out. Registered members come from their registries, plugins
included where a name is unknown; tests compare the other tables with those of the modules that implement the names.
Knows nothing of parsing.
"""

from __future__ import annotations

from difflib import get_close_matches

from clipvid.config.data_config import AVERAGES, PRECISIONS
from clipvid.registry import BRANCHES, DECODERS, MIXERS, OBJECTIVES, PROTOCOLS, READERS, STORES, load_plugins
from clipvid.video.sampling import SAMPLERS

SIMILARITIES = ("mean", "wti", "mug", "mug_simple")
CACHE_KINDS = ("auto", "bf16", "fp16", "fp32", "int8")
CACHE_MODES = ("taps", "first_layer")
DEVICES = ("auto", "cpu", "cuda", "mps")
UNREADABLE = ("raise", "skip")


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


def suggestion(word: str, names: tuple[str, ...], *, prefix: str = "") -> str:
    """Return the names most similar to a word, as a suffix of a message; "" if none is similar."""
    similar = [name for name in names if name.startswith(word)] if len(word) > 2 else []
    similar = similar or get_close_matches(word, names, n=1 if prefix else 2)
    return f"; did you mean {' or '.join(f'{prefix}{name}' for name in similar[:3])}" if similar else ""
