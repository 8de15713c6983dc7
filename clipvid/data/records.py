"""Data sets as plain data: a Record describes one clip, a VideoDataset is an ordered collection of records.

Contract: frozen, validated on construction, cheap to copy and to send to loader workers. A label is an index into
`classes`. Made by the readers of `clipvid.data.open`, from a table in memory (`from_frame`) or from frames in memory
(`from_arrays`). Knows nothing of decoding.
"""

from __future__ import annotations

import operator
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

from clipvid.config import checks
from clipvid.data.clips.arrays import Frames, Labels, array_clips, as_texts, captions_of
from clipvid.data.clips.labels import class_names, label_index
from clipvid.data.clips.record import NO_PROTOCOL as NO_PROTOCOL
from clipvid.data.clips.record import ProtocolSpec as ProtocolSpec
from clipvid.data.clips.record import Record as Record
from clipvid.data.clips.record import checked_records
from clipvid.data.clips.split_files import validation_paths
from clipvid.data.files import LeftOut, advice_on_root
from clipvid.data.paths import local_path
from clipvid.errors import DataError
from clipvid.runtime.display.names import show_several
from clipvid.runtime.display.tables import data_frame, html_table
from clipvid.runtime.text import pluralize

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 5
"""Number of files that an error lists before it only counts the rest."""


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
    left_out: tuple[LeftOut, ...] = ()
    """Files and folders that are not read, with reasons, of a data set that was found in a folder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", checked_records(self.records))
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "missing", tuple(self.missing))
        duplicates = sorted(name for name, count in Counter(self.classes).items() if count > 1)
        if duplicates:
            raise ValueError(
                f"{self.name}: class names must be unique, got duplicates of {', '.join(duplicates)}; rename them"
            )
        for index, record in enumerate(self.records):
            if record.label is not None and record.label >= len(self.classes):
                raise ValueError(
                    f"{self.name}: record {index} ({record.path}) has label {record.label}, but there are "
                    f"{len(self.classes)} classes; labels index `classes` from 0"
                )

    @classmethod
    def from_frame(
        cls,
        df: pd.DataFrame,
        *,
        root: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        allow_missing: bool = False,
        check_files: bool = True,
    ) -> VideoDataset:
        """Return the data set of a pandas DataFrame with one row per caption or per labelled video.

        Columns, grouping and checks are those of a csv file (`open_dataset`): path, caption and/or label, and perhaps
        start, end (seconds) and split. A missing label (None, NaN) is that of a clip without a class. Rows are counted
        from 0 in error messages, as `df.iloc` does.

        Args:
            root: folder of relative paths; default: the working folder.
            columns: names of the columns, where they differ: {"path": "video_path", "caption": "text"}.
            split, classes, allow_missing, check_files: as in `open_dataset`.

        Raises DataError for a missing column, an invalid row and missing files.
        """
        from clipvid.data.formats.frame import frame_table
        from clipvid.data.formats.rows import read_clips

        folder = Path() if root is None else local_path(root)
        clips = read_clips(
            frame_table(df), [folder], columns=columns, split=split, classes=classes, check_files=check_files
        )
        name = f"DataFrame:{split}" if split else "DataFrame"
        data = cls(clips.records, clips.classes, name, clips.missing)
        data.require_files(folder, allow_missing=allow_missing)
        return data

    @classmethod
    def from_arrays(
        cls,
        clips: Iterable[Frames],
        captions: Sequence[str | Sequence[str]] | None = None,
        *,
        labels: Labels | None = None,
        classes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> VideoDataset:
        """Return a data set of frames in memory, which is used like one of files.

        The arrays are not copied, so they must not change afterwards.

        Args:
            clips: numpy or torch uint8, (T, H, W, 3) or (T, 3, H, W), of any sizes and lengths.
            captions: a caption or several per clip.
            labels: a class name or number per clip; None or NaN for a clip without a class.
            classes: class names in label order; default: the sorted names, or the numbers up to the largest.
            names: names for messages and search hits; default: "clip 0", "clip 1", ...

        Raises ValueError for another type or shape and for lists of other lengths, DataError for a label that is none
        of `classes`.
        """
        arrays = array_clips(clips)
        for name, values in (("captions", captions), ("labels", labels), ("names", names)):
            if values is not None and (not _is_list(values) or len(values) != len(arrays)):
                raise ValueError(
                    f"{name} must have one entry per clip, {len(arrays)} in total, got {values!r:.80}; give a list of "
                    "that length"
                )
        names = [f"clip {index}" for index in range(len(arrays))] if names is None else names
        checks.texts("names", names, advice="give one text per clip")
        if duplicates := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"names must be unique, got {duplicates[0]!r} more than once; rename one")
        texts = [()] * len(arrays) if captions is None else captions
        class_labels = [] if labels is None else as_texts(labels)
        all_classes = class_names(class_labels, classes, source="labels")
        indices = {name: index for index, name in enumerate(all_classes)}
        records = [
            Record(Path(name), captions_of(text, name), array=array)
            for name, text, array in zip(names, texts, arrays, strict=True)
        ]
        for i, label in enumerate(class_labels):
            records[i] = replace(records[i], label=label_index(label, indices, location=names[i]))
        return cls(tuple(records), all_classes, name="arrays")

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> VideoDataset: ...
    def __getitem__(self, index: int | slice) -> Record | VideoDataset:
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        try:
            position = operator.index(index)
        except TypeError as error:
            raise TypeError(
                f"index must be an integer or a slice, got {index!r:.80}; of_classes([name]) has the videos of a class"
            ) from error
        if not -len(self) <= position < len(self):
            raise IndexError(f"index must be in [{-len(self)}, {len(self)}) for {self!r}, got {position}")
        return self.records[position]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        parts = [pluralize(len(self), "video"), pluralize(self.n_captions, "caption")]
        if self.classes:
            parts.append(pluralize(len(self.classes), "class"))
        if self.missing:
            parts.append(f"{len(self.missing)} missing")
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out")
        return f"VideoDataset({self.name!r}: {', '.join(parts)})"

    def _repr_html_(self) -> str:
        records = self.records[:10]
        labels = ["" if r.label is None else self.classes[r.label] for r in records]
        rows = [[str(r.path), " | ".join(r.captions), label] for r, label in zip(records, labels, strict=True)]
        return html_table(repr(self), ["path", "captions", "label"], rows, total=len(self))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per caption, and one per clip without captions: path, caption, label (its name), start, end.

        A column without any value is left out. Rows of one clip follow each other, in the order of the records.
        """
        rows = []
        for r in self.records:
            label = None if r.label is None else self.classes[r.label]
            rows += [(str(r.path), caption, label, r.start, r.end) for caption in r.captions or (None,)]
        frame = data_frame(rows, ["path", "caption", "label", "start", "end"])
        return frame.astype({"start": float, "end": float}).dropna(axis="columns", how="all") if rows else frame

    @property
    def n_files(self) -> int:
        """Number of files that the data set names, including missing ones."""
        return len({record.path for record in self.records}) + len(self.missing)

    @property
    def n_captions(self) -> int:
        """Number of captions of all videos together."""
        return sum(len(record.captions) for record in self.records)

    def require_files(self, root: str | Path, *, allow_missing: bool = False) -> None:
        """Raise DataError with the missing files, unless `allow_missing` and some videos exist.

        `root` is the folder, or the table in it, where the files were looked for.
        """
        if not self.missing or (allow_missing and len(self)):
            return
        advice = advice_on_root(root)
        if len(self):
            note = self.protocol_spec.short_list_note
            advice = f"fetch them, or allow it (allow_missing) to continue without them{note}"
        raise DataError(
            f"{self.source or self.name}: {len(self.missing)} of {self.n_files} videos are missing: "
            f"{show_several(self.missing, _SHOWN)}; {advice}"
        )

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
        shots = checks.integer("shots", shots, 1, advice="it is the number of videos per class")
        seed = checks.seed(seed)
        paths_by_label: dict[int, dict[Path, None]] = {label: {} for label in range(len(self.classes))}
        for record in self.records:
            if record.label is None:
                raise ValueError(
                    f"{self.name}: {record.path} has no class, but few-shot sampling needs one for each; label it, or "
                    "leave it out"
                )
            paths_by_label[record.label][record.path] = None
        too_small = [self.classes[label] for label, paths in paths_by_label.items() if len(paths) < shots]
        if too_small or not paths_by_label:
            raise ValueError(
                f"{self.name} has classes with fewer than {shots} videos: {', '.join(too_small) or 'all'}; take fewer "
                "shots, or leave out those classes"
            )
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

        Clips of one file stay together, and a file counts for the class of its first clip. Every class contributes the
        same share, up to rounding to complete videos, and leaves at least one video for training. The same seed gives
        the same split.
        """
        checks.share("fraction", fraction, advice="it is the share of validation videos")
        seed = checks.seed(seed)
        held_out = validation_paths(self.records, fraction=fraction, seed=seed)
        validation = [index for index, record in enumerate(self.records) if record.path in held_out]
        train = [index for index, record in enumerate(self.records) if record.path not in held_out]
        if not validation or not train:
            raise ValueError(
                f"{self!r} has too few videos to hold out {fraction:g} of them for validation; "
                "give more videos, or another fraction"
            )
        return self.subset(train), self.subset(validation)


def _is_list(values: object) -> bool:
    return hasattr(values, "__len__") and not isinstance(values, str)
