"""Approximate indices find nearly what comparing every pair finds; they save, grow and shrink like the exact one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_search import ColourModel

from clipvid.errors import CheckpointError
from clipvid.search.index import VideoIndex
from clipvid.search.storage import METADATA
from clipvid.search.stores.faiss import KINDS, NEEDED, Vectors

TOTAL, WIDTH = 3000, 24


def clustered(total=TOTAL, *, seed=0):
    """Unit vectors about 40 centres, as embeddings of videos lie about their subjects."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, WIDTH))
    return unit(centres[rng.integers(40, size=total)] + 0.5 * rng.normal(size=(total, WIDTH)))


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made(kind, rows):
    found = Vectors(WIDTH, kind=kind)
    for some in np.array_split(rows, 3):
        found.add(some)
    found.settle()
    return found


def recall(found, rows, queries, k=10):
    exact = np.argsort(-(queries @ rows.T), axis=1)[:, :k]
    got = found.search(queries, k)[1]
    return np.mean([len(set(some) & set(other)) / k for some, other in zip(exact, got, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_nine_in_ten_of_the_nearest_are_found_with_their_exact_scores(kind):
    rows, queries = clustered(), clustered(200, seed=1)
    found = made(kind, rows)
    assert (len(found), found.width, found.trained) == (TOTAL, WIDTH, True)
    assert recall(found, rows, queries) > (0.999 if kind == "flat" else 0.9)
    scores, places = found.search(queries, 10)
    np.testing.assert_allclose(scores, np.einsum("qke,qe->qk", rows[places], queries), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 1e-6).all()


def test_an_ivf_compares_a_part_of_the_rows_only():
    rows = clustered()
    found = made("ivf", rows)
    assert found._index.nprobe < found._index.nlist / 4
    found._index.nprobe = 1  # were this without effect, nothing could be missed
    assert recall(found, rows, clustered(200, seed=1)) < 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_removed_rows_are_gone_and_the_rest_move_up(kind):
    rows = clustered(900)
    found, gone = made(kind, rows), [0, 5, 450, 899]
    found.remove(gone)
    kept = np.delete(rows, gone, axis=0)
    assert len(found) == 896
    assert recall(found, kept, clustered(100, seed=2)) > 0.9
    assert (found.search(kept, 1)[1][:, 0] == np.arange(896)).mean() > 0.99  # each finds itself
    found.add(rows[gone])
    assert found.search(rows[gone], 1)[1][:, 0].tolist() == [896, 897, 898, 899]


@pytest.fixture
def model():
    return ColourModel(width=WIDTH)


def filled(model, kind, rows):
    """An index of vectors that no video had to be read for."""
    index = VideoIndex(model, kind=kind)
    index._put([Path(f"/{place}.mp4") for place in range(len(rows))], rows)
    index._vectors.settle()
    return index


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_of_any_kind_finds_the_same_and_can_be_added_to(kind, model, tmp_path):
    rows, more = clustered(700), clustered(50, seed=3)
    index = filled(model, kind, rows)
    loaded = VideoIndex.load(index.save(tmp_path / "saved"), model)
    assert (loaded.kind, json.loads((tmp_path / "saved" / METADATA).read_text())["kind"]) == (kind, kind)
    for query in clustered(20, seed=1):
        assert loaded.search_embedding(query, k=10) == index.search_embedding(query, k=10)
    loaded._put([Path(f"/more-{place}.mp4") for place in range(50)], more)
    assert [loaded.search_embedding(row, k=1)[0].path.stem for row in more] == [f"more-{i}" for i in range(50)]
    assert len(VideoIndex.load(loaded.save(tmp_path / "saved"), model)) == 750
    assert repr(loaded).endswith("12 frames each)" if kind == "flat" else f"12 frames each, {kind})")


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_all_videos_are_found_if_all_are_asked_for(kind, model):
    index = filled(model, kind, clustered(400))
    assert len({hit.path for hit in index.search_embedding(np.ones(WIDTH), k=1000)}) == 400


def test_an_ivf_of_too_few_videos_is_refused_before_any_is_embedded(model, tmp_path):
    files = [tmp_path / f"{place}.mp4" for place in range(3)]
    with pytest.raises(ValueError, match=f"at least {NEEDED} videos for training, got 3; use kind flat"):
        VideoIndex.build(model, files, kind="ivf", progress=False)
    assert model.clips == 0


def test_an_ivf_that_was_interrupted_before_its_training_is_exact_and_goes_on(model, tmp_path):
    rows = clustered(700)
    index = VideoIndex(model, kind="ivf")
    index._put([Path(f"/{place}.mp4") for place in range(100)], rows[:100])
    loaded = VideoIndex.load(index.save(tmp_path / "saved"), model)
    exact = filled(model, "flat", rows[:100])
    assert loaded.search_embedding(rows[500], k=100) == exact.search_embedding(rows[500], k=100)
    assert not loaded._vectors.trained
    with pytest.raises(ValueError, match=f"at least {NEEDED} videos for training, got 100"):
        loaded._vectors.settle()
    loaded._put([Path(f"/{place}.mp4") for place in range(100, 700)], rows[100:])
    loaded._vectors.settle()
    assert loaded._vectors.trained
    assert recall(loaded._vectors, rows, clustered(100, seed=1)) > 0.9


def test_kinds_that_are_none_and_files_of_another_kind_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="kind must be one of flat, ivf, hnsw, got 'lsh'"):
        VideoIndex(model, kind="lsh")
    place = filled(model, "hnsw", clustered(50)).save(tmp_path / "saved")
    facts = json.loads((place / METADATA).read_text())
    for kind, message in (("flat", "holds IndexHNSWFlat, not flat vectors"), ("lsh", "one of flat, .*, got 'lsh'")):
        (place / METADATA).write_text(json.dumps(facts | {"kind": kind}))
        with pytest.raises(CheckpointError, match=message):
            VideoIndex.load(place, model)


def test_an_index_that_names_no_kind_is_flat(model, tmp_path):
    place = filled(model, "flat", clustered(50)).save(tmp_path / "saved")
    facts = json.loads((place / METADATA).read_text())
    del facts["kind"]
    (place / METADATA).write_text(json.dumps(facts))
    assert VideoIndex.load(place, model).kind == "flat"
