"""Cross-frame mixers by name: registration of the package's own, and checks of their options.

Contract: a mixer is any callable (width, heads, *, drop_path, options...) that returns a module on patch tokens
(B, T, N, D), whose output is added to them (see clipvid/nn/mixers.py). Its options are its keyword-only parameters that
have a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipvid.registry import MIXERS, register_mixer

_HOME = "clipvid.nn.mixers"
register_mixer("attention", f"{_HOME}:attention_mixer", summary="attention along time per patch (STAN, eq. 8)")
register_mixer("conv", f"{_HOME}:ConvMixer", summary="bottleneck 3x1x1 convolution along time (STAN, eq. 9)")
register_mixer("conv_full", f"{_HOME}:ConvFullMixer", summary="full-width 3x3x3 convolution (STAN's first release)")
register_mixer("rsa", f"{_HOME}:RSAMixer", summary="relational self-attention over time and grid (RSA)")


def check_mixer(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown mixer name or an option that the mixer does not have."""
    if name not in MIXERS:
        MIXERS.lookup(name)
    if isinstance(options, Mapping) and not options:
        return  # the mixer, and with it torch, need not be imported
    defaults = MIXERS.options(name)
    option_names = ", ".join(defaults) or "none"
    if not isinstance(options, Mapping):
        raise ValueError(
            f"mixer_options must be a mapping of names to values, got {options!r}; mixer {name} has {option_names}"
        )
    for option in options:
        if option not in defaults:
            raise ValueError(f"mixer {name} has no option {option!r}; it has {option_names}")
