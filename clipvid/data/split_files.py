"""Random choice of the files of a validation set, balanced over classes.

Contract: records in, paths out; the same seed gives the same paths. Opens no file.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from clipvid.data.record import Record


def validation_paths(records: Sequence[Record], *, fraction: float, seed: int) -> set[Path]:
    """Return the files for validation: a share of every class, rounded by the largest-remainder method."""
    groups: dict[int | None, list[Path]] = {}
    seen: set[Path] = set()
    for record in records:
        if record.path not in seen:
            seen.add(record.path)
            groups.setdefault(record.label, []).append(record.path)
    rng = random.Random(seed)
    order = sorted(groups, key=lambda label: -1 if label is None else label)
    for label in order:
        rng.shuffle(groups[label])
    limit = {label: len(groups[label]) - 1 for label in order}  # leaves one for training
    n_chosen = {label: min(int(fraction * len(groups[label])), limit[label]) for label in order}
    n_left = max(1, round(fraction * len(seen))) - sum(n_chosen.values())
    while n_left > 0 and (open_labels := [label for label in order if n_chosen[label] < limit[label]]):
        neediest = min(open_labels, key=lambda label: n_chosen[label] - fraction * len(groups[label]))
        n_chosen[neediest] += 1
        n_left -= 1
    return {path for label in order for path in groups[label][: n_chosen[label]]}
