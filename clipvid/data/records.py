"""Data sets as plain data: a Record describes one clip, a VideoDataset is an ordered collection of records.

Contract: frozen, validated on construction, cheap to copy and to send to loader workers. A label is an index into
`classes`. Knows nothing of file formats or decoding, and does not check that files exist (readers do).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipvid.runtime.text import pluralize


@dataclass(frozen=True)
class Record:
    """One clip: a file, or its part from `start` to `end` seconds, with captions and label."""

    path: Path
    captions: tuple[str, ...] = ()
    label: int | None = None
    """Index into VideoDataset.classes; None for a clip without a class."""
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.captions, str):
            raise ValueError(f"captions must be a tuple of strings, got {self.captions!r}; write ({self.captions!r},)")
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "captions", tuple(self.captions))
        for caption in self.captions:
            if not caption.strip():
                raise ValueError(f"{self.path}: a caption is empty; leave captions=() for a clip without one")
        if self.label is not None and self.label < 0:
            raise ValueError(
                f"{self.path}: label must be an integer >= 0, got {self.label}; use None for a clip without a class"
            )
        self._check_times()

    def _check_times(self) -> None:
        start = 0.0 if self.start is None else self.start
        end = math.inf if self.end is None else self.end
        if not (math.isfinite(start) and 0 <= start < end):
            raise ValueError(
                f"{self.path}: start and end must be seconds with 0 <= start < end, got {self.start} and {self.end}; "
                "use None for the start or end of the file"
            )


@dataclass(frozen=True)
class ProtocolSpec:
    """Requirements of a named protocol on the evaluated data; all defaults for other data."""

    videos: int | None = None
    """Number of videos that metrics are computed over."""
    frames: int | None = None
    """Frames per clip in common use."""
    tokens: int | None = None
    """Maximum caption length in tokens in common use."""
    shared: bool = False
    """True if equal captions are interchangeable: each is correct for every video that has it."""
    full_set: tuple[str, int] | None = None
    """Name and number of videos of the full data set that this is a subset of."""
    fewer: bool = False
    """True if the caller allowed fewer videos than the protocol has (allow_missing)."""
    listed: int | None = None
    """Number of videos in a custom list that replaces the protocol's; None without such a list."""


NO_PROTOCOL = ProtocolSpec()


