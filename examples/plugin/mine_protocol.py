"""An evaluation protocol: which annotation file lists the videos of a split, and how many there must be."""

from clipvid.data.formats.protocols import Protocol, Split
from clipvid.registry import register_protocol

register_protocol(
    "mine",
    Protocol(
        "mine",
        "recognition",
        {"test": Split(("mine_test.txt",), videos=4), "train": Split(("mine_train.txt",))},
        class_files=("mine_classes.txt",),
        frames=4,
    ),
    summary="four clips of two classes",
)
