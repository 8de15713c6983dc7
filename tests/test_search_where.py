"""Filters of a VideoIndex: relative paths, and the warnings if no video passes."""

from __future__ import annotations

import numpy as np
import pytest
from test_search import COLOURS, FOUR, ColourModel, write_video

from clipvid.data.open import open_dataset
from clipvid.data.records import VideoDataset
from clipvid.errors import ClipvidWarning
from clipvid.search.index import VideoIndex


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders red and blue of one video each; no test changes it."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("red", "blue"):
        write_video(folder / "clips" / name / "1.mp4", COLOURS[name])
    return folder


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ('path = "clips/red/1.mp4"', ["red"]),
        ('path = "./clips/red/../red/1.mp4"', ["red"]),
        ('path in ("clips/red/1.mp4", "gone.mp4")', ["red"]),
        ('path != "clips/red/1.mp4"', ["blue"]),
        ('path not in ("clips/red/1.mp4")', ["blue"]),
        ('not path = "clips/red/1.mp4" or (label = "red" and path = "clips/red/1.mp4")', ["red", "blue"]),
    ],
)
def test_relative_paths_in_a_filter_are_those_of_the_working_directory(folder, monkeypatch, where, names):
    monkeypatch.chdir(folder)
    index = VideoIndex.build(ColourModel(), open_dataset("folder", "clips"), FOUR, progress=False)
    assert [hit.path.parent.name for hit in index.search("a red", where=where)] == names


def test_the_name_of_an_array_in_a_filter_is_no_path():
    data = VideoDataset.from_arrays([np.zeros((2, 8, 8, 3), np.uint8)] * 2)
    index = VideoIndex.build(ColourModel(), data, FOUR, progress=False)
    assert [str(hit.path) for hit in index.search("a red", where='path = "clip 1"')] == ["clip 1"]
    assert [str(hit.path) for hit in index.search("a red", where='path != "clip 1"')] == ["clip 0"]


def test_a_filter_that_no_video_passes_is_a_warning(folder, recwarn):
    labelled = VideoIndex.build(ColourModel(), open_dataset("folder", folder / "clips"), FOUR, progress=False)
    embedding = np.ones(8, np.float32)
    for search in (labelled.search, lambda _, where: labelled.search_embedding(embedding, where=where)):
        with pytest.warns(ClipvidWarning, match='^no video of the index passes the filter label = "green"$'):
            assert not search("a red", where='label = "green"')
    bare = VideoIndex.build(ColourModel(), folder / "clips", FOUR, progress=False)
    advice = "; no video of the index has a label, since labels come from class folders .clipvid index build"
    with pytest.warns(ClipvidWarning, match=f'^no video of the index passes the filter label = "red"{advice}'):
        assert not bare.search("a red", where='label = "red"')
    with pytest.warns(ClipvidWarning, match=r'^no video of the index passes the filter path = "label.mp4"$'):
        assert not bare.search("a red", where='path = "label.mp4"')
    assert labelled.search("a red", where='label = "red"')
    assert not recwarn.list
