"""Equal embeddings tie exactly, whatever a CPU's matrix products do with the last bits of equal rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipvid.evaluation.metrics import DualSoftmax, Products, retrieval_metrics, scores, tiled


def apart(*counts: int) -> list[torch.Tensor]:
    """Embeddings of length 1 whose products, where they differ, differ by far more than float32 rounds."""
    made = torch.Generator().manual_seed(1523)  # of 3,000 seeds the one with the widest gaps, 4.5e-5 or more
    return [torch.nn.functional.normalize(torch.randn(n, 16, generator=made), dim=-1) for n in counts]


def exact(text: torch.Tensor, video: torch.Tensor) -> np.ndarray:
    """Products pair by pair in float64: a matrix product of a CPU may give equal rows different last bits."""
    return np.array([[float((a.double() * b.double()).sum()) for b in video] for a in text])


@pytest.fixture
def uneven_products(monkeypatch) -> None:
    """Every matrix product of torch is off by up to 4e-7 of itself, by the place of each number in it."""
    multiply = torch.mm

    def uneven(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        product = multiply(a, b) if out is None else multiply(a, b, out=out)
        places = torch.arange(product.numel()).view(product.shape)
        return product.mul_(1 + 1e-7 * (places % 5))

    monkeypatch.setattr(torch, "mm", uneven)
    monkeypatch.setattr(torch.Tensor, "__matmul__", uneven)


def test_embeddings_score_as_their_matrix_in_any_blocks_and_equal_ones_tie(monkeypatch):
    text, video = apart(57, 31)
    video[7], video[30], text[50] = video[3], video[3], text[2]
    video_index = np.random.default_rng(0).integers(0, 31, size=57)
    whole = retrieval_metrics(exact(text, video), video_index, n_bootstrap=5)
    for block in (1 << 25, 64):
        monkeypatch.setattr(scores, "BLOCK", block)
        found = retrieval_metrics(Products(text, video), video_index, n_bootstrap=5)
        assert found.t2v.ranks.tolist() == whole.t2v.ranks.tolist()
        assert found.v2t.ranks.tolist() == whole.v2t.ranks.tolist()
        both = Products(text, video)
        for values in (both.rows(slice(0, 57)), both.columns(slice(0, 31))):
            assert (values[:, 3] == values[:, 7]).all()
            assert (values[:, 3] == values[:, 30]).all()
            assert (values[2] == values[50]).all()
    text[4, 3] = torch.nan
    with pytest.raises(ValueError, match="the embedding of query 4 is not finite"):
        Products(text, video)


@pytest.mark.parametrize("block", [1 << 25, 64])
@pytest.mark.parametrize("paired", [False, True])
def test_equal_embeddings_tie_on_a_cpu_whose_products_depend_on_their_place(
    monkeypatch, uneven_products, block, paired
):
    for part, name, size in ((scores, "BLOCK", block), (tiled, "ROWS", 5), (tiled, "COLUMNS", 8)):
        monkeypatch.setattr(part, name, size)
    text, video = apart(31 if paired else 57, 31)
    video[7], video[30], text[20] = video[3], video[3], text[2]
    rng = np.random.default_rng(0)
    video_index = rng.permutation(31) if paired else rng.integers(0, 31, size=57)
    whole = retrieval_metrics(exact(text, video), video_index, n_bootstrap=5)
    found = retrieval_metrics(Products(text, video), video_index, n_bootstrap=5)
    assert found.t2v.ranks.tolist() == whole.t2v.ranks.tolist()
    assert found.v2t.ranks.tolist() == whole.v2t.ranks.tolist()
    adjusted = DualSoftmax(Products(text, video), 7.0).rows(slice(0, 9))
    assert (adjusted[:, 3] == adjusted[:, 7]).all()
    rows, columns = Products(text, video).rows(slice(0, 31)), Products(text, video).columns(slice(0, 31))
    assert (rows[2] == rows[20]).all()
    assert (columns[:, 3] == columns[:, 30]).all()


def test_embeddings_that_differ_in_the_sign_of_a_zero_are_equal(uneven_products):
    text, video = apart(9, 9)
    video[2, 5], video[7] = 0.0, video[2]
    video[7, 5] = -0.0
    rows = Products(text, video).rows(slice(0, 9))
    assert (rows[:, 2] == rows[:, 7]).all()
