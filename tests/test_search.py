"""VideoIndex: search against comparing every pair, saving, adding, and the refusal of another model's index."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipvid.config.data_config import DataConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError, DataError, VideoError
from clipvid.search.hits import Hits
from clipvid.search.index import VideoIndex
from clipvid.video.decode import read, read_video
from clipvid.video.transforms import VideoTransform

FOUR = DataConfig(frames=4, unreadable="skip")
PLAIN = replace(FOUR, precision="32-true")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


class ColourModel(nn.Module):
    """A model that embeds a clip by its mean colour under a fixed map, and a text by the colour it names."""

    def __init__(self, seed=0, width=8):
        super().__init__()
        weight = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)
        self.dropout = nn.Dropout(0.5)
        self.transform = VideoTransform(size=8)
        self.clips = 0

    @property
    def device(self):
        return self.weight.device

    @property
    def fingerprint(self):
        return f"{self.weight.sum().item():.6f}"

    def encode_video(self, video, *, normalize=True, mask=None):
        self.clips += len(video)
        colour = video.float().mean(dim=(3, 4)) / 255 - 0.4  # (B, T, 3)
        colour = (colour * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        embedding = self.dropout(colour) @ self.weight
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def encode_text(self, texts, *, normalize=True):
        colours = torch.tensor([COLOURS[text.split()[-1]] for text in texts]) / 255 - 0.4
        embedding = colours @ self.weight
        return F.normalize(embedding, dim=-1) if normalize else embedding


def write_video(path, colour, *, frames=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        picture = np.full((32, 32, 3), colour, dtype=np.uint8)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Four videos in nested folders, one of them without a suffix, beside files that are not videos."""
    folder = tmp_path_factory.mktemp("library")
    write_video(folder / "b" / "red.mp4", COLOURS["red"])
    write_video(folder / "a" / "deep" / "green.MP4", COLOURS["green"])
    write_video(folder / "blue", COLOURS["blue"])
    write_video(folder / "yellow.mp4", COLOURS["yellow"], frames=2)
    write_video(folder / ".hidden.mp4", COLOURS["red"])
    (folder / "broken.mp4").write_text("not a video")
    (folder / "notes.txt").write_text("no video either")
    return folder


@pytest.fixture
def model():
    return ColourModel()


@pytest.fixture
def index(model, library):
    return VideoIndex.build(model, library, PLAIN, progress=False)


def names(hits):
    return [hit.path.name for hit in hits]


def test_a_folder_is_indexed_in_sorted_order_and_broken_files_are_listed(index, library):
    expected = ["a/deep/green.MP4", "b/red.mp4", "blue", "yellow.mp4"]
    assert [path.relative_to(library).as_posix() for path in index.paths] == expected
    assert len(index) == 4
    assert [(error.path.name, "not a video" in error.reason) for error in index.skipped] == [("broken.mp4", True)]
    assert repr(index) == "VideoIndex(4 videos, 1 skipped, 4 frames each)"


@pytest.mark.parametrize("colour", COLOURS)
def test_search_agrees_with_comparing_every_pair(index, model, colour):
    text = model.encode_text([f"something {colour}"])[0]
    oracle = {}
    for path in index.paths:
        video = read_video(path, 4, fit=model.transform.fit)[None]
        embedding = model.eval().encode_video(video, mask=torch.ones(1, 4, dtype=torch.bool))[0]
        oracle[path] = float((embedding.double() @ text.double()).detach())
    hits = index.search(f"something {colour}", k=4)
    assert [hit.path for hit in hits] == sorted(oracle, key=oracle.__getitem__, reverse=True)
    assert [hit.score for hit in hits] == pytest.approx([oracle[hit.path] for hit in hits], abs=1e-5)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert hits[0].path.stem == colour


