"""Records and data sets are checked at construction, and split by file and class."""

from __future__ import annotations

from inspect import unwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clipvid.data.open import open_dataset
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import DataError


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


def test_a_table_has_a_row_per_caption_and_reads_back(tmp_path):
    clips = [tmp_path / f"{i}.mp4" for i in range(3)]
    for clip in clips:
        clip.touch()
    records = (
        Record(clips[0], ("a, b", 'say "hi"'), 1, start=0.5, end=2.25),
        Record(clips[0], ("a",), 0, start=2.25),
        Record(clips[2], ("null", "null"), 1),
    )
    data = VideoDataset(records, ("x", "y"))
    frame = data.to_frame()
    assert frame.columns.tolist() == ["path", "caption", "label", "start", "end"]
    assert frame["caption"].tolist() == ["a, b", 'say "hi"', "a", "null", "null"]
    assert frame["label"].tolist() == ["y", "y", "x", "y", "y"]
    frame.to_csv(tmp_path / "clips.csv", index=False)
    again = open_dataset("csv", tmp_path / "clips.csv")
    assert (again.records, again.classes) == (data.records, data.classes)
    bare = VideoDataset((Record(clips[0]), Record(clips[1], label=0)), ("x",)).to_frame()
    assert bare.columns.tolist() == ["path", "label"]
    assert bare["path"].tolist() == [str(clips[0]), str(clips[1])]
    assert bare["label"].isna().tolist() == [True, False]


def test_a_notebook_shows_the_first_records_escaped():
    records = [Record(Path(f"{i}.mp4"), ("<b>bold</b>", "x" * 500), 0) for i in range(30)]
    page = VideoDataset(tuple(records), ("<i>",))._repr_html_()
    assert page.count("<tr>") == 11
    assert "and 20 more" in page
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page
    assert "<i>" not in page
    assert len(page) < 5000


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


# arrays


def walking(length=6, height=20, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (length, height, width, 3), dtype=np.uint8)


def test_arrays_of_any_layout_become_named_clips_with_captions_and_labels():
    clips = [walking(), torch.from_numpy(walking(3, 16, 40)).permute(0, 3, 1, 2)]
    data = VideoDataset.from_arrays(clips, captions=["one", ("two", "zwei")], labels=["walk", "run"])
    assert [str(record.path) for record in data] == ["clip 0", "clip 1"]
    assert [record.captions for record in data] == [("one",), ("two", "zwei")]
    assert (data.classes, [record.label for record in data]) == (("run", "walk"), [1, 0])
    assert [record.array.frames.shape for record in data] == [(6, 20, 24, 3), (3, 16, 40, 3)]
    assert np.shares_memory(data[0].array.frames, clips[0])
    numbered = VideoDataset.from_arrays(clips, labels=torch.tensor([1, 0]), classes=["stand", "walk"], names=["a", "b"])
    assert [(str(record.path), record.label) for record in numbered] == [("a", 1), ("b", 0)]
    assert repr(data) == "VideoDataset('arrays': 2 videos, 3 captions, 2 classes)"


@pytest.mark.parametrize("missing", [None, float("nan")], ids=str)
def test_a_missing_label_is_that_of_a_clip_without_a_class_in_arrays_and_frames(missing, tmp_path):
    arrays = VideoDataset.from_arrays([walking()] * 3, labels=["dog", missing, "cat"])
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    for path in paths:
        path.touch()
    frame = VideoDataset.from_frame(pd.DataFrame({"path": paths, "label": ["dog", missing, "cat"]}))
    for data in (arrays, frame):
        assert (data.classes, [record.label for record in data]) == (("cat", "dog"), [1, None, 0])
    assert VideoDataset.from_frame(frame.to_frame()).records == frame.records
    assert VideoDataset.from_arrays([walking()], labels=[missing]).classes == ()


def test_numbers_beside_a_missing_label_stay_numbers():
    data = VideoDataset.from_arrays([walking()] * 3, labels=np.array([2.0, np.nan, 0.0]))
    assert (data.classes, [record.label for record in data]) == (("0", "1", "2"), [2, None, 0])


