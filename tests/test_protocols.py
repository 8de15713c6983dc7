"""Named protocols on real annotation files: their counts, equal data from all layouts, damage reported by line."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipvid.data.formats import protocol_reader
from clipvid.data.formats.annotations import Annotation, read_annotation
from clipvid.data.open import open_dataset
from clipvid.data.records import ProtocolSpec
from clipvid.errors import DataError
from clipvid.evaluation.retrieval import queries
from clipvid.features.embed import require_all_videos
from clipvid.registry import PROTOCOLS

REAL = Path(__file__).parents[2] / "shared" / "data" / "annotations"
needs_real = pytest.mark.shared_data("annotations")

COUNTS = {  # protocol, split -> number of videos, captions and classes
    ("msrvtt-1ka", "test"): (1000, 1000, 0),
    ("didemo", "test"): (1004, 1004, 0),
    ("didemo", "val"): (1065, 1065, 0),
    ("lsmdc-1k", "test"): (1000, 1000, 0),
    ("msvd", "test"): (670, 27_763, 0),
    ("msvd", "val"): (100, 4290, 0),
    ("k400", "val"): (19_906, 0, 400),
    ("ssv2", "val"): (24_777, 0, 174),
    ("ssv2", "test"): (27_157, 0, 174),
    ("ssv2-template", "val"): (24_777, 24_777, 0),
    ("ucf101", "test"): (3783, 0, 101),
    ("ucf101", "test-2"): (3734, 0, 101),
    ("ucf101", "test-3"): (3696, 0, 101),
    ("ucf101", "train"): (9537, 0, 101),
    ("hmdb51", "test"): (1530, 0, 51),
    ("hmdb51", "train"): (3570, 0, 51),
}
FOLDER = {"ssv2-template": "ssv2", "msrvtt-1ka": "msrvtt", "lsmdc-1k": "lsmdc", "msrvtt-full": "msrvtt"}
SUBFOLDER = {"hmdb51": "testTrainMulti_7030_splits"}


@functools.cache  # parsing the largest list takes seconds
def opened(name: str, split: str | None = None, file: str | None = None, **options):
    folder = REAL / FOLDER.get(name, name)
    annotations = folder / file if file else folder
    return open_dataset(name, folder, split=split, annotations=annotations, check_files=False, **options)


@functools.cache  # protocols share files
def parsed(path: Path) -> Annotation:
    return read_annotation(path)


@pytest.fixture(scope="module", autouse=True)
def _real_files_are_parsed_once() -> Iterator[None]:
    """Keep the content of the real files, which several protocols and tests share."""
    with pytest.MonkeyPatch.context() as patch:
        reader = read_annotation
        patch.setattr(protocol_reader, "read_annotation", lambda p: (parsed if p.is_relative_to(REAL) else reader)(p))
        yield
    parsed.cache_clear()
    opened.cache_clear()


@needs_real
@pytest.mark.parametrize(("name", "split"), list(COUNTS))
def test_the_official_files_have_the_counts_of_the_protocol(name, split):
    data = opened(name, split)
    assert (len(data), data.n_captions, len(data.classes)) == COUNTS[name, split]
    assert data.name == f"{name}:{split}"
    if data.classes and (name, split) != ("ssv2", "test"):
        assert {record.label for record in data} == set(range(len(data.classes)))


@needs_real
@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("msrvtt-1ka", "test", "stan_style/test_JSFUSION.json"),
        ("didemo", "test", "stan_style/test.json"),
        ("lsmdc-1k", "test", "stan_style/lsmdc_test.json"),
        ("lsmdc-1k", "test", "mdmmt_lsmdc_mdata_test.json"),
    ],
)
def test_other_layouts_of_a_split_give_the_same_data(name, split, file):
    official, other = opened(name, split), opened(name, split, file)
    assert [r.path.stem.rstrip(".") for r in other] == [r.path.stem.rstrip(".") for r in official]
    for ours, theirs in zip(official, other, strict=True):  # in 33 videos of DiDeMo, the sentences are in another order
        assert sorted(" ".join(theirs.captions).split()) == sorted(" ".join(ours.captions).split())


@needs_real
def test_lists_of_files_with_class_numbers_give_the_classes_of_the_official_files():
    def labels(data):
        return {record.path.stem: data.classes[record.label].replace(" ", "").replace("_", "") for record in data}

    folder = REAL / "ssv2"
    listed = open_dataset("ssv2", folder, split="val", annotations=folder / "list_style", check_files=False)
    assert labels(listed) == labels(opened("ssv2", "val"))
    kinetics = opened("k400", "val", "list_style/kinetics_video_val_se320.txt", allow_missing=True)
    assert len(kinetics) == 19_796
    official = {r.path.stem: r.label for r in opened("k400", "val")}
    assert all(record.label == official[record.path.stem] for record in kinetics)
    ucf = opened("ucf101", "test", "list_style/val1.txt")
    assert labels(ucf) == labels(opened("ucf101", "test"))


@needs_real
def test_a_list_with_another_class_order_is_refused_if_file_names_contradict_it():
    """120 of the 1530 videos in ViFi-CLIP's list of HMDB51 have the wrong class number."""
    with pytest.raises(
        DataError, match=r"val1.txt, line \d+: .*_kick_.* has number 20, kick ball, and shows kick: the"
    ):
        opened("hmdb51", "test", "list_style/val1.txt")