def test_many_queries_at_once_give_the_hits_of_each(index, monkeypatch):
    texts = [f"something {colour}" for colour in COLOURS]
    one_by_one = [index.search(text, k=3) for text in texts]
    calls, search = [], type(index._vectors).search
    monkeypatch.setattr(
        type(index._vectors),
        "search",
        lambda self, queries, *rest: calls.append(len(queries)) or search(self, queries, *rest),
    )
    together = index.search(texts, k=3)
    assert calls == [4]  # one pass over the index
    assert [hits.query for hits in together] == texts
    for hits, single in zip(together, one_by_one, strict=True):
        assert names(hits) == names(single)
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in single], abs=1e-6)
    assert index.search(tuple(texts[:1]), k=2)[0] == index.search(texts[0], k=2)
    assert index.search([]) == []
    with pytest.raises(ValueError, match="query is empty"):
        index.search(["red", " "])


def test_hits_become_tables_and_json(index, library, tmp_path):
    hits = index.search("something <b> red", k=3)
    frame = hits.to_frame()
    assert frame.columns.tolist() == ["query", "rank", "path", "score", "outdated"]
    assert [tuple(row) for row in frame.itertuples(index=False)] == [
        ("something <b> red", hit.rank, str(hit.path), hit.score, hit.outdated) for hit in hits
    ]
    content = json.loads(hits.to_json(tmp_path / "hits.json"))
    assert content == json.loads((tmp_path / "hits.json").read_text())
    assert content["query"] == "something <b> red"
    assert content["hits"] == [
        {"rank": h.rank, "path": str(h.path), "score": h.score, "outdated": h.outdated} for h in hits
    ]
    assert repr(hits).splitlines()[0] == "Hits(3 for 'something <b> red')"
    assert repr(hits).splitlines()[1].endswith("red.mp4")
    page = hits._repr_html_()
    assert page.count("<tr>") == 4
    assert "something &lt;b&gt; red" in page
    many = Hits([*hits] * 20)
    assert len(repr(many).splitlines()) == 12
    assert many._repr_html_().count("<tr>") == 11
    assert "and 50 more" in many._repr_html_()
    assert Hits().to_frame().empty
    assert index.search_video(library / "blue").query == str(library / "blue")


def test_an_index_lists_its_files_as_a_table(index, library):
    frame = index.to_frame()
    assert frame["path"].tolist() == [*map(str, index.paths), str(library / "broken.mp4")]
    assert frame["indexed"].tolist() == [True] * 4 + [False]
    assert "not a video" in frame["reason"].iloc[-1]
    assert frame["reason"].tolist()[:4] == [""] * 4
    page = index._repr_html_()
    assert page.count("<tr>") == 6
    assert "broken.mp4" in page


def test_a_large_index_agrees_with_sorting_all_cosines(model):
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(2, 500, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = VideoIndex(model)
    index._put([Path(f"/{row}.mp4") for row in range(500)], vectors)
    for query in queries[:50]:
        cosines = vectors.astype(np.float64) @ query / np.linalg.norm(query)
        hits = index.search_embedding(query, k=20)
        assert [int(hit.path.stem) for hit in hits] == np.argsort(-cosines)[:20].tolist()
        assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines)[::-1][:20].tolist(), abs=1e-5)


def test_a_video_finds_itself_first_and_the_norm_of_a_query_does_not_matter(index, library, model):
    hits = index.search_video(library / "yellow.mp4", k=2)
    assert names(hits)[0] == "yellow.mp4"
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    query = model.encode_text(["red"])[0].detach()
    scores = [[hit.score for hit in index.search_embedding(q)] for q in (query, 100 * query, (3 * query).numpy())]
    assert scores[1] == pytest.approx(scores[0])
    assert scores[2] == pytest.approx(scores[0])


def test_k_beyond_the_index_gives_everything_and_less_than_one_is_refused(index):
    assert len(index.search("red", k=100)) == 4
    with pytest.raises(ValueError, match="k must be an integer >= 1, got 0"):
        index.search("red", k=0)


def test_a_wrong_k_is_refused_before_the_video_is_decoded(index, library, monkeypatch):
    monkeypatch.setattr("clipvid.search.index.embed_batches", None)
    with pytest.raises(ValueError, match="k must be an integer >= 1, got 0"):
        index.search_video(library / "red.mp4", k=0)


