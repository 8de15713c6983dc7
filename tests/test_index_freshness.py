"""An index and its files: changes are noticed, the root can move, and of two writers neither loses a video."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_search import COLOURS, PLAIN, ColourModel

from clipvid.data.clips.arrays import ArrayClip
from clipvid.data.probing.content import stamp_of
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError, DataError
from clipvid.runtime.storage.manifest import seal
from clipvid.search import rerank
from clipvid.search.folder.catalog import stamps_of
from clipvid.search.folder.storage import METADATA
from clipvid.search.index import VideoIndex
from clipvid.search.stores.faiss import Vectors

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
    with pytest.raises(CheckpointError, match="was saved by another process since this index was read from it"):
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
    monkeypatch.setattr("clipvid.search.folder.saved.SAVE_EVERY", 0.0)
    saves, save = [], VideoIndex.save
    monkeypatch.setattr(VideoIndex, "save", lambda index, to: saves.append(len(index)) or save(index, to))
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


def refusing(monkeypatch, *paths, error=PermissionError):
    """Make the system refuse to look up these files, or all of them."""
    stat = os.stat

    def refused(path, *args, **options):
        if not paths or (not isinstance(path, int) and os.fspath(path) in map(os.fspath, paths)):
            raise error(errno.EACCES, "refused", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refused)


@pytest.mark.parametrize("error", [PermissionError, OSError, TimeoutError])
def test_a_file_that_the_system_refuses_is_unreadable_and_stays(index, folder, monkeypatch, error):
    with monkeypatch.context() as patch:
        refusing(patch, folder / "red.mp4", error=error)
        hits = index.search("red", k=3)
        assert states(hits) == {"red": "unreadable", "green": None, "blue": None}
        assert "(unreadable)" in repr(hits)
        refreshed = index.refresh(progress=False)
    assert (refreshed.embedded, refreshed.gone, refreshed.unreadable) == ((), (), (folder / "red.mp4",))
    assert len(index) == 3
    assert index.outdated() == {}


def test_a_root_that_the_system_refuses_has_unreadable_videos(index, folder, monkeypatch):
    with monkeypatch.context() as patch:
        refusing(patch, folder, *index.paths)
        assert set(index.outdated().values()) == {"unreadable"}


def test_reranking_marks_a_file_that_cannot_be_decoded_as_unreadable(index, folder, monkeypatch):
    hits = index.search("red", k=3)
    monkeypatch.setattr(rerank, "_scores", lambda text, paths, *_: dict.fromkeys(paths[1:], 1.0))
    reranked = rerank.reranked("red", hits, index.model, index.data_config)
    assert [hit.outdated for hit in reranked] == [None, None, "unreadable"]


def test_a_root_without_its_videos_empties_no_index(index, folder):
    content = {path: path.read_bytes() for path in index.paths}
    for path in index.paths:
        path.unlink()
    with pytest.raises(ValueError, match=r"all 3 videos of the index are gone, .*, so nothing was removed; mount"):
        index.refresh(progress=False)
    assert len(index) == 3
    (folder / "red.mp4").write_bytes(content[folder / "red.mp4"])
    assert len(index.refresh(progress=False).gone) == 2
    (folder / "red.mp4").unlink()
    assert len(index.refresh(progress=False).gone) == 1  # the only video


def test_refresh_removes_all_videos_if_told_so(index):
    for path in index.paths:
        path.unlink()
    assert len(index.refresh(remove_all=True, progress=False).gone) == 3
    assert len(index) == 0


@pytest.mark.parametrize("change", ["remove", "refresh"])
def test_an_index_that_was_emptied_is_saved(index, folder, model, tmp_path, change):
    saved = index.save(tmp_path / "saved")
    with VideoIndex.changing(saved, model) as changed:
        if change == "remove":
            changed.remove(changed.paths)
        else:
            shutil.rmtree(folder)
            folder.mkdir()
            changed.refresh(remove_all=True, progress=False)
    assert VideoIndex.load(saved, model).paths == ()


def test_a_build_without_any_video_replaces_no_index(index, model, tmp_path):
    saved = index.save(tmp_path / "saved")
    with pytest.raises(DataError, match="does not exist"):
        VideoIndex.build(model, tmp_path / "none.mp4", PLAIN, progress=False, save_to=saved)
    assert len(VideoIndex.load(saved, model)) == 3


def test_a_root_with_none_of_the_videos_is_refused(index, folder, model, tmp_path):
    saved = index.save(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "missing", tmp_path / "empty", folder / "red.mp4"):
        with pytest.raises(ValueError, match=r"root must be a folder with videos of .*saved, got .* has none of them"):
            VideoIndex.load(saved, model, root=root)
    shutil.move(folder, tmp_path / "clips")
    (tmp_path / "other" / "videos").mkdir(parents=True)
    shutil.move(saved, tmp_path / "other" / "saved")  # beside a folder of the earlier name, without the videos
    assert VideoIndex.load(tmp_path / "other" / "saved", model).root == folder


def test_skipped_files_move_with_their_root(folder, model, tmp_path, write_video):
    (folder / "broken.mp4").write_text("no video")
    saved = VideoIndex.build(model, folder, PLAIN, progress=False).save(tmp_path / "saved")
    metadata = json.loads((saved / METADATA).read_text())
    assert [name for name, *_ in metadata["skipped"]] == ["broken.mp4"]
    shutil.move(folder, tmp_path / "clips")
    for absolute in (False, True):
        if absolute:  # as some versions wrote it
            metadata["skipped"][0][0] = str(folder / "broken.mp4")
            (saved / METADATA).write_text(json.dumps(metadata))
            seal(saved)
        loaded = VideoIndex.load(saved, model, root=tmp_path / "clips")
        assert [error.path for error in loaded.skipped] == [tmp_path / "clips" / "broken.mp4"]
        assert len(loaded.refresh(progress=False).skipped) == 1
    write_colour(write_video, tmp_path / "clips" / "broken.mp4", "yellow")
    assert loaded.refresh(progress=False).embedded == (tmp_path / "clips" / "broken.mp4",)


def array_of(colour):
    return ArrayClip(np.tile(np.array(COLOURS[colour], dtype=np.uint8), (4, 32, 32, 1)))


def test_an_array_and_a_file_of_one_name_are_two_videos(folder, model, tmp_path):
    data = VideoDataset((Record(Path("red.mp4"), array=array_of("yellow")), Record(folder / "red.mp4")))
    index = VideoIndex.build(model, data, PLAIN, progress=False)
    loaded = VideoIndex.load(index.save(tmp_path / "saved"), model)
    for each in (index, loaded):
        assert set(each.paths) == {Path("red.mp4"), folder / "red.mp4"}
        assert each.search("yellow")[0].path == Path("red.mp4")
        assert each.search("red")[0].path == folder / "red.mp4"
        assert [hit.path for hit in each.search("red", where='path = "red.mp4"')] == [folder / "red.mp4"]
    loaded.remove([folder / "red.mp4"])
    assert [hit.path for hit in loaded.search("red", where='path = "red.mp4"')] == [Path("red.mp4")]


def test_an_array_without_the_mark_of_its_id_is_read(folder, model, tmp_path):
    data = VideoDataset((Record(Path("one"), array=array_of("yellow")), Record(folder / "red.mp4")))
    index = VideoIndex.build(model, data, PLAIN, progress=False)
    saved = index.save(tmp_path / "saved")
    for name in (METADATA, "store/rows.json"):
        (saved / name).write_text((saved / name).read_text().replace('"./one"', '"one"'))
    seal(saved)
    loaded = VideoIndex.load(saved, model)
    assert loaded.search("red", k=2) == index.search("red", k=2)
    assert [hit.path for hit in loaded.search("red", where='path = "one"')] == [Path("one")]
    assert loaded.remove(["one"]) == 1
    assert len(VideoIndex.load(loaded.save(tmp_path / "again"), model)) == 1


def test_a_file_that_appears_while_videos_are_embedded_is_checked_later(folder, model, monkeypatch, write_video):
    def absent(paths):
        return {path: stamp for path, stamp in stamps_of(paths).items() if path.stem != "red"}

    monkeypatch.setattr("clipvid.search.index.stamps_of", absent)
    index = VideoIndex.build(model, folder, PLAIN, progress=False)
    assert {path.stem: state for path, state in index.outdated().items()} == {"red": "changed"}


def test_a_search_compares_each_file_once_and_while_others_change_the_index(index, folder, monkeypatch, tmp_path):
    looked_up = []

    def looking_up(path):
        looked_up.append(path)
        thread = threading.Thread(target=index.remove, args=([tmp_path / "none.mp4"],))
        thread.start()
        thread.join(5)
        assert not thread.is_alive(), "the index is locked"
        return stamp_of(path)

    monkeypatch.setattr("clipvid.search.folder.catalog.stamp_of", looking_up)
    index.search(["red", "green"], k=3)
    assert sorted(looked_up) == sorted(index.paths)
    index.outdated()
    assert len(looked_up) == 6


def test_refresh_rebuilds_a_graph_once(folder, model, monkeypatch, write_video):
    index = VideoIndex.build(model, folder, replace(PLAIN, batch_size=1), kind="hnsw", progress=False)
    removals, remove = [], Vectors.remove
    monkeypatch.setattr(Vectors, "remove", lambda self, rows: removals.append(len(rows)) or remove(self, rows))
    for name in ("red", "green", "blue"):
        write_colour(write_video, folder / f"{name}.mp4", "yellow")
    assert len(index.refresh(replace(PLAIN, batch_size=1), progress=False).embedded) == 3
    assert removals == [3]
    assert len(index) == 3


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_interrupted_refresh_loses_no_video_and_no_label(folder, model, monkeypatch, write_video, kind, tmp_path):
    data = VideoDataset(tuple(Record(path, label=0) for path in sorted(folder.iterdir())), ("plain",))
    config = replace(PLAIN, batch_size=1)
    index = VideoIndex.build(model, data, config, kind=kind, progress=False)
    before = {path: index.search_embedding(torch.ones(8), k=3) for path in index.paths}
    for name in ("red", "green", "blue"):
        write_colour(write_video, folder / f"{name}.mp4", "yellow")
    encode, clips = model.encode_video, []

    def interrupted(video, **options):
        clips.append(len(video))
        if len(clips) == 2:
            raise KeyboardInterrupt
        return encode(video, **options)

    monkeypatch.setattr(model, "encode_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.refresh(config, progress=False)
    assert set(index.paths) == set(before)
    assert index.skipped == ()
    assert len(index.outdated()) == 2
    assert len(index.search("red", k=3, where='label = "plain"')) == 3
    assert len(VideoIndex.load(index.save(tmp_path / "saved"), model)) == 3


def test_the_root_widens_with_videos_from_elsewhere(index, folder, model, tmp_path, write_video):
    saved = index.save(tmp_path / "saved")
    other = write_colour(write_video, tmp_path / "more" / "other.mp4", "yellow")
    index.add(other, progress=False)
    expected = index.search("red", k=4)
    index.save(saved)
    assert index.root == tmp_path
    metadata = json.loads((saved / METADATA).read_text())
    names = ["more/other.mp4", "videos/blue.mp4", "videos/green.mp4", "videos/red.mp4"]
    assert sorted(video["path"] for video in metadata["videos"]) == names
    for each in (index, VideoIndex.load(saved, model)):
        assert each.search("red", k=4) == expected
        assert [hit.path for hit in each.search("red", where=f'path = "{other}"')] == [other]
        assert [hit.path for hit in each.search("red", where='path = "videos/red.mp4"')] == [folder / "red.mp4"]
    (tmp_path / "moved").mkdir()
    for name in ("more", "videos", "saved"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    assert VideoIndex.load(tmp_path / "moved" / "saved", model).outdated() == {}


def test_a_root_that_does_not_exist_stays_so_that_its_videos_are_not_gone(index, folder, model, tmp_path, write_video):
    saved = index.save(tmp_path / "saved")
    shutil.move(folder, tmp_path / "elsewhere")
    with VideoIndex.changing(saved, model) as changed:
        changed.add(write_colour(write_video, tmp_path / "more" / "other.mp4", "yellow"), progress=False)
    loaded = VideoIndex.load(saved, model)
    assert (loaded.root, len(loaded), loaded.outdated()) == (folder, 4, {})


def test_a_refresh_that_is_killed_leaves_the_videos_to_the_next_one(
    index, folder, model, monkeypatch, write_video, tmp_path
):
    saved = index.save(tmp_path / "saved")
    for name in ("red", "green", "blue"):
        write_colour(write_video, folder / f"{name}.mp4", "yellow")
    monkeypatch.setattr("clipvid.search.folder.saved.SAVE_EVERY", 0.0)
    save = VideoIndex.save

    def killed(self, to):
        shutil.copytree(save(self, to), tmp_path / "copy", dirs_exist_ok=True)
        monkeypatch.setattr(VideoIndex, "save", save)

    with VideoIndex.changing(saved, model) as changed:
        monkeypatch.setattr(VideoIndex, "save", killed)
        changed.refresh(replace(PLAIN, batch_size=1), progress=False)
    copy = VideoIndex.load(tmp_path / "copy", model)
    assert (len(copy), {error.reason for error in copy.skipped}) == (1, {"changed, and not embedded again yet"})
    assert len(copy.refresh(progress=False).embedded) == 2
    assert copy.outdated() == {}