@needs_real
def test_paragraphs_join_all_descriptions_in_order():
    data = opened("didemo", "test")
    all_entries = parsed(REAL / "didemo/test_data.json").entries
    stem = all_entries[0].video.rpartition(".")[0]
    entries = [e for e in all_entries if e.video.rpartition(".")[0] == stem]  # a video can appear under two suffixes
    assert len(entries) > 1
    record = next(r for r in data if r.path.stem == stem)
    assert record.captions == (" ".join(e.captions[0] for e in entries),)
    subset = opened("activitynet", "test", "val_1_SUBSET.json", allow_missing=True)
    assert (len(subset), subset.n_captions) == (301, 301)
    start = "A female weight lifter bends at the knees. She lifts a barbell to her chest."
    assert subset[0].captions[0].startswith(start)
    for file, videos in (("val_2_SUBSET.json", 301), ("train_SUBSET.json", 151)):
        assert len(opened("activitynet", None, file)) == videos


@needs_real
def test_a_custom_list_is_never_reported_under_the_name_of_the_protocol(tmp_path):
    """Metrics over 301 videos must not be named after a protocol with 4917; its official file is recognised by name."""
    data = opened("activitynet", None, "val_2_SUBSET.json")
    assert (data.name, data.protocol_spec.videos, data.protocol_spec.listed) == (
        "activitynet, list val_2_SUBSET",
        4917,
        301,
    )
    message = "protocol has 4917 videos and the list names 301, of which 300 are available, .* leave out the list "
    with pytest.raises(DataError, match=message):
        require_all_videos(data, 300)
    require_all_videos(opened("activitynet", None, "val_2_SUBSET.json", allow_missing=True), 301)
    assert opened("msrvtt-1ka", None, PAIRS).name == "msrvtt-1ka:test"
    (tmp_path / PAIRS).write_text("\n".join((REAL / "msrvtt" / PAIRS).read_text().splitlines()[:900]) + "\n")
    with pytest.raises(DataError, match="test has 1000 videos and 1000 captions, but got 899 and 899; get the com"):
        open_dataset("msrvtt-1ka", tmp_path, annotations=tmp_path / PAIRS, check_files=False)


@needs_real
def test_a_list_of_another_split_is_refused_even_with_allow_missing():
    for allow in (False, True):
        with pytest.raises(DataError, match=r"val_data.json is the list of didemo val, not of test"):
            opened("didemo", "test", "val_data.json", allow_missing=allow)


@needs_real
@pytest.mark.parametrize("allow", [False, True])
def test_a_list_longer_than_the_requested_split_is_refused(tmp_path, allow):
    shutil.copy(REAL / "didemo" / "val_data.json", tmp_path / "mine.json")
    options = {"split": "test", "annotations": tmp_path / "mine.json", "check_files": False, "allow_missing": allow}
    with pytest.raises(DataError, match="1000 videos and 1000 captions, but got 1065 and 4180; it lists"):
        open_dataset("lsmdc-1k", REAL, **options)


@pytest.fixture
def custom(tmp_path):
    """Custom list of three videos, one of which is missing."""
    (tmp_path / "custom.csv").write_text("video_id,sentence\nvideo1,a dog\nvideo2,a cat\nvideo3,a cow\n")
    for name in ("video1.mp4", "video3.avi"):
        (tmp_path / name).touch()
    return tmp_path / "custom.csv"


