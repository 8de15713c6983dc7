"""The files of a saved index: every change is refused by name, wrong metadata by field, and older formats are read."""

from __future__ import annotations

import json
import shutil

import pytest
from test_search import COLOURS, FOUR, PLAIN, ColourModel, write_video

from clipvid.errors import CheckpointError
from clipvid.runtime.storage import manifest
from clipvid.runtime.storage.manifest import MANIFEST, hash_file, seal
from clipvid.runtime.storage.schema import decode
from clipvid.runtime.storage.stamps import Stamp
from clipvid.search.folder.saved import changing_contents
from clipvid.search.folder.storage import METADATA, STORE, IndexMetadata, VideoEntry, encoded
from clipvid.search.folder.verify import verified
from clipvid.search.index import VideoIndex
from clipvid.search.stores.base import ROWS
from clipvid.search.stores.faiss import VECTORS


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Return a folder of four plain videos."""
    folder = tmp_path_factory.mktemp("library")
    for name, colour in COLOURS.items():
        write_video(folder / f"{name}.mp4", colour)
    return folder


@pytest.fixture
def model():
    return ColourModel()


@pytest.fixture
def index(model, library):
    return VideoIndex.build(model, library, PLAIN, progress=False)


def test_damaged_indices_are_refused(index, model, tmp_path):
    folder = index.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"holds no index \(no index\.json\); clipvid index build VIDEOS --out"):
        VideoIndex.load(tmp_path, model)
    for damaged in (METADATA, f"{STORE}/{VECTORS}", f"{STORE}/{ROWS}", MANIFEST):
        content = (folder / damaged).read_bytes()
        (folder / damaged).write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
        with pytest.raises(CheckpointError, match=r"is damaged.*, or delete the folder and build the index again"):
            VideoIndex.load(folder, model)
        (folder / damaged).unlink()
        with pytest.raises(CheckpointError, match=r"is missing; take a copy of the folder|holds no index"):
            VideoIndex.load(folder, model)
        (folder / damaged).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": [{"path": "a"}]}, "lists 1 videos in a flat index, and its store holds 4"),
        ({"format_version": 99}, "has index format 99, this version of clipvid reads 1 to 3; build it again"),
        ({"frames": "4"}, r"index.json is damaged \(Expected int, got str at frames\)"),
        ({"frames": 10**9}, "frames must be an integer <= 1000000, got 1000000000"),
        ({"kind": "lsh"}, "kind must be one of flat, ivf, hnsw, got 'lsh'"),
        ({"kind": "hnsw"}, "holds 4 or other videos in a flat index"),
        ({"store": "oracle"}, "unknown store 'oracle'"),
        ({"precision": "8"}, "unknown precision '8'"),
        ({"sampler": "none"}, "sampler must be one of uniform, .*, got 'none'; build the index again, or install"),
        ({"backend": "none"}, "cannot be read: unknown .*'none'.*; build the index again, or install what it was"),
        ({"skipped": [["a", 5]]}, r"index.json is damaged \(Expected str, got int at skipped\[0\]\[1\]\)"),
    ],
    ids=str,
)
def test_metadata_that_do_not_fit_are_refused_by_field(index, model, tmp_path, change, message):
    folder = index.save(tmp_path / "saved")
    metadata = json.loads((folder / METADATA).read_text())
    (folder / METADATA).write_text(json.dumps(metadata | change))
    seal(folder)
    with pytest.raises(CheckpointError, match=message):
        VideoIndex.load(folder, model)


def test_an_index_of_the_first_format_is_read(library, tmp_path):
    model = ColourModel()
    index = VideoIndex.build(model, library, FOUR, progress=False)
    index.save(tmp_path / "new")
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "new" / STORE, old)
    (old / "rows.json").unlink()
    metadata = json.loads((tmp_path / "new" / METADATA).read_text())
    names = ("fingerprint", "frames", "sampler", "backend", "skipped")
    older = {name: metadata[name] for name in names} | {"format": 1, "paths": [str(path) for path in index.paths]}
    (old / METADATA).write_text(json.dumps(older))
    loaded = VideoIndex.load(old, model)
    assert loaded.search("a red") == index.search("a red")
    path = index.paths[1]
    assert [hit.path for hit in loaded.search("a red", where=f'path = "{path}"')] == [path]
    loaded.save(old)  # in the current format
    assert sorted(path.name for path in old.iterdir()) == [METADATA, MANIFEST, STORE]
    assert VideoIndex.load(old, model).search("a red") == index.search("a red")


def test_rows_of_other_paths_or_labels_are_refused(index, model, tmp_path):
    folder = index.save(tmp_path / "saved")
    rows = json.loads((folder / STORE / ROWS).read_text())
    for change in ({"path": "other.mp4"}, {"label": 5}):
        changed = [rows["metadata"][0] | change, *rows["metadata"][1:]]
        (folder / STORE / ROWS).write_text(json.dumps(rows | {"metadata": changed}))
        seal(folder)
        with pytest.raises(CheckpointError, match=r"is damaged: the store has .* for video 'blue.mp4'"):
            VideoIndex.load(folder, model)


@pytest.mark.parametrize("name", ["clips/a.mp4", "Hände/\u4e16\u754c \U0001f600.mp4", "caf\udce9.mp4", 'a"\\\n.mp4'])
def test_metadata_with_any_file_name_are_read_as_they_were(name):
    videos = [VideoEntry(name, "0" * 32, Stamp(1, 2, 3, 4, 5)), VideoEntry("./b", array=True)]
    metadata = IndexMetadata("f", 4, "uniform", "auto", root="/r", videos=videos, skipped=[(name, "reason", None)])
    content = encoded(metadata)
    assert decode(content, IndexMetadata, source="", error=CheckpointError, advice="") == metadata
    is_utf8 = name.isascii() or "\udce9" not in name
    assert content.isascii() is (name.isascii() or not is_utf8)


def test_an_index_with_damaged_metadata_is_replaced_by_a_new_one_alone(index, library, model, tmp_path):
    saved = index.save(tmp_path / "saved")
    (saved / METADATA).write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        index.save(saved)  # another version than this object saved there
    VideoIndex.build(model, library, PLAIN, progress=False, save_to=saved)
    assert len(VideoIndex.load(saved, model)) == 4
    (saved / METADATA).write_text("{")
    VideoIndex.build(model, library, PLAIN, progress=False).save(saved)
    assert len(VideoIndex.load(saved, model)) == 4


def test_the_note_is_read_without_the_other_files(index, tmp_path, monkeypatch):
    saved, read = index.save(tmp_path / "saved"), []
    monkeypatch.setattr(manifest, "hash_file", lambda path: read.append(path.name) or hash_file(path))
    VideoIndex.read_note(saved)
    assert read == [METADATA]
    read.clear()
    report = verified(saved)
    assert sorted(read) == [METADATA, "rows.json", "vectors.faiss"]
    assert (report.files, report.videos) == (3, 4)
    (saved / METADATA).write_text((saved / METADATA).read_text() + " ")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged: its bytes have changed"):
        VideoIndex.read_note(saved)


def test_videos_are_removed_without_a_model(index, library, model, tmp_path):
    saved = index.save(tmp_path / "saved")
    with changing_contents(saved) as contents:
        assert contents.remove([library / "red.mp4"]) == 1
    assert set(VideoIndex.load(saved, model).paths) == set(index.paths) - {library / "red.mp4"}
