"""An index and its files: changes are noticed, the root can move, and of two writers neither loses a video."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from test_search import COLOURS, PLAIN, ColourModel

from clipvid.errors import CheckpointError
from clipvid.search import contents
from clipvid.search.index import VideoIndex
from clipvid.search.storage import METADATA

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def model():
    return ColourModel()


@pytest.fixture
def folder(tmp_path, write_video):
    """Return a folder of three plain videos: red, green and blue."""
    for name in ("red", "green", "blue"):
        write_colour(write_video, tmp_path / "videos" / f"{name}.mp4", name)
    return tmp_path / "videos"


@pytest.fixture
def index(model, folder):
    return VideoIndex.build(model, folder, PLAIN, progress=False)


def write_colour(write_video, path, name):
    path.parent.mkdir(exist_ok=True)
    return write_video(path, np.tile(np.array(COLOURS[name], dtype=np.uint8), (4, 32, 32, 1)))


def states(hits):
    return {hit.path.stem: hit.outdated for hit in hits}


def test_a_replaced_and_a_deleted_file_are_noticed_by_every_search(index, folder, write_video):
    assert set(states(index.search("red", k=3)).values()) == {None}
    (folder / "red.mp4").unlink()
    write_colour(write_video, folder / "green.mp4", "red")
    expected = {"red": "gone", "green": "changed", "blue": None}
    assert states(index.search("red", k=3)) == expected
    assert states(index.search_video(folder / "green.mp4", k=3)) == expected
    assert states(index.search_embedding(torch.ones(8), k=3)) == expected
    assert {path.stem: state for path, state in index.outdated().items()} == {"red": "gone", "green": "changed"}
    assert "(gone; clipvid index refresh)" in repr(index.search("red", k=3))


def test_a_file_that_was_only_touched_or_copied_back_has_not_changed(index, folder):
    os.utime(folder / "red.mp4")
    shutil.copy(folder / "green.mp4", folder / "other.mp4")
    os.replace(folder / "other.mp4", folder / "green.mp4")
    assert index.outdated() == {}


def test_refresh_embeds_what_changed_and_lists_what_went(index, folder, model, write_video, tmp_path):
    index.save(tmp_path / "saved")
    (folder / "red.mp4").unlink()
    write_colour(write_video, folder / "green.mp4", "red")
    (folder / "blue.mp4").write_text("no longer a video")
    loaded, before = VideoIndex.load(tmp_path / "saved", model), model.clips
    refreshed = loaded.refresh(progress=False)
    assert model.clips == before + 1
    assert (refreshed.embedded, refreshed.gone) == ((folder / "green.mp4",), (folder / "red.mp4",))
    assert [error.path for error in refreshed.skipped] == [folder / "blue.mp4"]
    assert loaded.search_video(folder / "green.mp4")[0].score == pytest.approx(1, abs=1e-5)
    assert states(loaded.search("red")) == {"green": None}
    write_colour(write_video, folder / "blue.mp4", "blue")
    assert loaded.refresh(progress=False).embedded == (folder / "blue.mp4",)
    assert loaded.refresh(progress=False) == type(refreshed)((), (), ())


def test_refresh_keeps_labels(folder, model, write_video):
    from clipvid.data.records import Record, VideoDataset

    data = VideoDataset((Record(folder / "red.mp4", label=1), Record(folder / "blue.mp4", label=0)), ("cold", "warm"))
    index = VideoIndex.build(model, data, PLAIN, progress=False)
    write_colour(write_video, folder / "red.mp4", "green")
    index.refresh(progress=False)
    assert [hit.path.stem for hit in index.search("red", where='label = "warm"')] == ["red"]


def test_videos_are_removed_and_their_files_stay(index, folder):
    assert index.remove([folder / "red.mp4", folder / "unknown.mp4"]) == 1
    assert {path.stem for path in index.paths} == {"green", "blue"}
    assert (folder / "red.mp4").exists()


def test_a_file_that_changes_while_it_is_embedded_counts_as_changed(model, folder, monkeypatch, write_video):
    encode = model.encode_video

    def changing(video, **options):
        write_colour(write_video, folder / "red.mp4", "green")
        return encode(video, **options)

    monkeypatch.setattr(model, "encode_video", changing)
    index = VideoIndex.build(model, folder / "red.mp4", PLAIN, progress=False)
    assert states(index.search("red")) == {"red": "changed"}


def test_a_search_by_text_notices_changed_weights(index, model):
    index.search("red")
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(CheckpointError, match="the model's weights changed since this index was made"):
        index.search("red")


def test_an_index_moves_with_its_videos_or_to_a_root_that_is_given(index, folder, model, tmp_path):
    index.save(tmp_path / "saved")
    assert index.root == folder
    (tmp_path / "moved").mkdir()
    shutil.move(folder, tmp_path / "moved" / "videos")
    expected = [(hit.path.name, hit.score) for hit in index.search("red", k=3)]
    old_root = VideoIndex.load(tmp_path / "saved", model)
    assert set(states(old_root.search("red", k=3)).values()) == {None}  # moved without its videos: not all are gone
    given = VideoIndex.load(tmp_path / "saved", model, root=tmp_path / "moved" / "videos")
    shutil.move(tmp_path / "saved", tmp_path / "moved" / "saved")
    together = VideoIndex.load(tmp_path / "moved" / "saved", model)
    for loaded in (given, together):
        assert loaded.root == tmp_path / "moved" / "videos"
        hits = loaded.search("red", k=3)
        assert [(hit.path.name, hit.score) for hit in hits] == expected
        assert set(states(hits).values()) == {None}
        path = tmp_path / "moved" / "videos" / "red.mp4"
        assert [hit.path for hit in loaded.search("red", where=f'path = "{path}"')] == [path]
        assert [hit.path for hit in loaded.search("red", where='path = "red.mp4"')] == [path]


def test_another_version_is_not_replaced_unawares(index, folder, model, write_video, tmp_path):
    saved = index.save(tmp_path / "saved")
    first, second = VideoIndex.load(saved, model), VideoIndex.load(saved, model)
    first.add(write_colour(write_video, tmp_path / "a.mp4", "yellow"), progress=False)
    second.add(write_colour(write_video, tmp_path / "b.mp4", "yellow"), progress=False)
    first.save(saved)
    with pytest.raises(CheckpointError, match="was saved by somebody else since this index was read from it"):
        second.save(saved)
    second.save(tmp_path / "elsewhere")
    first.save(saved)
    assert tmp_path / "a.mp4" in VideoIndex.load(saved, model).paths
    assert tmp_path / "b.mp4" in VideoIndex.load(tmp_path / "elsewhere", model).paths


def test_four_threads_that_change_one_index_lose_no_video(index, model, tmp_path, write_video):
    saved = index.save(tmp_path / "saved")
    paths = [write_colour(write_video, tmp_path / f"{number}.mp4", "yellow") for number in range(8)]

    def add(part):
        for path in part:
            with VideoIndex.changing(saved, ColourModel()) as changed:
                changed.add(path, progress=False)

    threads = [threading.Thread(target=add, args=(paths[first::4],)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(paths) <= set(VideoIndex.load(saved, model).paths)


def test_an_index_is_saved_on_the_way(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SAVE_EVERY", 0.0)
    saves, save = [], VideoIndex.save
    monkeypatch.setattr(VideoIndex, "save", lambda index, to: saves.append(len(index)) or save(index, to))
    from dataclasses import replace

    VideoIndex.build(model, folder, replace(PLAIN, batch_size=1), progress=False, save_to=tmp_path / "saved")
    assert saves == [1, 2, 3, 3]


def test_a_reader_beside_a_writer_always_loads_an_index(index, model, tmp_path):
    saved, done = index.save(tmp_path / "saved"), threading.Event()

    def save_often():
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            index.save(saved)
        done.set()

    writer = threading.Thread(target=save_often)
    writer.start()
    n_loaded = 0
    while not done.is_set():
        assert len(VideoIndex.load(saved, ColourModel())) == 3
        n_loaded += 1
    writer.join()
    assert n_loaded


def test_the_index_knows_no_absolute_path_of_its_videos(index, folder, tmp_path):
    metadata = json.loads((index.save(tmp_path / "saved") / METADATA).read_text())
    assert sorted(video["path"] for video in metadata["videos"]) == ["blue.mp4", "green.mp4", "red.mp4"]
    assert (metadata["root"], metadata["root_from_index"]) == (str(folder), os.path.join("..", "videos"))