def test_equal_arrays_have_equal_content_whatever_their_layout():
    channels_first = np.ascontiguousarray(walking().transpose(0, 3, 1, 2))
    one, same, other, longer = VideoDataset.from_arrays([walking(), channels_first, walking(seed=1), walking(7)])
    assert one.array == same.array
    assert hash(one.array) == hash(same.array)
    assert len({record.array.content for record in (one, other, longer)}) == 3


@pytest.mark.parametrize(
    ("clips", "options", "message"),
    [
        ([walking() / 255], {}, "clip 0 must be uint8 with values 0 to 255, got float64; scale"),
        ([walking(), walking()[0]], {}, r"clip 1 must be \(T, H, W, 3\) or \(T, 3, H, W\).*got \(20, 24, 3\)"),
        ([walking()[:0]], {}, "with at least one frame, got"),
        ([walking()[:, :3, :, :]], {}, "axis of channels is ambiguous"),
        (walking(), {}, "put a single clip into a list"),
        ([walking()], {"captions": ["a", "b"]}, "captions must have one entry per clip, 1 in total"),
        ([walking()], {"captions": "a"}, "captions must have one entry per clip"),
        ([walking()] * 2, {"names": ["a", "a"]}, "names must be unique, got 'a' more than once"),
    ],
)
def test_invalid_arrays_are_refused_by_their_position(clips, options, message):
    with pytest.raises(ValueError, match=message):
        VideoDataset.from_arrays(clips, **options)
    with pytest.raises(DataError, match="clip 0: label 'jump' is none of the 1 given classes"):
        VideoDataset.from_arrays([walking()], labels=["jump"], classes=["run"])


def test_an_array_has_no_times():
    array = VideoDataset.from_arrays([walking()])[0].array
    with pytest.raises(ValueError, match=r"clip: start and end must be None for an array.*got 1\.0 and None"):
        Record(Path("clip"), start=1.0, array=array)


def test_items_are_records_and_slices_are_data_sets():
    data = VideoDataset(tuple(Record(Path(f"{n}.mp4"), label=n % 2) for n in range(4)), ("red", "blue"))
    item = unwrap(VideoDataset.__getitem__)  # the type checks of the tests stop wrong types earlier
    assert (data[-1], item(data, np.int64(1))) == (data.records[3], data.records[1])
    assert data[1:3] == data.subset([1, 2])
    assert data[::-1].records == data.records[::-1]
    with pytest.raises(IndexError, match=r"index must be in \[-4, 4\) for VideoDataset\('videos': 4 videos, .*got 100"):
        data[100]
    with pytest.raises(
        TypeError, match=r"must be an integer or a slice, got 'red'; of_classes\(\[name\]\) has the vid"
    ):
        item(data, "red")


@pytest.mark.parametrize("value", [None, "x", 0, 1, True, float("nan")])
def test_a_split_by_anything_but_a_share_is_refused(value):
    with pytest.raises(ValueError, match=f"fraction must be > 0 and < 1, got {value!r}; it is the share of validation"):
        unwrap(VideoDataset.split)(VideoDataset((Record(Path("a.mp4")), Record(Path("b.mp4")))), value)


@pytest.mark.parametrize("value", [None, "x", 1.0, True, 0])
def test_shots_that_are_no_positive_integer_are_refused(value):
    with pytest.raises(ValueError, match=f"shots must be an integer >= 1, got {value!r}; it is the number of videos"):
        unwrap(VideoDataset.few_shot)(VideoDataset((Record(Path("a.mp4"), label=0),), ("red",)), value)


@pytest.mark.parametrize("value", [None, "x", 1.0, True, -1])
def test_seeds_that_are_no_integer_are_refused(value):
    data = VideoDataset(tuple(Record(Path(f"{n}.mp4"), label=0) for n in range(4)), ("red",))
    for split, size in ((VideoDataset.split, 0.5), (VideoDataset.few_shot, 1)):
        with pytest.raises(ValueError, match=f"seed must be an integer >= 0, got {value!r}"):
            unwrap(split)(data, size, seed=value)
