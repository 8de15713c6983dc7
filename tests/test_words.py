"""Numbers in sentences."""

from __future__ import annotations

import doctest

from clipvid.data.records import Record, VideoDataset
from clipvid.runtime import text


def test_the_examples_are_true():
    assert doctest.testmod(text) == (0, 1)


def test_one_of_anything_is_told_in_the_singular(tmp_path):
    data = VideoDataset((Record(tmp_path / "a.mp4", ("a dog",), 0),), ("dog",), "one")
    assert repr(data) == "VideoDataset('one': 1 video, 1 caption, 1 class)"