@pytest.mark.parametrize(
    ("split", "name"), [(None, "msrvtt-1ka, list custom"), ("test", "msrvtt-1ka:test, list custom")]
)
def test_a_custom_list_is_reported_with_its_name_and_size(custom, split, name):
    data = open_dataset("msrvtt-1ka", custom.parent, split=split, annotations=custom, allow_missing=True)
    assert (data.name, len(data), len(data.missing)) == (name, 2, 1)
    assert data.protocol_spec == ProtocolSpec(1000, frames=12, tokens=32, fewer=True, listed=3)
    assert data.source == custom


def test_a_file_with_the_official_name_is_not_a_custom_list(tmp_path):
    (tmp_path / PAIRS).write_text("video_id,sentence\nvideo1,a dog\n")
    options = {"annotations": tmp_path / PAIRS, "allow_missing": True, "check_files": False}
    for split in (None, "test"):
        data = open_dataset("msrvtt-1ka", tmp_path, split=split, **options)
        assert (data.name, data.protocol_spec.listed) == ("msrvtt-1ka:test", None)


def test_one_error_reports_both_a_short_list_and_missing_videos(custom):
    """The first error also mentions the short list, and `allow_missing` permits both."""
    message = (
        r"custom.csv: 1 of 3 videos are missing: .*video2\.mp4; fetch them, or allow it .allow_missing. to continue"
        " without them, as metrics need anyway: the list names 3 videos, the protocol has 1000"
    )
    with pytest.raises(DataError, match=message):
        open_dataset("msrvtt-1ka", custom.parent, annotations=custom)
    data = open_dataset("msrvtt-1ka", custom.parent, annotations=custom, allow_missing=True)
    require_all_videos(data, len(data))


OTHERS = {  # protocol, split and given file -> the message: what the file is, and what to give instead
    ("msrvtt-1ka", None, "MSRVTT_val.full.csv"): "msrvtt-full val, not of msrvtt-1ka; give MSRVTT_JSFUSION_test.csv or",
    ("msrvtt-1ka", None, "MSRVTT_data.json"): "msrvtt-full train, val, test, not of msrvtt-1ka; give MSRVTT_JSFUSION",
    ("msrvtt-full", "val", "MSRVTT_JSFUSION_test.csv"): "msrvtt-1ka test, not of msrvtt-full; give MSRVTT_data.json or",
    ("lsmdc-1k", "test", "something-something-v2-validation.json"): "ssv2 val, not of lsmdc-1k; give LSMDC16_challenge",
    ("msrvtt", None, "lsmdc_test.json"): "lsmdc-1k test, not of msrvtt; give one of its lists, or name lsmdc-1k as the",
    ("ucf101", "test", "brush_hair_test_split1.txt"): "hmdb51 train, test, not of ucf101; give testlist01.txt or val1",
}


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("given", list(OTHERS))
def test_a_list_of_another_protocol_is_recognised_by_its_name(tmp_path, given, allow):
    name, split, file = given
    (tmp_path / file).write_text("video_id\nvideo1\n")
    with pytest.raises(DataError, match=f"{file} is the list of {OTHERS[given]}"):
        open_dataset(name, tmp_path, split=split, annotations=tmp_path / file, check_files=False, allow_missing=allow)


@pytest.mark.parametrize("file", ["val.json", "test_list.json", "train1.json", "data_test_split1.txt", "mine.json"])
def test_a_common_file_name_is_not_attributed_to_a_protocol(tmp_path, file):
    (tmp_path / file).write_text(json.dumps({"video1.mp4": ["a dog"]}))
    assert len(open_dataset("msrvtt-1ka", tmp_path, annotations=tmp_path / file, check_files=False)) == 1


def test_a_split_with_a_list_takes_its_captions_from_the_file_of_all_videos(tmp_path):
    videos = [{"video_id": f"video{n}", "split": "train"} for n in range(3)]
    content = {"videos": videos, "sentences": [{"video_id": f"video{n}", "caption": "a dog"} for n in range(3)]}
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    (tmp_path / "MSRVTT_train.7k.csv").write_text("video_id\nvideo0\nvideo2\n")
    options = {"split": "train-7k", "annotations": tmp_path / "MSRVTT_data.json"}
    data = open_dataset("msrvtt-1ka", tmp_path, **options, check_files=False, allow_missing=True)
    assert [record.path.name for record in data] == ["video0.mp4", "video2.mp4"]
    assert data.name == "msrvtt-1ka:train-7k"


