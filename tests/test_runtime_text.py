"""clipvid.runtime.text: numbers and nouns in messages."""

from __future__ import annotations

import doctest

from clipvid.data.records import Record, VideoDataset
from clipvid.runtime import text


def test_docstring_examples():
    assert doctest.testmod(text) == (0, 1)


def test_counts_of_one_are_singular(tmp_path):
    data = VideoDataset((Record(tmp_path / "a.mp4", ("a dog",), 0),), ("dog",), "one")
    assert repr(data) == "VideoDataset('one': 1 video, 1 caption, 1 class)"
