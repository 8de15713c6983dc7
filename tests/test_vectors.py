"""Approximate vector indices: recall, exact scores, removal, saving and growing, compared with the exact index."""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import numpy as np
import pytest
from test_search import ColourModel

from clipvid.errors import CheckpointError
from clipvid.search.folder.storage import METADATA
from clipvid.search.index import VideoIndex
from clipvid.search.stores.faiss import KINDS, NEEDED, Vectors

TOTAL, WIDTH = 3000, 24


def clustered(total=TOTAL, *, seed=0):
    """Return unit vectors around 40 centres, like embeddings of videos around their subjects."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, WIDTH))
    return unit(centres[rng.integers(40, size=total)] + 0.5 * rng.normal(size=(total, WIDTH)))


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors_of(kind, rows):
    vectors = Vectors(WIDTH, kind=kind)
    for part in np.array_split(rows, 3):
        vectors.add(part)
    vectors.settle()
    return vectors


def recall(vectors, rows, queries, k=10):
    exact = np.argsort(-(queries @ rows.T), axis=1)[:, :k]
    nearest = vectors.search(queries, k)[1]
    return np.mean([len(set(expected) & set(hits)) / k for expected, hits in zip(exact, nearest, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_above_0_9_and_scores_are_exact(kind):
    rows, queries = clustered(), clustered(200, seed=1)
    vectors = vectors_of(kind, rows)
    assert (len(vectors), vectors.width, vectors.trained) == (TOTAL, WIDTH, True)
    assert recall(vectors, rows, queries) > (0.999 if kind == "flat" else 0.9)
    scores, hits = vectors.search(queries, 10)
    np.testing.assert_allclose(scores, np.einsum("qke,qe->qk", rows[hits], queries), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 1e-6).all()


def test_ivf_compares_only_part_of_the_rows():
    rows = clustered()
    vectors = vectors_of("ivf", rows)
    assert vectors._index.nprobe < vectors._index.nlist / 4
    vectors._index.nprobe = 1  # if this had no effect, nothing would be missed
    assert recall(vectors, rows, clustered(200, seed=1)) < 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_removed_rows_are_gone_and_the_others_are_renumbered(kind):
    rows = clustered(900)
    vectors, removed = vectors_of(kind, rows), [0, 5, 450, 899]
    vectors.remove(removed)
    remaining = np.delete(rows, removed, axis=0)
    assert len(vectors) == 896
    assert recall(vectors, remaining, clustered(100, seed=2)) > 0.9
    assert (vectors.search(remaining, 1)[1][:, 0] == np.arange(896)).mean() > 0.99  # each row is its own nearest
    vectors.add(rows[removed])
    assert vectors.search(rows[removed], 1)[1][:, 0].tolist() == [896, 897, 898, 899]


@pytest.fixture
def model():
    return ColourModel(width=WIDTH)


def index_of(model, kind, rows):
    """Return an index of these vectors, without reading videos."""
    index = VideoIndex(model, kind=kind)
    index._put([Path(f"/{row}.mp4") for row in range(len(rows))], rows)
    index._vectors.optimize()
    return index


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_gives_the_same_hits_and_can_be_extended(kind, model, tmp_path):
    rows, more = clustered(700), clustered(50, seed=3)
    index = index_of(model, kind, rows)
    loaded = VideoIndex.load(index.save(tmp_path / "saved"), model)
    assert (loaded.kind, json.loads((tmp_path / "saved" / METADATA).read_text())["kind"]) == (kind, kind)
    for query in clustered(20, seed=1):
        assert loaded.search_embedding(query, k=10) == index.search_embedding(query, k=10)
    loaded._put([Path(f"/more-{row}.mp4") for row in range(50)], more)
    assert [loaded.search_embedding(row, k=1)[0].path.stem for row in more] == [f"more-{i}" for i in range(50)]
    assert len(VideoIndex.load(loaded.save(tmp_path / "saved"), model)) == 750
    assert repr(loaded).endswith("12 frames each)" if kind == "flat" else f"12 frames each, {kind})")


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_large_k_returns_all_videos(kind, model):
    index = index_of(model, kind, clustered(400))
    assert len({hit.path for hit in index.search_embedding(np.ones(WIDTH), k=1000)}) == 400


def test_a_video_stays_in_the_index_if_its_replacement_fails(model, monkeypatch):
    index = VideoIndex(model)
    rows = np.eye(WIDTH, dtype=np.float32)[:2]
    index._put([Path("/a.mp4"), Path("/b.mp4")], rows)
    add, failures = index._vectors.add, [MemoryError]

    def add_after_failures(*arguments):
        if failures:
            raise failures.pop()
        add(*arguments)

    monkeypatch.setattr(index._vectors, "add", add_after_failures)
    with pytest.raises(MemoryError):
        index._put([Path("/a.mp4")], rows[1:])
    assert index.paths == (Path("/a.mp4"), Path("/b.mp4"))
    assert [hit.path.stem for hit in index.search_embedding(rows[0])] == ["a", "b"]


def test_an_embedding_is_searched_with_a_filter(model):
    rows = clustered(20)
    index = index_of(model, "flat", rows)
    condition = 'path in ("/3.mp4", "/7.mp4")'
    assert [hit.path.stem for hit in index.search_embedding(rows[7], where=condition)] == ["7", "3"]
    with pytest.raises(ValueError, match="must name columns of path, label"):
        index.search_embedding(rows[7], where="seconds > 3")


def test_ivf_with_too_few_videos_is_refused_before_embedding(model, tmp_path):
    files = [tmp_path / f"{number}.mp4" for number in range(3)]
    for file in files:
        file.touch()
    with pytest.raises(ValueError, match=f"at least {NEEDED} videos for training, got 3; use kind flat"):
        VideoIndex.build(model, files, kind="ivf", progress=False)
    assert model.clips == 0


def test_ivf_interrupted_before_its_training_is_exact_and_can_be_continued(model, tmp_path):
    rows = clustered(700)
    index = VideoIndex(model, kind="ivf")
    index._put([Path(f"/{row}.mp4") for row in range(100)], rows[:100])
    loaded = VideoIndex.load(index.save(tmp_path / "saved"), model)
    exact = index_of(model, "flat", rows[:100])
    assert loaded.search_embedding(rows[500], k=100) == exact.search_embedding(rows[500], k=100)
    assert not loaded._vectors._vectors.trained
    with pytest.raises(ValueError, match=f"at least {NEEDED} videos for training, got 100"):
        loaded._vectors.optimize()
    loaded._put([Path(f"/{row}.mp4") for row in range(100, 700)], rows[100:])
    loaded._vectors.optimize()
    assert loaded._vectors._vectors.trained
    assert recall(loaded._vectors._vectors, rows, clustered(100, seed=1)) > 0.9


def test_unknown_kinds_are_refused(model):
    with pytest.raises(ValueError, match="kind must be one of flat, ivf, hnsw, got 'lsh'"):
        VideoIndex(model, kind="lsh")


def test_vectors_that_do_not_fit_are_refused(tmp_path):
    by_distance, not_finite = faiss.IndexHNSWFlat(4, 8), faiss.IndexFlatIP(4)
    by_distance.add(np.eye(4, dtype=np.float32))
    not_finite.add(np.full((4, 4), np.nan, dtype=np.float32))
    for index, kind, message in (
        (by_distance, "hnsw", "it does not compare by inner products"),
        (not_finite, "flat", "a vector is not finite"),
        (by_distance, "flat", "holds IndexHNSWFlat, not flat vectors"),
    ):
        (tmp_path / "vectors").write_bytes(faiss.serialize_index(index).tobytes())
        with pytest.raises(CheckpointError, match=message):
            Vectors.load(tmp_path / "vectors", kind=kind, rows=4)