@needs_real
def test_hmdb51_needs_no_class_list_if_all_its_files_are_present(tmp_path):
    """The unpacked archive has one file per class and nothing else."""
    official = opened("hmdb51", "test")
    for path in (REAL / "hmdb51" / SUBFOLDER["hmdb51"]).glob("*_test_split1.txt"):
        shutil.copy(path, tmp_path)
    data = open_dataset("hmdb51", tmp_path, split="test", check_files=False)
    assert data.classes == tuple(sorted(official.classes))
    pairs = [[(r.path.name, d.classes[r.label]) for r in d] for d in (data, official)]
    assert pairs[0] == pairs[1]
    (tmp_path / "kick_test_split1.txt").unlink()
    with pytest.raises(DataError, match=r"hmdb51 needs class_list\.txt"):  # classes would get other numbers
        open_dataset("hmdb51", tmp_path, split="test", allow_missing=True, check_files=False)


@needs_real
@pytest.mark.parametrize(
    ("name", "split", "file", "message"),
    [
        ("activitynet", "test", "val_1_SUBSET.json", "activitynet test has 4917 videos, but got 301"),
        (
            "msrvtt-full",
            "test",
            "MSRVTT_data_RECONSTRUCTED_SUBSET.json",
            "has 2990 videos and 59800 captions, but got",
        ),
        ("k400", "val", "list_style/kinetics_video_val_se320.txt", "k400 val has 19906 videos, but got 19796"),
        ("msrvtt-full", "test", "msrvtt_mdata_test_SUBSET.json", "but got 510 and 10200"),
    ],
)
def test_a_subset_of_a_protocol_is_refused_unless_allowed(name, split, file, message):
    with pytest.raises(DataError, match=message):
        opened(name, split, file)
    assert len(opened(name, split, file, allow_missing=True)) > 100


@needs_real
def test_every_real_file_has_a_supported_layout():
    for path in REAL.rglob("*"):
        if path.is_file() and path.name != "SOURCES.csv":
            annotation = parsed(path)
            assert annotation.entries or annotation.classes, path


PAIRS, LSMDC = "MSRVTT_JSFUSION_test.csv", "LSMDC16_challenge_1000_publictect.csv"
SSV2, DIVE = "something-something-v2-validation.json", "testTrainMulti_7030_splits/dive_test_split1.txt"
DAMAGE = {  # name -> protocol, split, file to damage, (old text, new text), error message
    "missing column": ("msrvtt-1ka", "test", PAIRS, ("video_id", "vid"), "line 1: expected"),
    "empty field": ("msrvtt-1ka", "test", PAIRS, ("video9771,", ","), "line 3: an empty field"),
    "a field too many": ("k400", "val", "kinetics-400_val.csv", ("3caPS4FHFF8,", "3caPS4FHFF8,,"), "line 3: 7 fields"),
    "bad time": ("k400", "val", "kinetics-400_val.csv", (",36,46", ",x,46"), "line 3: 'x' is not a time"),
    "double id": ("msvd", "val", "val_list.txt", ("bSIjZ75a50s_286_304", "bQJQGoJF7_k_162_169"), "duplicate entry"),
    "bad JSON": ("didemo", "test", "test_data.json", ('"video":', '"video"'), "line 1: not JSON"),
    "no caption": ("didemo", "test", "test_data.json", ('"description":', '"text":'), "has neither caption nor desc"),
    "empty caption": ("lsmdc-1k", "test", LSMDC, ("SOMEONE stands below, hands on her hips.", ""), "line 1: expected"),
    "unknown class": ("ssv2", "val", SSV2, ("Showing [something] on", "Shewing [something] on"), "line 3: class 'Shew"),
    "bad code": ("hmdb51", "test", DIVE, ("bad_32.avi 1", "bad_32.avi 7"), "line 1: code '7' is none of 0, 1 and 2"),
    "gap in classes": ("ucf101", "test", "classInd.txt", ("3 Archery", "300 Archery"), "do not run from 0 or 1 w"),
}


