"""Token-wise similarity in evaluation and search: blocks equal one call, re-ranking reorders the best alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.evaluation.metrics import retrieval_metrics
from clipvid.evaluation.retrieval import evaluate_retrieval, video_indices
from clipvid.features import token_wise
from clipvid.features.embed import embed_frames, embed_texts
from clipvid.features.token_wise import candidates, match_all, reranked
from clipvid.models.factory import create_model
from clipvid.nn.pooling import mean_over_frames
from clipvid.search.index import VideoIndex
from clipvid.training.loop import train
from clipvid.video.decode import read

DATA_CONFIG = DataConfig(frames=3, batch_size=4, precision="32-true")


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video):
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    records = []
    for i in range(6):
        frames = rng.integers(0, 255, (2 + i, 48, 48, 3), dtype=np.uint8)
        captions = (f"a red circle number {i}", "a blue square " + "x " * i)
        records.append(Record(write_video(folder / f"{i}.mp4", frames), captions))
    return VideoDataset(tuple(records), name="noise")


@pytest.fixture(scope="module", params=["wti", "mug", "mug_simple"])
def model(request):
    torch.manual_seed(0)
    return create_model("clipvid-mini", branch="mean", similarity=request.param).eval()


def texts(clips):
    return [caption for record in clips for caption in record.captions]


def test_blocks_give_the_scores_of_one_call(model, clips, monkeypatch):
    frames, readable, _ = embed_frames(model, clips, DATA_CONFIG)
    captions = texts(readable)
    with torch.no_grad():
        expected = model.match(model.text_features(captions), frames.embeddings, mask=frames.mask)
    torch.testing.assert_close(match_all(model, captions, frames, precision="32-true"), expected, atol=1e-6, rtol=0)
    monkeypatch.setattr(token_wise, "PIECE", 100)
    blocks = match_all(model, captions, frames, precision="32-true", batch_size=5)
    torch.testing.assert_close(blocks, expected, atol=1e-6, rtol=0)
    only = torch.rand(expected.shape) > 0.5
    partial = match_all(model, captions, frames, only=only, precision="32-true", batch_size=5)
    torch.testing.assert_close(partial[only], expected[only], atol=1e-6, rtol=0)
    assert (partial[~only] == -torch.inf).all()


def test_training_and_scoring_in_bf16_give_nearly_the_same_scores(model, clips):
    """Features are computed in bf16, as on a machine that has it, and compared in float32."""
    half = replace(DATA_CONFIG, precision="bf16-mixed")
    settings = TrainConfig(epochs=1, batch_size=4, warmup=0.0, data_config=half)
    if any(True for _ in model.matcher.parameters()):
        train(model, clips, clips, settings, progress=False)
    captions, scores = texts(clips), {}
    for data_config in (DATA_CONFIG, half):
        frames, _, _ = embed_frames(model, clips, data_config)
        scores[data_config.precision] = match_all(model, captions, frames, precision=data_config.precision)
    evaluate_retrieval(model, clips, half)
    evaluate_retrieval(model, clips, half, rerank=2)
    torch.testing.assert_close(scores["bf16-mixed"], scores["32-true"], atol=0.05, rtol=0)


def test_the_cosine_of_means_is_float32_under_autocast_too():
    model = create_model("clipvid-mini", branch="mean").eval()
    text, frames = torch.nn.functional.normalize(torch.randn(3, model.embed_dim)), torch.randn(4, 5, model.embed_dim)
    exact = text @ torch.nn.functional.normalize(frames.mean(dim=1), dim=-1).T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.match(text, frames)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, atol=1e-6, rtol=0)


def test_evaluation_scores_all_pairs_by_the_models_similarity(model, clips):
    frames, readable, _ = embed_frames(model, clips, DATA_CONFIG)
    expected = retrieval_metrics(
        match_all(model, texts(readable), frames, precision="32-true"), video_indices(readable)
    )
    assert evaluate_retrieval(model, clips, DATA_CONFIG).metrics.to_dict() == expected.to_dict()


def test_reranking_orders_the_best_by_the_token_wise_similarity_and_leaves_the_rest(model, clips):
    frames, readable, _ = embed_frames(model, clips, DATA_CONFIG)
    pooled = torch.nn.functional.normalize(mean_over_frames(frames.embeddings, frames.mask), dim=-1)
    cosine = embed_texts(model, texts(readable), precision="32-true") @ pooled.T
    scores = match_all(model, texts(readable), frames, precision="32-true")
    metrics = evaluate_retrieval(model, clips, DATA_CONFIG, rerank=3).metrics
    for query, row in enumerate(reranked(cosine, scores, candidates(cosine, 3))):
        best = sorted(range(6), key=lambda i: -cosine[query, i])
        first = sorted(best[:3], key=lambda i: -scores[query, i])
        assert row.argsort(descending=True).tolist() == [*first, *best[3:]]
    by_text = retrieval_metrics(reranked(cosine, scores, candidates(cosine, 3)), video_indices(readable))
    assert metrics.t2v.to_dict() == by_text.t2v.to_dict()
    by_video = retrieval_metrics(reranked(cosine, scores, candidates(cosine.T, 3).T), video_indices(readable))
    assert metrics.v2t.to_dict() == by_video.v2t.to_dict()
    everything = evaluate_retrieval(model, clips, DATA_CONFIG, rerank=6).metrics.t2v.to_dict()
    assert everything == evaluate_retrieval(model, clips, DATA_CONFIG).metrics.t2v.to_dict()


def test_search_reranks_the_first_hits_alone(model, clips):
    index = VideoIndex.build(model, clips, DATA_CONFIG, progress=False)
    plain = index.search("a red circle", k=6)
    reranked_hits = index.search("a red circle", k=6, rerank=4)
    assert {hit.path for hit in reranked_hits[:4]} == {hit.path for hit in plain[:4]}
    assert [hit.path for hit in reranked_hits[4:]] == [hit.path for hit in plain[4:]]
    assert [hit.rank for hit in reranked_hits] == [1, 2, 3, 4, 5, 6]
    scores = [hit.score for hit in reranked_hits[:4]]
    assert scores == sorted(scores, reverse=True)
    assert len(index.search("a red circle", k=2, rerank=4)) == 2


def test_arrays_of_an_index_cannot_be_reranked(model, clips):
    data = VideoDataset.from_arrays([read(record.path) for record in clips])
    index = VideoIndex.build(model, data, DATA_CONFIG, progress=False)
    assert str(index.search("a red circle", k=1)[0].path).startswith("clip ")
    with pytest.raises(ValueError, match="rerank must be 0 for arrays, which are not in the index, got hit 'clip"):
        index.search("a red circle", rerank=2)


def test_reranking_needs_a_token_wise_similarity(clips):
    plain = create_model("clipvid-mini", branch="mean")
    with pytest.raises(ValueError, match="whose similarity is 'mean'; create it with similarity wti"):
        evaluate_retrieval(plain, clips, DATA_CONFIG, rerank=3)
    index = VideoIndex.build(plain, [clips[0].path], progress=False)
    with pytest.raises(ValueError, match="0 for a model without token-wise similarity"):
        index.search("a red circle", rerank=3)
    with pytest.raises(ValueError, match="unknown similarity 'wit'; choose one of mean, wti, mug"):
        create_model("clipvid-mini", similarity="wit")
