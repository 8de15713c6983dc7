"""Random choice of the files of a validation set, balanced over classes.

Contract: records in, paths out; the same seed gives the same paths. Opens no file.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from clipvid.data.clips.record import Record


def validation_paths(records: Sequence[Record], *, fraction: float, seed: int) -> set[Path]:
    """Return the files for validation: a share of every class, rounded by the largest-remainder method.

    A file whose clips have several classes counts for the class of its first clip. Every class keeps a file for
    training.
    """
    choice = _Choice(records, random.Random(seed))
    share = {label: fraction * size for label, size in choice.sizes.items()}
    for label in share:
        while len(choice.held_out[label]) < int(share[label]) and choice.is_open(label):
            choice.hold_out(label)
    n_left = max(1, round(fraction * sum(choice.sizes.values()))) - sum(map(len, choice.held_out.values()))
    while n_left > 0 and (open_labels := [label for label in share if choice.is_open(label)]):
        choice.hold_out(min(open_labels, key=lambda label: len(choice.held_out[label]) - share[label]))
        n_left -= 1
    return {path for paths in choice.held_out.values() for path in paths}


class _Choice:
    """Files that are held out one by one, in a random order of each class."""

    def __init__(self, records: Sequence[Record], rng: random.Random) -> None:
        self._labels: dict[Path, set[int | None]] = {}
        groups: dict[int | None, list[Path]] = {}
        for record in records:
            if record.path not in self._labels:
                groups.setdefault(record.label, []).append(record.path)
            self._labels.setdefault(record.path, set()).add(record.label)
        self._candidates: dict[int | None, list[Path]] = {}
        for label in sorted(groups, key=lambda label: -1 if label is None else label):
            rng.shuffle(groups[label])
            self._candidates[label] = groups[label][::-1]
        self.sizes = {label: len(paths) for label, paths in self._candidates.items()}
        """Number of files of each class, in the order of the classes."""
        self.held_out: dict[int | None, list[Path]] = {label: [] for label in self._candidates}
        self._n_training = Counter(label for labels in self._labels.values() for label in labels)

    def is_open(self, label: int | None) -> bool:
        """Return True if another file of a class can be held out: each class of its clips keeps one for training."""
        files = self._candidates[label]
        while files and any(self._n_training[each] == 1 for each in self._labels[files[-1]]):
            files.pop()
        return bool(files)

    def hold_out(self, label: int | None) -> None:
        """Hold out the next file of a class that is open."""
        path = self._candidates[label].pop()
        self.held_out[label].append(path)
        for each in self._labels[path]:
            self._n_training[each] -= 1
