"""Plain facts about videos: a Record is one clip, a VideoDataset is a data set of them.

Contract: frozen, checked when made, cheap to copy and to send to loader workers. A label is an index into `classes`.
Knows nothing of file formats, of decoding, or whether the files exist (readers check that).
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
    """One clip: a file, or the part of it from `start` to `end` seconds, with what is known about it."""

    path: Path
    captions: tuple[str, ...] = ()
    label: int | None = None
    """Index into VideoDataset.classes; None where the clip has no class."""
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
            raise ValueError(f"{self.path}: label must be at least 0, got {self.label}; use None for no class")
        self._check_times()

    def _check_times(self) -> None:
        start = 0.0 if self.start is None else self.start
        end = math.inf if self.end is None else self.end
        if not (math.isfinite(start) and 0 <= start < end):
            raise ValueError(f"{self.path}: need 0 <= start < end in seconds, got {self.start} and {self.end}")


@dataclass(frozen=True)
class ProtocolSpec:
    """What a named protocol says of figures on its data; nothing is said of other data."""

    videos: int | None = None
    """How many videos figures are over."""
    frames: int | None = None
    """Frames a clip that the field uses."""
    tokens: int | None = None
    """Longest caption in tokens that the field uses."""
    shared: bool = False
    """Captions that are equal mean the same: each is right for every video that has it."""
    whole: tuple[str, int] | None = None
    """Name and number of videos of the data that this is a part of."""
    fewer: bool = False
    """The caller allowed fewer videos than there should be (allow_missing)."""
    listed: int | None = None
    """How many videos a list of one's own names, which stands in place of the protocol's; None without one."""


NO_PROTOCOL = ProtocolSpec()


@dataclass(frozen=True, repr=False)
class VideoDataset:
    """An ordered data set of clips. `classes` are the names that the labels index, () for a set without labels."""

    records: tuple[Record, ...]
    classes: tuple[str, ...] = ()
    name: str = "videos"
    missing: tuple[Path, ...] = ()
    """Files that the annotations name and that were left out because they do not exist."""
    protocol_spec: ProtocolSpec = NO_PROTOCOL
    source: Path | None = None
    """The file that lists the videos, or the first of several; None for a folder that is read as it is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", tuple(self.records))
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "missing", tuple(self.missing))
        twice = sorted(name for name, count in Counter(self.classes).items() if count > 1)
        if twice:
            raise ValueError(f"{self.name}: class names must differ, {', '.join(twice)} came more than once")
        for index, record in enumerate(self.records):
            if record.label is not None and record.label >= len(self.classes):
                raise ValueError(
                    f"{self.name}: record {index} ({record.path}) has label {record.label}, but there are "
                    f"{len(self.classes)} classes; labels count from 0 and index `classes`"
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
        """Files that the data name, those that are missing among them."""
        return len({record.path for record in self.records}) + len(self.missing)

    @property
    def n_captions(self) -> int:
        """Captions of all videos together."""
        return sum(len(record.captions) for record in self.records)

    def subset(self, indices: Iterable[int]) -> VideoDataset:
        """The records at `indices`, in that order, with the same classes: a data set of its own, of whatever size.

        Of a protocol's data its name says how many are left, so that figures over a part are not taken for the whole.
        """
        part, whole = self.surviving(indices), self.protocol_spec.whole
        number = self.protocol_spec.videos if self.protocol_spec.listed is None else self.protocol_spec.listed
        if whole is None and number is not None:
            whole = (self.name, number)
        name = self.name
        if whole is not None:
            name = whole[0] if len(part) == whole[1] else f"{whole[0]}, {len(part)} of {whole[1]} videos"
        return replace(
            part, name=name, protocol_spec=replace(self.protocol_spec, videos=None, listed=None, whole=whole)
        )

    def surviving(self, indices: Iterable[int]) -> VideoDataset:
        """This data set without the records that could not be read: it still should have had them."""
        return replace(self, records=tuple(self.records[index] for index in indices))

    def allowing_fewer(self) -> VideoDataset:
        """The same data, of which videos may be missing without an error: figures over it are not the protocol's."""
        return replace(self, protocol_spec=replace(self.protocol_spec, fewer=True))

    def few_shot(self, shots: int, *, seed: int = 0) -> VideoDataset:
        """`shots` videos of every class, drawn at random and in the old order; 2, 4, 8 and 16 are usual.

        All clips of a video come with it. Raises ValueError for a class with fewer videos, and for records without a
        class.
        """
        if shots < 1:
            raise ValueError(f"shots is a number of videos a class, from 1, got {shots}")
        of_class: dict[int, dict[Path, None]] = {label: {} for label in range(len(self.classes))}
        for record in self.records:
            if record.label is None:
                raise ValueError(f"{self.name}: {record.path} has no class, so no shots can be drawn")
            of_class[record.label][record.path] = None
        short = [self.classes[label] for label, found in of_class.items() if len(found) < shots]
        if short or not of_class:
            raise ValueError(f"{self.name} has classes with fewer than {shots} videos: {', '.join(short) or 'all'}")
        drawn = {label: set(random.Random(f"{seed} {label}").sample([*of], shots)) for label, of in of_class.items()}
        chosen = [i for i, r in enumerate(self.records) if r.label is not None and r.path in drawn[r.label]]
        return replace(self.subset(chosen), name=f"{self.name}, {shots} a class")

    def of_classes(self, names: Sequence[str]) -> VideoDataset:
        """The videos of some classes, labelled by their place in `names`; ValueError for a name that is no class."""
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ValueError(f"{self.name} has no class {unknown[0]!r}; it has {', '.join(self.classes)}")
        place = {self.classes.index(name): label for label, name in enumerate(names)}
        records = tuple(replace(r, label=place[r.label]) for r in self.records if r.label in place)
        name, told = self.name, (self.protocol_spec.videos, self.protocol_spec.listed, self.protocol_spec.whole)
        if len(names) < len(self.classes):
            name = f"{name}, {len(names)} of {len(self.classes)} classes"
        of_protocol = any(part is not None for part in told)
        whole = (name, len(records)) if of_protocol else None
        protocol_spec = replace(self.protocol_spec, videos=None, listed=None, whole=whole)
        return replace(self, records=records, classes=tuple(names), name=name, protocol_spec=protocol_spec)

    def base_novel(self) -> tuple[VideoDataset, VideoDataset]:
        """The videos of the more frequent half of the classes and of the rarer half (base-to-novel generalisation).

        ViFi-CLIP (Rasheed et al. 2023) splits so: a model learns base classes and is asked for both. Equally frequent
        classes come by name; an odd class is a base one.
        """
        counts = Counter(record.label for record in self.records)
        order = sorted(range(len(self.classes)), key=lambda label: (-counts[label], self.classes[label]))
        half = (len(order) + 1) // 2
        base, novel = ([self.classes[label] for label in sorted(part)] for part in (order[:half], order[half:]))
        if not novel:
            raise ValueError(
                f"{self.name} has {pluralize(len(self.classes), 'class')}; base and novel ones need two or more"
            )
        return self.of_classes(base), self.of_classes(novel)

    def split(self, fraction: float, *, seed: int = 0) -> tuple[VideoDataset, VideoDataset]:
        """Cut off `fraction` of the videos for validation; returns (train, validation), both in the old order.

        Clips of one file stay together, every class gives the same share as nearly as whole videos allow, and every
        class keeps at least one video for training. The same seed gives the same split.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is the share of validation videos, between 0 and 1, got {fraction}")
        chosen = _draw(self.records, fraction=fraction, seed=seed)
        validation = [index for index, record in enumerate(self.records) if record.path in chosen]
        train = [index for index, record in enumerate(self.records) if record.path not in chosen]
        if not validation or not train:
            raise ValueError(
                f"{self!r} cannot give {fraction:g} of its videos to validation and keep some for training; "
                "give more videos, or another fraction"
            )
        return self.subset(train), self.subset(validation)


def _draw(records: Sequence[Record], *, fraction: float, seed: int) -> set[Path]:
    """Files that go to validation: a share of every class, the left-over places to the largest remainders."""
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
    most = {label: len(groups[label]) - 1 for label in order}  # one stays for training
    share = {label: min(int(fraction * len(groups[label])), most[label]) for label in order}
    left = max(1, round(fraction * len(seen))) - sum(share.values())
    while left > 0 and (with_room := [label for label in order if share[label] < most[label]]):
        least = min(with_room, key=lambda label: share[label] - fraction * len(groups[label]))
        share[least] += 1
        left -= 1
    return {path for label in order for path in groups[label][: share[label]]}
