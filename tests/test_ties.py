"""Equal embeddings tie exactly, even if a CPU's matrix products give equal rows different last bits."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipvid.config.data_config import DataConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import Record, VideoDataset
from clipvid.evaluation.metrics import DualSoftmax, Products, retrieval_metrics, scores, tiled
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.embed import embed_frames, embed_videos
from clipvid.models.factory import create_model
from clipvid.search.index import VideoIndex


def distinct_embeddings(*counts: int) -> list[torch.Tensor]:
    """Return unit embeddings whose products are equal or differ by far more than float32 rounding."""
    generator = torch.Generator().manual_seed(1523)  # the seed with the widest gaps of 3,000: at least 4.5e-5
    return [torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=-1) for n in counts]


def exact_products(text: torch.Tensor, video: torch.Tensor) -> np.ndarray:
    """Return products computed pair by pair in float64: a matrix product may give equal rows different last bits."""
    return np.array([[float((a.double() * b.double()).sum()) for b in video] for a in text])


@pytest.fixture
def uneven_products(monkeypatch) -> None:
    """Change every element of torch's matrix products by up to 4e-7 of its value, depending on its position."""
    multiply = torch.mm

    def uneven(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        product = multiply(a, b) if out is None else multiply(a, b, out=out)
        positions = torch.arange(product.numel()).view(product.shape)
        return product.mul_(1 + 1e-7 * (positions % 5))

    monkeypatch.setattr(torch, "mm", uneven)
    monkeypatch.setattr(torch.Tensor, "__matmul__", uneven)


def test_embeddings_rank_like_their_score_matrix_for_any_block_size_and_equal_ones_tie(monkeypatch):
    text, video = distinct_embeddings(57, 31)
    video[7], video[30], text[50] = video[3], video[3], text[2]
    video_index = np.random.default_rng(0).integers(0, 31, size=57)
    expected = retrieval_metrics(exact_products(text, video), video_index, n_resamples=5)
    for block in (1 << 25, 64):
        monkeypatch.setattr(scores, "BLOCK", block)
        result = retrieval_metrics(Products(text, video), video_index, n_resamples=5)
        assert result.t2v.ranks.tolist() == expected.t2v.ranks.tolist()
        assert result.v2t.ranks.tolist() == expected.v2t.ranks.tolist()
        products = Products(text, video)
        for values in (products.rows(slice(0, 57)), products.columns(slice(0, 31))):
            assert (values[:, 3] == values[:, 7]).all()
            assert (values[:, 3] == values[:, 30]).all()
            assert (values[2] == values[50]).all()
    text[4, 3] = torch.nan
    with pytest.raises(ValueError, match="the embedding of query 4 is not finite"):
        Products(text, video)


@pytest.mark.parametrize("block", [1 << 25, 64])
@pytest.mark.parametrize("paired", [False, True])
def test_equal_embeddings_tie_if_products_depend_on_the_position(monkeypatch, uneven_products, block, paired):
    for module, name, size in ((scores, "BLOCK", block), (tiled, "ROWS", 5), (tiled, "COLUMNS", 8)):
        monkeypatch.setattr(module, name, size)
    text, video = distinct_embeddings(31 if paired else 57, 31)
    video[7], video[30], text[20] = video[3], video[3], text[2]
    rng = np.random.default_rng(0)
    video_index = rng.permutation(31) if paired else rng.integers(0, 31, size=57)
    expected = retrieval_metrics(exact_products(text, video), video_index, n_resamples=5)
    result = retrieval_metrics(Products(text, video), video_index, n_resamples=5)
    assert result.t2v.ranks.tolist() == expected.t2v.ranks.tolist()
    assert result.v2t.ranks.tolist() == expected.v2t.ranks.tolist()
    adjusted = DualSoftmax(Products(text, video), 7.0).rows(slice(0, 9))
    assert (adjusted[:, 3] == adjusted[:, 7]).all()
    rows, columns = Products(text, video).rows(slice(0, 31)), Products(text, video).columns(slice(0, 31))
    assert (rows[2] == rows[20]).all()
    assert (columns[:, 3] == columns[:, 30]).all()


def test_embeddings_that_differ_in_the_sign_of_a_zero_are_equal(uneven_products):
    text, video = distinct_embeddings(9, 9)
    video[2, 5], video[7] = 0.0, video[2]
    video[7, 5] = -0.0
    rows = Products(text, video).rows(slice(0, 9))
    assert (rows[:, 2] == rows[:, 7]).all()


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> VideoDataset:
    """Six clips, of which the first is there three times: as a file, as a copy of it, and as a link."""
    folder = tmp_path_factory.mktemp("copies")
    records = [replace(record, label=None) for record in write_dataset(folder, "test", 6)]
    shutil.copy(records[0].path, folder / "copy.mp4")
    (folder / "link.mp4").symlink_to(records[0].path)
    others = [Record(folder / name, records[0].captions) for name in ("copy.mp4", "link.mp4")]
    return VideoDataset((*records[:3], others[0], *records[3:], others[1]))


@pytest.fixture(scope="module")
def drifting_model():
    """A model whose embeddings depend on the batch, as they do in the last digits, and here in the second."""
    model = create_model("clipvid-mini", branch="mean")

    def drift(encode):
        def drifted(*args, **options):
            result = encode(*args, **options)
            values = result[0] if isinstance(result, tuple) else result
            noise = torch.linspace(0, 0.05, values[0].numel()).view(values[0].shape)
            steps = torch.arange(1, len(values) + 1).view(-1, *[1] * (values.ndim - 1)) / len(values)
            values = values + noise * steps
            return (values, *result[1:]) if isinstance(result, tuple) else values

        return drifted

    for name in ("encode_video", "encode_clip"):
        setattr(model, name, drift(getattr(model, name)))
    return model


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_clips_of_equal_content_tie_at_every_batch_size(drifting_model, copies, batch_size, tmp_path):
    data_config = DataConfig(frames=2, precision="32-true", batch_size=batch_size)
    video = embed_videos(drifting_model, copies, data_config).video
    assert torch.equal(video[0], video[3])
    assert torch.equal(video[0], video[7])
    assert not torch.equal(video[0], video[1])
    frames, _, _ = embed_frames(drifting_model, copies, data_config)
    assert torch.equal(frames.embeddings[0], frames.embeddings[7])
    result = evaluate_retrieval(drifting_model, copies, data_config)
    assert result.per_query()["rank"].iloc[[0, 3, 7]].nunique() == 1
    index = VideoIndex(drifting_model, data_config)
    index.add(copies[1:4], progress=False)
    index.add(copies, existing="skip", progress=False)
    scores_by_name = {hit.path.name: hit.score for hit in index.search("a red circle", k=8)}
    assert len({scores_by_name[copies[row].path.name] for row in (0, 3, 7)}) == 1
