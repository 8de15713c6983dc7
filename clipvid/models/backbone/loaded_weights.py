"""Record of the base model's weights: a fingerprint of those that were loaded, and the names of those changed since.

Contract: a saved model names its base by this fingerprint and holds every changed weight, however it was changed: by
training, by `load_state_dict` of the video model or of the base model alone, or in place. Writes that torch does not
count (through `.data` or NumPy) are not noticed. Knows nothing of towers or branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.models.backbone.fingerprint import hash_of


class LoadedWeights:
    """Record of one base model, which gets hooks for `load_state_dict`; it holds no reference to the model."""

    def __init__(self, clip: nn.Module) -> None:
        self.fingerprint: str | None = None
        """SHA-256 of the loaded weights; None until it is needed."""
        self.trained: set[str] = set()
        """Names of weights that may differ from the loaded ones."""
        self.lost: str | None = None
        """Name of a weight that changed before the fingerprint was computed, which is then that of other weights."""
        self.refresh(clip)
        clip.register_load_state_dict_pre_hook(self._before_load)
        clip.register_load_state_dict_post_hook(self._after_load)

    def refresh(self, clip: nn.Module) -> None:
        """Take the weights as they are now for unchanged: after a copy, a conversion or a change that is recorded."""
        self._seen = _marks(clip)

    def note_changes(self, clip: nn.Module) -> None:
        """Count weights that were written or replaced since the last call as trained.

        A conversion to another precision alone changes no weight: the folder of a saved model names the base as loaded.
        """
        marks = _marks(clip)
        pairs = {name: (mark, self._seen[name]) for name, mark in marks.items() if name in self._seen}
        written = [name for name, (mark, seen) in pairs.items() if mark[:2] != seen[:2]]
        converted = [name for name, (mark, seen) in pairs.items() if mark[2] != seen[2]]
        if (written or converted) and self.fingerprint is None:
            self.lost = self.lost or (written or converted)[0]
        self.trained.update(written)
        self._seen = marks

    def _before_load(self, clip: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
        """Count the weights that `load_state_dict` is about to change as trained."""
        self.note_changes(clip)
        weights = clip.state_dict()
        changed = {
            name
            for name, weight in weights.items()
            if not weight.is_meta
            and (loaded := state.get(prefix + name)) is not None
            and loaded.shape == weight.shape
            and not torch.equal(loaded.to(weight), weight)
        }
        if changed and self.fingerprint is None:
            self.fingerprint = hash_of(weights)
        self.trained.update(changed)

    def _after_load(self, clip: nn.Module, _: Any) -> None:
        self.refresh(clip)


def _marks(clip: nn.Module) -> dict[str, tuple[int, int | None, torch.dtype]]:
    """Return what changes with each weight: its identity, the number of writes that torch counted, and its dtype.

    Buffers have no identity, because moving a module replaces them.
    """
    marks = {}
    for name, weight in clip.state_dict(keep_vars=True).items():
        is_parameter = isinstance(weight, nn.Parameter)
        version = None if weight.is_inference() or not is_parameter else weight._version
        marks[name] = (id(weight) if is_parameter else 0, version, weight.dtype)
    return marks