@dataclass(frozen=True, repr=False)
class VideoDataset:
    """An ordered data set of clips; `classes` are the names that labels index, () for a set without labels."""

    records: tuple[Record, ...]
    classes: tuple[str, ...] = ()
    name: str = "videos"
    missing: tuple[Path, ...] = ()
    """Files named by the annotations but left out because they do not exist."""
    protocol_spec: ProtocolSpec = NO_PROTOCOL
    source: Path | None = None
    """File that lists the videos, or the first of several; None for a folder read without a list."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", tuple(self.records))
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "missing", tuple(self.missing))
        duplicates = sorted(name for name, count in Counter(self.classes).items() if count > 1)
        if duplicates:
            raise ValueError(f"{self.name}: class names must be unique, got duplicates of {', '.join(duplicates)}")
        for index, record in enumerate(self.records):
            if record.label is not None and record.label >= len(self.classes):
                raise ValueError(
                    f"{self.name}: record {index} ({record.path}) has label {record.label}, but there are "
                    f"{len(self.classes)} classes; labels index `classes` from 0"
                )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        parts = [pluralize(len(self), "video"), pluralize(self.n_captions, "caption")]
        if self.classes:
            parts.append(pluralize(len(self.classes), "class"))
        if self.missing:
            parts.append(f"{len(self.missing)} missing")
        return f"VideoDataset({self.name!r}: {', '.join(parts)})"

    @property
    def n_files(self) -> int:
        """Number of files that the data set names, including missing ones."""
        return len({record.path for record in self.records}) + len(self.missing)

    @property
    def n_captions(self) -> int:
        """Number of captions of all videos together."""
        return sum(len(record.captions) for record in self.records)

    def subset(self, indices: Iterable[int]) -> VideoDataset:
        """Return the records at `indices`, in that order, as a new data set with the same classes.

        The name of a subset of a protocol's data says how many videos remain, so that its metrics are not mistaken for
        those of the full set.
        """
        selection, full_set = self.surviving(indices), self.protocol_spec.full_set
        n_expected = self.protocol_spec.videos if self.protocol_spec.listed is None else self.protocol_spec.listed
        if full_set is None and n_expected is not None:
            full_set = (self.name, n_expected)
        name = self.name
        if full_set is not None:
            name = (
                full_set[0]
                if len(selection) == full_set[1]
                else f"{full_set[0]}, {len(selection)} of {full_set[1]} videos"
            )
        return replace(
            selection, name=name, protocol_spec=replace(self.protocol_spec, videos=None, listed=None, full_set=full_set)
        )

    def surviving(self, indices: Iterable[int]) -> VideoDataset:
        """Return the readable records at `indices`; the protocol still expects its full number of videos."""
        return replace(self, records=tuple(self.records[index] for index in indices))

    def allowing_fewer(self) -> VideoDataset:
        """Return the same data with missing videos allowed; its metrics are then not the protocol's."""
        return replace(self, protocol_spec=replace(self.protocol_spec, fewer=True))

    def few_shot(self, shots: int, *, seed: int = 0) -> VideoDataset:
        """Return `shots` random videos of every class, in their original order; 2, 4, 8 and 16 are usual.

        All clips of a chosen video are included. Raises ValueError for a class with fewer videos, and for records
        without a class.
        """
        if shots < 1:
            raise ValueError(f"shots must be an integer >= 1, got {shots}; it is the number of videos per class")
        paths_by_label: dict[int, dict[Path, None]] = {label: {} for label in range(len(self.classes))}
        for record in self.records:
            if record.label is None:
                raise ValueError(
                    f"{self.name}: {record.path} has no class, but few-shot sampling needs one for every clip"
                )
            paths_by_label[record.label][record.path] = None
        too_small = [self.classes[label] for label, paths in paths_by_label.items() if len(paths) < shots]
        if too_small or not paths_by_label:
            raise ValueError(f"{self.name} has classes with fewer than {shots} videos: {', '.join(too_small) or 'all'}")
        drawn = {
            label: set(random.Random(f"{seed} {label}").sample([*paths], shots))
            for label, paths in paths_by_label.items()
        }
        chosen = [i for i, r in enumerate(self.records) if r.label is not None and r.path in drawn[r.label]]
        return replace(self.subset(chosen), name=f"{self.name}, {shots} per class")

    def of_classes(self, names: Sequence[str]) -> VideoDataset:
        """Return the videos of the classes in `names`, relabelled in that order; ValueError for an unknown name."""
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ValueError(f"{self.name} has no class {unknown[0]!r}; it has {', '.join(self.classes)}")
        new_labels = {self.classes.index(name): label for label, name in enumerate(names)}
        records = tuple(replace(r, label=new_labels[r.label]) for r in self.records if r.label in new_labels)
        name, counts = self.name, (self.protocol_spec.videos, self.protocol_spec.listed, self.protocol_spec.full_set)
        if len(names) < len(self.classes):
            name = f"{name}, {len(names)} of {len(self.classes)} classes"
        is_protocol = any(count is not None for count in counts)
        full_set = (name, len(records)) if is_protocol else None
        protocol_spec = replace(self.protocol_spec, videos=None, listed=None, full_set=full_set)
        return replace(self, records=records, classes=tuple(names), name=name, protocol_spec=protocol_spec)

    def base_novel(self) -> tuple[VideoDataset, VideoDataset]:
        """Split into the more frequent and the rarer half of the classes (base-to-novel generalisation).

        This is the split of ViFi-CLIP (Rasheed et al. 2023): a model is trained on base classes and tested on both.
        Equally frequent classes are ordered by name; with an odd number of classes, base has one more than novel.
        """
        counts = Counter(record.label for record in self.records)
        order = sorted(range(len(self.classes)), key=lambda label: (-counts[label], self.classes[label]))
        half = (len(order) + 1) // 2
        base, novel = ([self.classes[label] for label in sorted(labels)] for labels in (order[:half], order[half:]))
        if not novel:
            raise ValueError(
                f"{self.name} has {pluralize(len(self.classes), 'class')}; a base-to-novel split needs at least 2"
            )
        return self.of_classes(base), self.of_classes(novel)

    def split(self, fraction: float, *, seed: int = 0) -> tuple[VideoDataset, VideoDataset]:
        """Hold out `fraction` of the videos for validation; returns (train, validation), both in their original order.

        Clips of one file stay together. Every class contributes the same share, up to rounding to complete videos, and
        leaves at least one video for training. The same seed gives the same split.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be > 0 and < 1, got {fraction}; it is the share of validation videos")
        validation_paths = _validation_paths(self.records, fraction=fraction, seed=seed)
        validation = [index for index, record in enumerate(self.records) if record.path in validation_paths]
        train = [index for index, record in enumerate(self.records) if record.path not in validation_paths]
        if not validation or not train:
            raise ValueError(
                f"{self!r} has too few videos to hold out {fraction:g} of them for validation; "
                "give more videos, or another fraction"
            )
        return self.subset(train), self.subset(validation)


def _validation_paths(records: Sequence[Record], *, fraction: float, seed: int) -> set[Path]:
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