@needs_real
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_reported_with_file_and_line(tmp_path, damage):
    name, split, file, (old, new), message = DAMAGE[damage]
    folder = tmp_path / "x"
    shutil.copytree(REAL / FOLDER.get(name, name), folder)
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    annotations = folder / SUBFOLDER.get(name, "")
    with pytest.raises(DataError, match=rf"{path.name}.*{message}"):
        open_dataset(name, folder, split=split, annotations=annotations, check_files=False)


@needs_real
@pytest.mark.parametrize(("encoding", "message"), [("utf-16", "looks like UTF-16"), ("latin-1", "is not UTF-8")])
def test_another_encoding_is_reported(tmp_path, encoding, message):
    text = (REAL / "msrvtt" / "MSRVTT_JSFUSION_test.csv").read_text(encoding="utf-8")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_bytes(text.replace("someone", "sömeone", 1).encode(encoding))
    with pytest.raises(DataError, match=rf"MSRVTT_JSFUSION_test.csv, line \d+: .*{message}"):
        open_dataset("msrvtt-1ka", tmp_path, check_files=False)


def test_duplicate_keys_in_json_are_refused_though_json_would_take_the_last(tmp_path):
    (tmp_path / "test.json").write_text('{"a.mp4": ["one"],\n "b.mp4": ["two"],\n "a.mp4": ["three"]}')
    with pytest.raises(DataError, match=r"test.json, line 3: duplicate entry 'a.mp4'"):
        open_dataset("didemo", tmp_path, allow_missing=True, check_files=False)
    (tmp_path / "test.json").write_text(json.dumps({"train": [{"video": "a", "caption": "x"}]}))
    assert read_annotation(tmp_path / "test.json").entries[0].split == "train"


def test_videos_are_matched_by_name_whatever_their_folder_and_suffix(tmp_path):
    (tmp_path / "anns").mkdir()
    (tmp_path / "anns" / "test.json").write_text(json.dumps({"1@N_x.m4v": ["a"], "2@N_y.mov": ["b", "c"]}))
    for name in ("videos/deep/1@N_x.mp4", "videos/2@N_Y.webm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = open_dataset("didemo", tmp_path, allow_missing=True)
    assert [(r.path.name, r.captions) for r in data] == [("1@N_x.mp4", ("a",)), ("2@N_Y.webm", ("b c",))]
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "kinetics-400_val.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\nabseiling,0wR5,417,427,val,0\narchery,x_1,3,13,val,0\n"
    )
    (tmp_path / "k" / "label_map_k400.txt").write_text("abseiling\narchery\n")
    for name in ("abseiling/0wR5_000417_000427.mp4", "archery/x_1.mkv"):
        (tmp_path / "k" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "k" / name).touch()
    data = open_dataset("k400", tmp_path / "k", allow_missing=True)
    assert [(r.path.name, r.label) for r in data] == [("0wR5_000417_000427.mp4", 0), ("x_1.mkv", 1)]


def test_every_protocol_definition_is_consistent():
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.default is None or protocol.default in protocol.splits
        assert protocol.task == "retrieval" or protocol.class_files
        assert protocol.tokens is None or 0 < protocol.tokens <= 77
    with pytest.raises(DataError, match="didemo has no split 'tset'; choose one of test, val, train; 1004 test videos"):
        open_dataset("didemo", Path(), split="tset", check_files=False)


@needs_real
def test_every_video_of_a_template_has_it_as_its_caption():
    data = opened("ssv2-template", "val")
    texts, truth = queries(data.subset(range(3000)))
    assert data.protocol_spec == ProtocolSpec(24_777, frames=12, tokens=None, shared=True)
    assert len({r.captions for r in data}) == 174
    assert not any("[" in text for text in texts)
    assert truth.sum() == 3000
    assert truth.any(dim=0).all()


@needs_real
def test_a_data_set_has_the_spec_of_its_protocol():
    assert opened("msrvtt-1ka", "test").protocol_spec == ProtocolSpec(1000, frames=12, tokens=32)
    assert opened("didemo", "test").protocol_spec == ProtocolSpec(1004, frames=64, tokens=64)
    assert opened("msrvtt-1ka", "test", allow_missing=True).protocol_spec.fewer
    assert opened("k400", "val").protocol_spec == ProtocolSpec(19_906, frames=8)


@needs_real
def test_every_split_of_hmdb51_is_checked_for_its_count():
    with pytest.raises(DataError, match=r"hmdb51 test-2 has 1530 videos, but got 60"):  # only 2 of 51 files are present
        opened("hmdb51", "test-2")
