"""A VideoIndex of a VideoCLIP gives evaluation's embeddings to the bit, and the same hits to many threads as to one."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_search import ColourModel

from clipvid.config.data_config import DataConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError
from clipvid.features.embed import embed_frames, embed_texts, embed_videos
from clipvid.features.token_wise import match_all
from clipvid.models.backbone import fused
from clipvid.models.factory import create_model
from clipvid.runtime.storage.manifest import seal
from clipvid.search.folder.storage import METADATA
from clipvid.search.index import VideoIndex

PRECISIONS = ("32-true", "bf16-mixed")
SENTENCES = ("a red circle", "a blue square moves to the left", "a green triangle", "nothing at all")


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_video) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    return [write_video(folder / f"{i}.mp4", rng.integers(0, 255, (6, 48, 48, 3), dtype=np.uint8)) for i in range(5)]


@pytest.fixture
def model():
    """A model in training mode whose branch drops half of its paths."""
    torch.manual_seed(0)
    options = {"drop_path": 0.5, "mixer": "attention"}
    model = create_model("clipvid-mini", branch="stan", branch_kwargs={"depth": 2, **options}, similarity="wti")
    for parameter in model.branch.parameters():
        parameter.data.normal_(std=0.05)  # a new branch does not change the embedding
    return model.train()


def data(files):
    return VideoDataset(tuple(map(Record, files)))


def build_index(model, files, precision, **options):
    return VideoIndex.build(model, files, DataConfig(frames=4, precision=precision), progress=False, **options)


def rows(index):
    return torch.from_numpy(index._vectors.get([index._catalog.id_of(path) for path in index.paths])[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_index_holds_the_embeddings_of_embed_videos_bit_for_bit(model, files, precision):
    index = build_index(model, files, precision)
    embedded = embed_videos(model, data(files), DataConfig(frames=4, precision=precision))
    assert torch.equal(rows(index), F.normalize(embedded.video, dim=-1))
    other = embed_videos(model, data(files), DataConfig(frames=4, precision=PRECISIONS[precision == PRECISIONS[0]]))
    assert not torch.equal(embedded.video, other.video)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_queries_are_embedded_as_evaluation_embeds_them(model, files, precision, monkeypatch):
    index, queries = build_index(model, files, precision), []
    search = index._vectors.search
    monkeypatch.setattr(index._vectors, "search", lambda query, *rest: queries.append(query) or search(query, *rest))
    index.search(SENTENCES[0])
    assert torch.equal(torch.from_numpy(queries[0]), embed_texts(model, [SENTENCES[0]], precision=precision))
    index.search_video(files[0])
    alone = embed_videos(model, data(files[:1]), DataConfig(frames=4, precision=precision)).video
    assert torch.equal(torch.from_numpy(queries[1]), F.normalize(alone, dim=-1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_reranking_scores_as_evaluation_does(model, files, precision):
    index = build_index(model, files, precision)
    hits = index.search(SENTENCES[0], rerank=5)
    order = [hit.path for hit in index.search(SENTENCES[0])]
    frames, _, _ = embed_frames(model, data(order), DataConfig(frames=4, precision=precision))
    scores = match_all(model, [SENTENCES[0]], frames, precision=precision)[0].tolist()
    assert {hit.path: hit.score for hit in hits} == dict(zip(order, scores, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_pass_of_an_index_runs_at_its_precision(model, files, precision, monkeypatch):
    seen = []
    for name in ("encode_video", "encode_text", "encode_clip", "text_features"):
        inner = getattr(model, name)

        def spy(*args, inner=inner, name=name, **options):
            seen.append((name, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), model.branch.training))
            return inner(*args, **options)

        monkeypatch.setattr(model, name, spy)
    products = []
    multiply = fused.FrozenLinear.forward
    monkeypatch.setattr(fused.FrozenLinear, "forward", lambda self, x: products.append(1) or multiply(self, x))
    index = build_index(model, files, precision)
    index.search(SENTENCES[0], rerank=2)
    index.search_video(files[0])
    assert {entry[0] for entry in seen} == {"encode_video", "encode_text", "encode_clip", "text_features"}
    assert {entry[1:] for entry in seen} == {(precision == "bf16-mixed", False, False)}
    assert bool(products) == (precision == "bf16-mixed")


def test_another_encoder_also_runs_at_the_precision_of_the_index(files):
    seen = []

    class Spy(ColourModel):
        def encode_video(self, video, **options):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().encode_video(video, **options)

        def encode_text(self, texts, **options):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().encode_text(texts, **options)

    for precision, autocast in zip(PRECISIONS, (False, True), strict=True):
        index = build_index(Spy(), files, precision)
        index.search("red")
        index.search_video(files[0])
        assert seen == [autocast] * 3
        seen.clear()


def test_the_precision_is_saved_and_an_index_without_one_is_auto(files, tmp_path):
    model = ColourModel()
    with pytest.raises(ValueError, match="unknown precision 'bf16'; choose one of auto, "):
        VideoIndex(model, DataConfig(precision="bf16"))
    folder = build_index(model, files, "bf16-mixed").save(tmp_path / "saved")
    assert VideoIndex.load(folder, model).data_config.precision == "bf16-mixed"
    metadata = json.loads((folder / METADATA).read_text())
    (folder / METADATA).write_text(json.dumps(metadata | {"precision": "half"}))
    seal(folder)
    with pytest.raises(CheckpointError, match="unknown precision 'half'; choose one of auto, "):
        VideoIndex.load(folder, model)
    del metadata["precision"]
    (folder / METADATA).write_text(json.dumps(metadata))
    seal(folder)
    assert VideoIndex.load(folder, model).data_config.precision == "auto"


@pytest.mark.parametrize("searches", [2, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_sixteen_threads_get_the_hits_of_one(model, files, precision, searches):
    index, start = build_index(model, files, precision), threading.Barrier(16)
    model.branch.layers[0].eval()
    before = [part.training for part in model.modules()]
    serial = {text: index.search(text) for text in SENTENCES}
    videos = {path: index.search_video(path) for path in files[:2]}

    def work(thread):
        start.wait()
        for turn in range(searches):
            text, path = SENTENCES[(thread + turn) % len(SENTENCES)], files[thread // 4 % 2]
            assert index.search(text) == serial[text]
            if turn % 40 == 0 == thread % 4:
                assert index.search_video(path) == videos[path]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert [part.training for part in model.modules()] == before


def test_a_search_during_additions_sees_a_consistent_index():
    """Rows are replaced and appended meanwhile; every search must return each row once, with its score."""
    vectors = F.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=-1).numpy()
    paths = [Path(f"/{row}.mp4") for row in range(60)]
    index, done = VideoIndex(ColourModel()), threading.Event()
    index._put(paths[:40], vectors[:40])
    scores = vectors @ vectors[0]

    def search() -> int:
        answers = 0
        while not done.is_set():
            hits = index.search_embedding(vectors[0], k=100)
            assert 40 <= len(hits) <= 60
            assert len({hit.path for hit in hits}) == len(hits)
            assert hits[0].path == paths[0]
            for hit in hits:
                assert hit.score == pytest.approx(scores[int(hit.path.stem)], abs=1e-5)
            assert len(index.paths) == len(set(index.paths))
            answers += 1
        return answers

    def add() -> None:
        for turn in range(300):
            first = turn % 51
            index._put(paths[first : first + 10], vectors[first : first + 10])

    with ThreadPoolExecutor(5) as pool:
        searching = [pool.submit(search) for _ in range(4)]
        try:
            pool.submit(add).result()
        finally:
            done.set()
        assert all(future.result() for future in searching)
    assert len(index) == 60