def test_numpy_integers_are_numbers_of_hits_and_other_values_of_rerank_are_refused(index):
    search = inspect.unwrap(VideoIndex.search)  # without the type checks of the tests
    assert len(search(index, "red", k=np.int64(2), rerank=np.int64(0))) == 2
    for value in (-1, 1.5, True, "3"):
        with pytest.raises(ValueError, match=f"rerank must be an integer >= 0, got {value!r}; rerank is a number of"):
            search(index, "red", rerank=value)
    with pytest.raises(ValueError, match=r"0 for a model without token-wise similarity .*, got 3; leave rerank out"):
        search(index, "red", rerank=np.int64(3))


def test_equal_scores_come_in_the_order_of_the_index(model, library, tmp_path):
    copies = []
    for number in range(5):
        copy = tmp_path / f"{number}.mp4"
        copy.write_bytes((library / "yellow.mp4").read_bytes())
        copies.append(copy.name)
    index = VideoIndex.build(model, tmp_path, FOUR, progress=False)
    assert names(index.search("yellow", k=5)) == copies


def test_empty_queries_and_empty_indices_are_refused(index, model, library):
    with pytest.raises(ValueError, match="query is empty"):
        index.search("  ")
    with pytest.raises(ValueError, match="index is empty; add videos"):
        VideoIndex(model).search("red")
    empty = VideoIndex.build(model, library / "broken.mp4", progress=False)
    with pytest.raises(ValueError, match=r"empty; 1 file skipped, see \.skipped"):
        empty.search("red")
    with pytest.raises(ValueError, match=r"must have 8 numbers.*got 3"):
        index.search_embedding(torch.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        index.search_embedding(torch.full((8,), torch.nan))


@pytest.mark.parametrize("query", [None, 0, "x", ["a", "b"], np.ones((1, 8)), np.zeros(8), torch.zeros(8)])
def test_a_query_that_is_no_vector_with_a_direction_is_refused_with_advice(index, query):
    with pytest.raises(ValueError, match=r"^embedding must .*; give one row of what model\.encode_text or"):
        inspect.unwrap(VideoIndex.search_embedding)(index, query)
    assert len(inspect.unwrap(VideoIndex.search_embedding)(index, range(1, 9), np.int64(2))) == 2


def test_unreadable_files_can_stop_the_build(model, library):
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        VideoIndex.build(model, library, DataConfig(), progress=False)


def test_folders_without_videos_and_no_videos_at_all_are_refused(model, tmp_path):
    with pytest.raises(DataError, match="holds no video"):
        VideoIndex.build(model, tmp_path, progress=False)
    with pytest.raises(DataError, match="no videos were given"):
        VideoIndex.build(model, [], progress=False)
    with pytest.raises(ValueError, match="sampler must be one of"):
        VideoIndex(model, DataConfig(sampler="unifrom"))


def test_a_missing_path_is_an_error_alone_and_skipped_beside_others(index, model, library):
    gone = library / "gone.mp4"
    for videos, verb in ((gone, "does"), ([gone], "does"), ([gone, library / "x.mp4"], "and 1 more do")):
        message = f"gone.mp4 {verb} not exist; give videos, or folders of them"
        with pytest.raises(DataError, match=message):
            VideoIndex.build(model, videos, FOUR, progress=False)
        with pytest.raises(DataError, match=message):
            index.add(videos, progress=False)
    listed = VideoIndex.build(model, [gone, library], FOUR, progress=False)
    assert gone in [error.path for error in listed.skipped]
    with pytest.raises(VideoError):
        VideoIndex.build(model, [gone, library], DataConfig(frames=4), progress=False)


def test_workers_change_nothing(index, model, library):
    other = VideoIndex.build(model, library, replace(PLAIN, batch_size=3, workers=2), progress=False)
    assert other.paths == index.paths
    assert [h.score for h in other.search("red")] == pytest.approx([h.score for h in index.search("red")], abs=1e-6)


def test_dropout_is_off_while_embedding_and_the_mode_is_restored(model, library):
    model.train()
    index = VideoIndex.build(model, library, FOUR, progress=False)
    assert model.training
    assert index.search_video(library / "blue")[0].score == pytest.approx(1, abs=1e-5)


def test_videos_already_indexed_are_an_error_or_skipped_or_replaced(index, model, library, tmp_path):
    blue = tmp_path / "blue.mp4"
    blue.write_bytes((library / "blue").read_bytes())
    before = model.clips
    with pytest.raises(ValueError, match=r"red\.mp4 is indexed already; set existing to skip or replace"):
        index.add([blue, library / "b" / "red.mp4"], progress=False)
    assert model.clips == before
    index.add([blue, blue, library / "b" / "red.mp4"], existing="skip", progress=False)
    assert (len(index), model.clips) == (5, before + 1)
    write_video(blue, COLOURS["red"])
    index.add(blue, existing="replace", progress=False)
    assert len(index) == 5
    assert set(names(index.search("red", k=2))) == {"red.mp4", "blue.mp4"}
    blue.write_text("now it is broken")
    index.add(blue, existing="replace", progress=False)
    assert blue not in index.paths
    assert blue in [error.path for error in index.skipped]
    write_video(blue, COLOURS["blue"])
    index.add(blue, progress=False)
    assert blue in index.paths
    assert blue not in [error.path for error in index.skipped]
    assert index.search_video(blue, k=1)[0].score == pytest.approx(1, abs=1e-5)


def test_relative_paths_are_stored_as_absolute_ones(model, library, monkeypatch):
    monkeypatch.chdir(library)
    index = VideoIndex.build(model, "yellow.mp4", progress=False)
    assert index.paths == (Path(os.path.abspath(library / "yellow.mp4")),)


def test_a_saved_index_loads_completely_and_can_be_added_to(index, model, library, tmp_path):
    folder = index.save(tmp_path / "saved")
    loaded = VideoIndex.load(folder, model)
    assert loaded.search("red", k=4) == index.search("red", k=4)
    assert [str(error) for error in loaded.skipped] == [str(error) for error in index.skipped]
    assert loaded.data_config == PLAIN
    loaded.add(write_video(tmp_path / "more.mp4", COLOURS["red"]), progress=False)
    loaded.save(folder)
    assert len(VideoIndex.load(folder, model)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more.mp4", "saved"]  # no temporary file remains


def test_another_models_index_is_refused(index, tmp_path):
    folder = index.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"made by another model.*build the index again"):
        VideoIndex.load(folder, ColourModel(seed=1))


def test_adding_after_the_weights_changed_is_refused(index, model, library):
    with torch.no_grad():
        model.weight += 1
    with pytest.raises(CheckpointError, match="weights changed"):
        index.add(library / "blue", existing="replace", progress=False)


def test_saving_never_replaces_a_folder_of_other_files(index, model, library, tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"precious")
    for save in (index.save, lambda folder: VideoIndex.build(model, library, save_to=folder, progress=False)):
        with pytest.raises(ValueError, match=r"holds other files \(holiday\.mp4\)"):
            save(tmp_path)
        with pytest.raises(ValueError, match="is a file"):
            save(tmp_path / "holiday.mp4")
    assert (tmp_path / "holiday.mp4").read_bytes() == b"precious"


def test_an_interrupted_build_saves_its_embeddings_and_can_continue(model, library, tmp_path, monkeypatch):
    encode = model.encode_video

    def interrupted(video, **options):
        if model.clips == 2:
            raise KeyboardInterrupt
        return encode(video, **options)

    monkeypatch.setattr(model, "encode_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        VideoIndex.build(model, library, replace(FOUR, batch_size=1), save_to=tmp_path / "saved", progress=False)
    monkeypatch.undo()
    index = VideoIndex.load(tmp_path / "saved", model)
    assert len(index) == 2
    index.add(library, existing="skip", progress=False)
    assert set(index.paths) == set(VideoIndex.build(model, library, FOUR, progress=False).paths)
    assert model.clips == 2 + 2 + 4


def test_an_embedding_that_is_not_finite_names_its_video(model, library):
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"embedding of .*green\.MP4 is not finite"):
        VideoIndex.build(model, library, progress=False)


def test_patterns_lists_and_data_sets_are_indexed_like_their_files(model, library, monkeypatch):
    monkeypatch.chdir(library)
    red, green = library / "b" / "red.mp4", library / "a" / "deep" / "green.MP4"
    assert VideoIndex.build(model, "**/r*", FOUR, progress=False).paths == (red,)
    assert VideoIndex.build(model, ["b/*.mp4", green, red], FOUR, progress=False).paths == (red, green)
    assert VideoIndex.build(model, red.as_uri(), FOUR, progress=False).paths == (red,)
    data = VideoDataset((Record(Path("b/red.mp4"), ("one",)), Record(green), Record(red)))
    assert VideoIndex.build(model, data, FOUR, progress=False).paths == (red, green)
    with pytest.raises(DataError, match=r"no file to read matches the pattern '\*\.avi'"):
        VideoIndex.build(model, "*.avi", FOUR, progress=False)
    with pytest.raises(DataError, match=r"is a part from 0\.0 to 0\.2 s, and an index has one embedding per file"):
        VideoIndex.build(model, VideoDataset((Record(red, start=0.0, end=0.2),)), FOUR, progress=False)
    with pytest.raises(DataError, match="videos is empty"):
        VideoIndex.build(model, VideoDataset(()), FOUR, progress=False)


def test_arrays_are_indexed_under_their_names_with_the_scores_of_their_files(index, model, library, tmp_path):
    clips = [read(path) for path in index.paths]
    arrays = VideoIndex.build(model, VideoDataset.from_arrays(clips), PLAIN, progress=False)
    assert [str(path) for path in arrays.paths] == ["clip 0", "clip 1", "clip 2", "clip 3"]
    assert [hit.score for hit in arrays.search("red", k=4)] == [hit.score for hit in index.search("red", k=4)]
    with pytest.raises(ValueError, match="clip 0 and 3 more are indexed already"):
        arrays.add(VideoDataset.from_arrays(clips), progress=False)
    assert VideoIndex.load(arrays.save(tmp_path / "saved"), model).paths == arrays.paths


def test_the_data_config_is_that_of_the_training_unless_given(model, library):
    model.training_record = {"data_config": {"frames": 3, "sampler": "linspace"}}
    index = VideoIndex.build(model, library / "blue", progress=False)
    assert index.data_config == DataConfig(frames=3, sampler="linspace", unreadable="skip")
    given = DataConfig(frames=2, workers=1)
    assert VideoIndex(model, given).data_config == given


def test_more_videos_are_read_as_the_others_were(index, model, library, tmp_path):
    before = model.clips
    with pytest.raises(ValueError, match=r"must have the frames of the index, 4, got 2; pass dataclasses\.replace"):
        index.add(library, replace(PLAIN, frames=2), existing="skip", progress=False)
    assert model.clips == before
    (tmp_path / "broken.mp4").write_text("not a video")
    with pytest.raises(VideoError):
        index.add(tmp_path, replace(PLAIN, unreadable="raise", batch_size=2), progress=False)


def test_an_index_of_several_views_holds_their_mean(model, library, tmp_path):
    with torch.no_grad():
        model.weight.copy_(torch.eye(3, 8))
    path = tmp_path / "changing.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in range(12):
            picture = np.full((32, 32, 3), COLOURS["red" if frame < 6 else "blue"], dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    config = DataConfig(frames=1, sampler="dense", temporal_views=2, precision="32-true")
    index = VideoIndex.build(model, path, config, progress=False)
    views = [F.normalize(model.encode_text([colour]), dim=-1) for colour in ("red", "blue")]
    assert index.search_embedding(sum(views)[0].detach())[0].score == pytest.approx(1, abs=1e-3)
    assert index.search_video(path)[0].score == pytest.approx(1, abs=1e-5)
    assert VideoIndex.load(index.save(tmp_path / "saved"), model).data_config == replace(config, unreadable="skip")


def test_a_search_with_a_filter_compares_the_videos_that_pass_it(library):
    paths = sorted(library.rglob("*.mp4"))
    data = VideoDataset(tuple(Record(path, label=i % 2) for i, path in enumerate(paths)), ("even", "odd"))
    index = VideoIndex.build(ColourModel(), data, FOUR, progress=False)
    every = index.search("a red", k=9)
    assert [hit.path for hit in index.search("a red", k=9, where='label = "odd"')] == [
        hit.path for hit in every if paths.index(hit.path) % 2
    ]
    assert index.search("a red", where=f"path in ('{paths[1]}')")[0].path == paths[1]
    with pytest.raises(ValueError, match="has 'odd' at character 9"):
        index.search("a red", where="label = odd")
