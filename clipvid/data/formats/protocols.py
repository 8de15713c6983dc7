"""Named protocols: the videos and captions of evaluations on MSR-VTT, DiDeMo, Kinetics, ... Plain data, no code.

Counts are those of the official annotation files, or None if these could not be counted; None is not checked.
`protocol_reader.py` reads data sets by these definitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clipvid.registry import register_protocol


@dataclass(frozen=True)
class Split:
    """Part of a data set that metrics are computed over."""

    files: tuple[str, ...]
    """Usual names of the file that lists the videos; with a `*` in the name, all matching files are read."""
    videos: int | None = None
    captions: int | None = None
    keep: tuple[str, ...] = ()
    """Names of this split in files that list several splits; for HMDB51, its code (`Protocol.coded`)."""


@dataclass(frozen=True)
class Protocol:
    """Definition of a named evaluation protocol."""

    name: str
    task: Literal["retrieval", "recognition"]
    splits: Mapping[str, Split]
    default: str | None = "test"
    """Split that is read if none is given."""
    captions_in: tuple[str, ...] = ()
    """Files with the captions of all videos, for splits whose files only list ids."""
    paragraph: bool = False
    """True if all descriptions of a video, joined by spaces, form its single caption (paragraph-to-video retrieval)."""
    class_files: tuple[str, ...] = ()
    """Files with the class names in label order."""
    coded: bool = False
    """True for HMDB51: one file per class, with a code after each video: 1 for training, 2 for testing, else 0."""
    class_in_name: str = ""
    """Regular expression for the text that follows the class in a video's name; the class before it is compared with a
    label that is given as a number."""
    frames: int = 12
    """Frames per clip in common use."""
    tokens: int | None = None
    """Maximum caption length in tokens in common use (truncation keeps the end token); None for the limit of the text
    tower."""
    by_template: bool = False
    """True if the caption of a video is its class name, and so is relevant to all videos of the class."""
    note: str = ""
    """Peculiarity of the protocol, for error messages."""


_MSRVTT_JSON = ("MSRVTT_data.json",)
_MSRVTT = {
    "train": Split((*_MSRVTT_JSON, "MSRVTT_train.full.csv"), 6513, 130_260, ("train",)),
    "val": Split((*_MSRVTT_JSON, "MSRVTT_val.full.csv"), 497, 9940, ("validate", "val")),
    "test": Split((*_MSRVTT_JSON, "MSRVTT_test.full.csv"), 2990, 59_800, ("test",)),
}
_1KA = {
    "test": Split(("MSRVTT_JSFUSION_test.csv", "test_JSFUSION.json"), 1000, 1000),
    "train": Split(("MSRVTT_train.9k.csv", "train_9k.json"), 9000, 180_000),
    "train-9k": Split(("MSRVTT_train.9k.csv", "train_9k.json"), 9000, 180_000),
    "train-7k": Split(("MSRVTT_train.7k.csv", "train_7k.json"), 7010, 140_200),
}

for _protocol in (
    Protocol("msrvtt-1ka", "retrieval", _1KA, captions_in=_MSRVTT_JSON, tokens=32, note="no validation set"),
    Protocol("msrvtt-full", "retrieval", _MSRVTT, captions_in=_MSRVTT_JSON, tokens=32),
    Protocol(
        "msrvtt",
        "retrieval",
        {**_MSRVTT, "train-9k": _1KA["train-9k"], "train-7k": _1KA["train-7k"], "test-1ka": _1KA["test"]},
        default=None,
        captions_in=_MSRVTT_JSON,
        tokens=32,
    ),
    Protocol(
        "didemo",
        "retrieval",
        {
            "test": Split(("test_data.json", "test.json"), 1004, 4021),
            "val": Split(("val_data.json", "val.json"), 1065, 4180),
            "train": Split(("train_data.json", "train.json")),
        },
        paragraph=True,
        frames=64,
        tokens=64,
        note="1004 test videos: the official file has 1037 file names, with 33 videos under two suffixes; "
        "papers have tested on 824 to 1036",
    ),
    Protocol(
        "lsmdc-1k",
        "retrieval",
        {
            "test": Split(
                ("LSMDC16_challenge_1000_publictect.csv", "lsmdc_test.json", "mdmmt_lsmdc_mdata_test.json"),
                1000,
                1000,
            ),
            "train": Split(("LSMDC16_annos_training.csv", "lsmdc_train.json")),
        },
        tokens=32,
    ),
    Protocol(
        "msvd",
        "retrieval",
        {
            "test": Split(("test_list.txt",), 670, 27_763),
            "val": Split(("val_list.txt",), 100, 4290),
            "train": Split(("train_list.txt",), 1200),
        },
        captions_in=("captions_msvd.json", "captions_msvd_SUBSET.json"),
        tokens=32,
        note="every caption is a query; video to text takes a video's best caption",
    ),
    Protocol(
        "activitynet",
        "retrieval",
        {
            "test": Split(("val_1.json", "val.json"), 4917),
            "val-2": Split(("val_2.json", "test.json"), 4885),
            "train": Split(("train.json",), 10_009),
        },
        paragraph=True,
        frames=64,
        tokens=64,
        note="test is val_1, as in the literature",
    ),
    Protocol(
        "k400",
        "recognition",
        {
            "val": Split(("kinetics-400_val.csv", "kinetics_video_val_se320.txt", "val.txt"), 19_906, keep=("val",)),
            "train": Split(("kinetics-400_train.csv", "train.txt"), keep=("train",)),
        },
        default="val",
        class_files=("kinetics_400_labels.csv", "label_map_k400.txt", "k400_class_mappings.json"),
        frames=8,
    ),
    Protocol(
        "ssv2",
        "recognition",
        {
            "val": Split(("something-something-v2-validation.json", "validation.txt"), 24_777),
            "test": Split(("something-something-v2-test.json",), 27_157),
            "train": Split(("something-something-v2-train.json", "train.txt")),
        },
        default="val",
        class_files=("something-something-v2-labels.json", "ssv2_labels.csv"),
        frames=8,
        note="[something] is read as the word something, in class names and prompts; test has no labels",
    ),
    Protocol(
        "ssv2-template",
        "retrieval",
        {
            "val": Split(("something-something-v2-validation.json",), 24_777),
            "train": Split(("something-something-v2-train.json",)),
        },
        default="val",
        by_template=True,
        frames=12,
        note="174 texts, each correct for all of its videos; papers also test on 12 videos per text: give their "
        "list as annotations",
    ),
    Protocol(
        "ucf101",
        "recognition",
        {
            "test": Split(("testlist01.txt", "val1.txt"), 3783),
            "test-2": Split(("testlist02.txt", "val2.txt"), 3734),
            "test-3": Split(("testlist03.txt", "val3.txt"), 3696),
            "train": Split(("trainlist01.txt", "train1.txt"), 9537),
            "train-2": Split(("trainlist02.txt", "train2.txt")),
            "train-3": Split(("trainlist03.txt", "train3.txt")),
        },
        class_files=("classInd.txt", "ucf_101_labels.csv"),
        frames=8,
    ),
    Protocol(
        "hmdb51",
        "recognition",
        {
            f"{part}{'' if n == 1 else f'-{n}'}": Split(
                (f"*_test_split{n}.txt",), {"train": 3570, "test": 1530}[part], keep=(code,)
            )
            for n in (1, 2, 3)
            for part, code in (("train", "1"), ("test", "2"))
        },
        class_files=("class_list.txt", "hmdb_51_labels.csv"),
        coded=True,
        class_in_name=r"_[a-z]_(cm|nm)_np",
        frames=8,
        note="ViFi-CLIP's list of classes swaps kick with kick_ball, and sword with sword_exercise",
    ),
):
    register_protocol(_protocol.name, _protocol, summary=f"{_protocol.task}; splits {', '.join(_protocol.splits)}")
