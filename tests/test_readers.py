"""Readers return the annotated records, or raise an error that names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from clipvid.data.files import discover
from clipvid.data.open import open_dataset, read_dataset
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import DataError
from clipvid.registry import PROTOCOLS, READERS

SHARED = Path(__file__).parents[2] / "shared" / "data"
MSRVTT = SHARED / "annotations" / "msrvtt"
needs_msrvtt = pytest.mark.shared_data("annotations", "msrvtt")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.fixture
def table(tmp_path):
    """Write captions.csv with the given text beside a.mp4, b.mp4 and c.mp4, and open it."""
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")

    def write(text, *, name="captions.csv", encoding="utf-8", **options):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return open_dataset("csv", tmp_path, **options)

    return write


# csv


def test_rows_of_one_video_become_one_record_with_its_captions_in_order(table, tmp_path):
    data = table("path,caption\nb.mp4,two dogs\na.mp4,a cat\nb.mp4,dogs play\nb.mp4,two dogs\n")
    assert [record.path for record in data] == [tmp_path / "b.mp4", tmp_path / "a.mp4"]
    assert data[0].captions == ("two dogs", "dogs play", "two dogs")  # repeated captions count
    assert data.classes == ()


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("column", ["path", "File", "video"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_delimiters_column_names_byte_order_marks_and_line_ends_are_recognised(table, delimiter, column, ends):
    rows = [[column, "caption", "note"], ["a.mp4", '"one, two; three\tfour"', "x"], [], ["b.mp4", "un café 🐶", "y"]]
    data = table("\ufeff" + ends.join(delimiter.join(row) for row in rows))
    assert data[0].captions == ("one, two; three\tfour",)
    assert data[1].captions == ("un café 🐶",)


def test_captions_that_look_like_missing_values_stay_captions(table):
    assert table("path,caption\na.mp4,null\nb.mp4,NA\n")[0].captions == ("null",)


def test_class_names_are_sorted_and_shared_by_the_splits_of_a_table(table):
    text = "path,label,split\na.mp4,walk,train\nb.mp4,run,train\nc.mp4,walk,val\n"
    train, val = table(text, split="train"), table(text, split="val")
    assert train.classes == val.classes == ("run", "walk")
    assert ([r.label for r in train], [r.label for r in val]) == ([1, 0], [1])
    with pytest.raises(DataError, match="no split 'test'; it has train, val"):
        table(text, split="test")


def test_numeric_classes_are_used_as_labels(table):
    data = table("path,label\na.mp4,10\nb.mp4,2\n")
    assert [record.label for record in data] == [10, 2]
    assert len(data.classes) == 11
    with pytest.raises(DataError, match="too large to be a class number"):
        table("path,label\na.mp4,20240101\n")


def test_given_classes_fix_the_label_order_by_name_or_number(table):
    text = "path,label\na.mp4,walk\nb.mp4,0\n"
    assert [record.label for record in table(text, classes=["run", "walk"])] == [1, 0]
    with pytest.raises(DataError, match="line 2: label 'walk' is none of the 2 given classes"):
        table(text, classes=["run", "jump"])


def test_parts_of_one_file_are_separate_records_with_their_times(table):
    data = table("path,caption,start,end\na.mp4,first,0,1.5\na.mp4,second,1.5,\n")
    assert [(r.start, r.end) for r in data] == [(0.0, 1.5), (1.5, None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,caption\na.mp4,x\n", "line 1: no column named path, file or video; the columns are name, caption"),
        ("path,text\na.mp4,x\n", "line 1: no column caption or label"),
        ("path,caption,caption\na.mp4,x,y\n", "line 1: duplicate column 'caption'"),
        ("path,caption\n", "no row below the header"),
        ("", "no column"),
        ("path,caption\na.mp4,x\nb.mp4,  \n", "line 3: the caption is empty"),
        ("path,label\na.mp4,\n", "line 2: the label is empty"),
        ("path,caption\n,x\n", "line 2: the path is empty"),
        ("path,caption\na.mp4,a dog, running\n", "line 2: 3 fields, but the header has 2"),
        ('path,caption\na.mp4,"a dog\nb.mp4,x\n', "line 3: .*quote"),
        ("path,label\na.mp4,run\nb.mp4,run\na.mp4,walk\n", "line 4: a.mp4 has label 'walk', but line 2 says 'run'"),
        ("path,caption,start\na.mp4,x,soon\n", "line 2: start must be a number of seconds >= 0, got 'soon'"),
        ("path,caption,end\na.mp4,x,nan\n", "line 2: end must be a number of seconds >= 0, got 'nan'"),
        ("path,caption,start,end\na.mp4,x,3,2\n", "line 2: start must come before end"),
    ],
)
def test_an_invalid_table_is_refused_with_its_line(table, text, message):
    with pytest.raises(DataError, match=rf"captions.csv.*{message}"):
        table(text)


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 3), ("utf-16", 1)])
def test_another_encoding_names_the_line(table, encoding, line):
    with pytest.raises(DataError, match=f"captions.csv, line {line}: byte .* is not UTF-8"):
        table("path,caption\na.mp4,dog\nb.mp4,café\n", encoding=encoding)


def test_missing_videos_are_counted_and_can_be_allowed(table):
    text = "path,caption\na.mp4,x\n" + "".join(f"gone{n}.mp4,x\n" for n in range(8))
    with pytest.raises(DataError, match=r"8 of 9 videos are missing: .*gone0.mp4.* and 3 more; .*allow_missing"):
        table(text)
    data = table(text, allow_missing=True)
    assert (len(data), len(data.missing)) == (1, 8)
    assert "8 missing" in repr(data)
    assert len(table(text, check_files=False)) == 9


@pytest.mark.parametrize("allow", [False, True])
def test_a_folder_without_any_of_the_videos_is_refused_even_with_allow_missing(table, tmp_path, allow):
    """The message does not suggest allow_missing, as it would not help."""
    message = rf"2 of 2 videos are missing: .*none of them is in {tmp_path}; is it the folder of the videos\?$"
    with pytest.raises(DataError, match=message):
        table("path,caption\ngone.mp4,x\nlost.mp4,x\n", allow_missing=allow)
    with pytest.raises(DataError, match=message):  # a table as root stands for its folder
        open_dataset("csv", tmp_path / "captions.csv", allow_missing=allow)


def test_read_dataset_lists_missing_videos_without_raising(tmp_path):
    (tmp_path / "captions.csv").write_text("path,caption\ngone.mp4,x\n")
    data = read_dataset("csv", tmp_path)
    assert (len(data), data.missing, data.n_files) == (0, (tmp_path / "gone.mp4",), 1)


def test_the_table_may_lie_apart_from_the_videos(tmp_path):
    touch(tmp_path, "videos/a.mp4", "lists/b.mp4")
    table = tmp_path / "lists" / "train.csv"
    table.write_text("path,caption\na.mp4,x\nb.mp4,y\n")
    data = open_dataset("csv", tmp_path / "videos", annotations=table)
    assert [r.path for r in data] == [tmp_path / "videos/a.mp4", tmp_path / "lists/b.mp4"]
    assert len(open_dataset("csv", table, allow_missing=True)) == 1  # with a table as root, only its folder is searched


def test_a_folder_with_no_or_several_tables_is_refused(table, tmp_path):
    with pytest.raises(DataError, match="no csv or tsv file"):
        open_dataset("csv", tmp_path)
    for name in ("one.csv", "two.tsv"):
        (tmp_path / name).write_text("path,caption\na.mp4,x\n")
    with pytest.raises(DataError, match=r"2 tables \(one.csv, two.tsv\)"):
        open_dataset("csv", tmp_path)
    assert len(table("path,caption\na.mp4,x\nb.mp4,x\n")) == 2  # captions.csv takes precedence


# other column names, DataFrames and URLs


def test_columns_of_other_names_are_read_by_option(table, tmp_path):
    text = "Video_Path,Text,Class,from,to\na.mp4,a cat,cat,1,2.5\na.mp4,sleeps,cat,1,2.5\nb.mp4,a dog,dog,,\n"
    columns = {"path": "video_path", "caption": "Text", "label": "class", "start": "from", "end": "to"}
    data = table(text, columns=columns)
    plain = table(text.replace("Video_Path,Text,Class,from,to", "path,caption,label,start,end"))
    assert data == plain
    assert data[0] == Record(tmp_path / "a.mp4", ("a cat", "sleeps"), 0, 1.0, 2.5)
    assert table("path,video,caption\nx,a.mp4,y\n", columns={"path": "video"})[0].path == tmp_path / "a.mp4"
    with pytest.raises(ValueError, match=r'format "csv", got it for .folder.; leave it out'):
        open_dataset("folder", tmp_path, columns=columns)
    with pytest.raises(ValueError, match=r"columns must name some of path, caption, .*, got 'paths'"):
        table(text, columns={"paths": "video_path"})


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("video_path,text", None, r"no column named path.*give columns={'path': 'video_path', 'caption': 'text'}$"),
        ("path,sentence", None, r"no column caption or label.*give columns={'caption': 'sentence'}$"),
        ("filename,class", None, r"give columns={'path': 'filename', 'label': 'class'}$"),
        ("path,capt1on", None, r"give columns={'caption': 'capt1on'}$"),
        ("path,x", None, r"the columns are path, x; to read other names, give columns={'caption': 'NAME'}$"),
        (
            "path,text",
            {"caption": "txt"},
            "no column 'txt' for caption; the columns are path, text; did you mean 'text'",
        ),
    ],
)
def test_a_missing_column_suggests_the_option_with_the_names_of_the_table(table, header, columns, message):
    with pytest.raises(DataError, match=rf"captions\.csv, line 1: .*{message}"):
        table(f"{header}\na.mp4,x\n", columns=columns)


TABLE = [("a.mp4", "a cat", "cat", 1.0), ("b.mp4", "NA", "dog", None), ("a.mp4", "sleeps", "cat", 1.0)]


def test_a_frame_is_read_like_the_csv_file_of_its_content(table, tmp_path):
    df = pd.DataFrame(TABLE, columns=["path", "caption", "label", "start"])
    from_csv = table(df.to_csv(index=False))
    from_frame = VideoDataset.from_frame(df, root=tmp_path)
    assert (from_frame.records, from_frame.classes) == (from_csv.records, from_csv.classes)
    assert from_frame[1].captions == ("NA",)
    renamed = df.rename(columns={"path": "video_path", "caption": "text"})
    columns = {"path": "video_path", "caption": "text"}
    assert VideoDataset.from_frame(renamed, root=tmp_path, columns=columns).records == from_csv.records
    absolute = df.assign(path=[tmp_path / name for name in df.path]).astype({"label": "category"})
    assert VideoDataset.from_frame(absolute).records == from_csv.records


def test_numeric_labels_of_a_frame_stay_numbers_beside_empty_cells(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    df = pd.DataFrame({"path": ["a.mp4", "b.mp4"], "label": [1.0, 0.0], "split": ["train", "val"]})
    data = VideoDataset.from_frame(df, root=tmp_path, split="train")
    assert (data.classes, data[0].label, data.name, len(data)) == (("0", "1"), 1, "DataFrame:train", 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"name": ["a.mp4"], "text": ["x"]},
            r"the DataFrame: no column named path.*columns={'path': 'name', 'caption'",
        ),
        ({"path": ["a.mp4"], "Path": ["x"]}, "the DataFrame: duplicate column 'path'"),
        ({"path": [], "caption": []}, "the DataFrame: no row below the header; add one per clip"),
        ({"path": ["a.mp4", "b.mp4"], "caption": ["x", None]}, "the DataFrame, row 1: the caption is empty"),
        ({"path": ["a.mp4", None], "caption": ["x", "y"]}, "the DataFrame, row 1: the path is empty"),
        ({"path": ["a.mp4"], "caption": [["x", "y"]]}, r"row 0: the caption must be a single.*df.explode\('caption'\)"),
        ({"path": ["a.mp4"] * 2, "label": ["x", "y"]}, "row 1: a.mp4 has label 'y', but row 0 says 'x'; keep one"),
        ({"path": ["a.mp4"] * 2, "label": ["x", None]}, "row 1: a.mp4 has no label, but row 0 says 'x'; keep one"),
        (
            {"path": ["a.mp4"], "caption": ["x"], "start": [-1]},
            "row 0: start must be a number of seconds >= 0, got '-1'",
        ),
        ({"path": ["a.mp4", "gone.mp4"], "caption": ["x"] * 2}, "DataFrame: 1 of 2 videos are missing: .*gone.mp4"),
    ],
)
def test_an_invalid_frame_is_refused_with_its_row(tmp_path, rows, message):
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(DataError, match=message):
        VideoDataset.from_frame(pd.DataFrame(rows), root=tmp_path)


def test_file_urls_are_paths_and_other_urls_are_refused(table, tmp_path):
    touch(tmp_path, "a b%.mp4")
    url = (tmp_path / "a b%.mp4").as_uri()
    assert "a%20b%25" in url
    data = table(f"path,caption\n{url},x\n")
    assert data[0].path == tmp_path / "a b%.mp4"
    assert open_dataset("csv", (tmp_path / "captions.csv").as_uri()).records == data.records
    assert open_dataset("csv", f"file://localhost{tmp_path}").records == data.records
    with pytest.raises(DataError, match=r"captions.csv, line 2: s3://bucket/a.mp4 is a URL.*download it, or mount"):
        table("path,caption\ns3://bucket/a.mp4,x\n")
    with pytest.raises(DataError, match=r"http://example\.org/x is a URL, and clipvid reads local files"):
        open_dataset("videos", "http://example.org/x")
    with pytest.raises(DataError, match="on the machine 'server'; write file:///absolute"):
        open_dataset("videos", "file://server/x")


# folder


def test_sub_folders_are_classes_at_any_depth_and_hidden_files_are_ignored(tmp_path):
    touch(tmp_path, "walk/b.MP4", "walk/deep/a.webm", "run/c.avi", "run/.c.avi.mp4", "run/notes.txt", ".git/x.mp4")
    data = open_dataset("folder", tmp_path)
    assert data.classes == ("run", "walk")
    assert [(r.path.name, r.label) for r in data] == [("c.avi", 0), ("b.MP4", 1), ("a.webm", 1)]


def test_files_without_class_folders_are_unlabelled(tmp_path):
    touch(tmp_path, "b.mp4", "a.mkv", "notes.txt")
    data = open_dataset("folder", tmp_path)
    assert [(r.path.name, r.label) for r in data] == [("a.mkv", None), ("b.mp4", None)]


def test_splits_are_folders_below_the_root(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.mp4", "val/walk/c.mp4")
    train = open_dataset("folder", tmp_path, split="train")
    val = open_dataset("folder", tmp_path, split="val", classes=train.classes)
    assert [r.label for r in val] == [1]
    with pytest.raises(DataError, match=r"holds splits \(train, val\).*give one as split=NAME"):
        open_dataset("folder", tmp_path)
    with pytest.raises(DataError, match=r"below .* are train, val"):
        open_dataset("folder", tmp_path, split="test")
    with pytest.raises(DataError, match="walk is none of the 1 given classes"):
        open_dataset("folder", tmp_path, split="val", classes=["run"])


def test_stray_files_and_empty_classes_are_refused(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match="holds no video"):
        open_dataset("folder", tmp_path)
    touch(tmp_path, "run/a.mp4", "walk/notes.txt")
    with pytest.raises(DataError, match="walk holds no video; remove it"):
        open_dataset("folder", tmp_path)
    touch(tmp_path, "b.mp4")
    with pytest.raises(DataError, match=r"also b.mp4 beside them"):
        open_dataset("folder", tmp_path)


def test_a_symlink_cycle_does_not_loop(tmp_path):
    touch(tmp_path, "run/a.mp4")
    (tmp_path / "run" / "again").symlink_to(tmp_path / "run", target_is_directory=True)
    assert discover(tmp_path).clips == (tmp_path / "run" / "a.mp4",)


# msrvtt


@pytest.fixture
def msrvtt(tmp_path):
    """A tiny MSR-VTT: the official json and lists of ids, and the videos in several of the usual folders."""
    videos = [("video0", "train"), ("video1", "validate"), ("video2", "test"), ("video3", "test")]
    content = {
        "videos": [{"video_id": video, "split": split} for video, split in videos],
        "sentences": [{"video_id": v, "caption": f"{v} {n}"} for n in range(2) for v, _ in videos],
    }
    (tmp_path / "annotation").mkdir()
    (tmp_path / "annotation" / "MSRVTT_data.json").write_text(json.dumps(content))
    (tmp_path / "annotation" / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\n")
    touch(tmp_path, "videos/all/video0.mp4", "videos/all/video1.MP4", "TestVideo/video2.webm", "videos/video3.avi")
    return tmp_path


def test_official_json_gives_all_captions_of_a_split(msrvtt):
    data = open_dataset("msrvtt", msrvtt, split="test", allow_missing=True)
    assert [(r.path.name, r.captions) for r in data] == [
        ("video2.webm", ("video2 0", "video2 1")),
        ("video3.avi", ("video3 0", "video3 1")),
    ]
    assert [r.path.name for r in open_dataset("msrvtt", msrvtt, split="val", allow_missing=True)] == ["video1.MP4"]


def test_lists_of_ids_take_their_captions_from_the_json(msrvtt):
    train = open_dataset("msrvtt-1ka", msrvtt, split="train", allow_missing=True)
    assert [r.captions[0] for r in train] == ["video0 0", "video1 0"]
    listed = msrvtt / "annotation" / "MSRVTT_train.9k.csv"
    by_name = open_dataset("msrvtt", msrvtt, annotations=listed, allow_missing=True)
    assert by_name.records == train.records
    assert by_name.name == "msrvtt:train-9k"
    with pytest.raises(DataError, match="msrvtt train-9k has 9000 videos and 180000 captions, but got 2 and 4"):
        open_dataset("msrvtt", msrvtt, annotations=listed)


def test_a_named_split_of_another_size_is_refused(msrvtt):
    with pytest.raises(DataError, match="msrvtt-1ka train has 9000 videos and 180000 captions, but got 2 and 4"):
        open_dataset("msrvtt-1ka", msrvtt, split="train")


def test_ids_without_captions_and_missing_videos_are_refused(msrvtt):
    listed = msrvtt / "list.csv"
    listed.write_text("video_id\nvideo0\nvideo99\n")
    (msrvtt / "MSRVTT_data.json").write_bytes((msrvtt / "annotation" / "MSRVTT_data.json").read_bytes())
    with pytest.raises(DataError, match="no captions for 1 of 2 videos, such as video99"):
        open_dataset("msrvtt", msrvtt, annotations=listed)
    (msrvtt / "videos/all/video0.mp4").unlink()
    listed.write_text("video_id\nvideo0\nvideo1\n")
    with pytest.raises(DataError, match=r"1 of 2 videos are missing: .*video0\.mp4"):
        open_dataset("msrvtt", msrvtt, annotations=listed)
    data = open_dataset("msrvtt", msrvtt, annotations=listed, allow_missing=True)
    assert [path.name for path in data.missing] == ["video0.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{]", "line 1: not JSON"),
        ('{"video0.mp4": []}', "line 1: 'video0.mp4' must have captions"),
        ("[]", "line 1: unknown layout"),
        ('{"videos": [{"id": 1}], "sentences": []}', "line 1: an entry without video_id"),
    ],
)
def test_other_json_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset("msrvtt", tmp_path, annotations=tmp_path / "x.json")


def test_unknown_splits_and_missing_annotations_say_what_is_needed(tmp_path):
    with pytest.raises(DataError, match="no validation set"):
        open_dataset("msrvtt-1ka", tmp_path, split="val")
    with pytest.raises(DataError, match=r"needs MSRVTT_JSFUSION_test.csv or test_JSFUSION.json.*as annotations=PATH"):
        open_dataset("msrvtt-1ka", tmp_path)
    with pytest.raises(DataError, match="needs a split"):
        open_dataset("msrvtt", tmp_path)


@needs_msrvtt
def test_the_published_1ka_test_list_gives_its_1000_pairs_in_every_layout():
    data = open_dataset("msrvtt-1ka", MSRVTT, check_files=False)
    assert (len(data), data.n_captions) == (1000, 1000)
    assert data[0].path.name == "video9770.mp4"
    assert data[0].captions == ("a person is connecting something to system",)
    stan = open_dataset("msrvtt", MSRVTT, annotations=MSRVTT / "stan_style" / "test_JSFUSION.json", check_files=False)
    assert stan.records == data.records


@needs_msrvtt
def test_the_published_train_lists_are_read_and_videos_counted_missing():
    subset = MSRVTT / "MSRVTT_data_RECONSTRUCTED_SUBSET.json"
    with pytest.raises(DataError, match=r"no captions for \d{4} of 9000 videos"):
        open_dataset("msrvtt", MSRVTT, split="train-9k", annotations=subset, check_files=False)
    official = open_dataset("msrvtt", MSRVTT, annotations=subset, check_files=False)
    assert (len(official), official.n_captions) == (210, 4200)
    with pytest.raises(DataError, match=r"1000 of 1000 videos are missing: .*video9770.mp4"):
        open_dataset("msrvtt-1ka", MSRVTT)


@pytest.mark.shared_data("videos")
def test_the_real_clips_open_as_a_table_and_as_a_folder():
    data = open_dataset("csv", SHARED / "videos")
    assert (len(data), data.n_captions, data.name) == (39, 39, "videos")
    assert {r.path for r in open_dataset("folder", SHARED / "videos")} == {r.path for r in data}


# arguments


def test_wrong_arguments_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=rf"'cvs' .*csv.*; choose one of {', '.join([*READERS, *PROTOCOLS])}"):
        open_dataset("cvs", tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist; correct the path"):
        open_dataset("folder", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unique names"):
        open_dataset("csv", tmp_path, classes=["run", "run"])
