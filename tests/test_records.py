"""Records and data sets are checked at construction, and split by file and class."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipvid.data.records import Record, VideoDataset


def test_invalid_records_are_refused():
    with pytest.raises(ValueError, match="start < end"):
        Record(Path("a.mp4"), start=2.0, end=1.0)
    with pytest.raises(ValueError, match="start < end"):
        Record(Path("a.mp4"), start=float("nan"))
    with pytest.raises(ValueError, match="caption is empty"):
        Record(Path("a.mp4"), ("a dog", " "))
    with pytest.raises(ValueError, match="label must be an integer >= 0, got -1"):
        Record(Path("a.mp4"), label=-1)


def test_a_label_outside_the_classes_names_the_record():
    records = (Record(Path("a.mp4"), label=0), Record(Path("b.mp4"), label=2))
    with pytest.raises(ValueError, match=r"record 1 \(b.mp4\) has label 2, but there are 2 classes"):
        VideoDataset(records, ("run", "walk"))
    with pytest.raises(ValueError, match="must be unique, got duplicates of run"):
        VideoDataset(records, ("run", "run", "walk"))


def test_repr_counts_instead_of_listing():
    data = VideoDataset(
        tuple(Record(Path(f"{n}.mp4"), ("x", "y"), label=0) for n in range(1000)), ("run",), name="many"
    )
    assert repr(data) == "VideoDataset('many': 1000 videos, 2000 captions, 1 class)"


def test_split_balances_classes_keeps_files_together_and_preserves_order():
    records = [Record(Path(f"{n}.mp4"), label=n % 3) for n in range(60)]
    records += [Record(Path(f"{n}.mp4"), label=n % 3, start=5.0) for n in range(60)]  # a second clip of each file
    data = VideoDataset(tuple(records), ("a", "b", "c"))
    train, validation = data.split(0.25, seed=3)
    assert not {r.path for r in train} & {r.path for r in validation}
    assert len(train) + len(validation) == 120
    assert [sum(r.label == c for r in validation) for c in range(3)] == [10, 10, 10]
    positions = [records.index(record) for record in validation]
    assert positions == sorted(positions)
    assert data.split(0.25, seed=3)[1] == validation != data.split(0.25, seed=4)[1]


def test_split_gives_small_classes_a_training_video_and_has_the_requested_size():
    records = [Record(Path(f"{n}.mp4"), label=min(n, 3)) for n in range(10)]  # classes of 1, 1, 1 and 7 videos
    train, validation = VideoDataset(tuple(records), tuple("abcd")).split(0.4)
    assert len(validation) == 4
    assert {r.label for r in train} == {0, 1, 2, 3}
    assert len(VideoDataset(tuple(records), tuple("abcd")).split(0.01)[1]) == 1
    with pytest.raises(ValueError, match=r"too few videos to hold out 0\.5"):
        VideoDataset(tuple(records[:1]), tuple("abcd")).split(0.5)
    with pytest.raises(ValueError, match=r"> 0 and < 1, got 1\.0"):
        VideoDataset(tuple(records), tuple("abcd")).split(1.0)
