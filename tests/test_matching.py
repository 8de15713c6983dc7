"""Token-wise similarity in evaluation and search: pieces equal the whole, re-ranking touches the best alone."""

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


def test_pieces_give_what_one_call_gives(model, clips, monkeypatch):
    frames, kept, _ = embed_frames(model, clips, DATA_CONFIG)
    words = texts(kept)
    with torch.no_grad():
        whole = model.match(model.text_features(words), frames.embeddings, mask=frames.mask)
    torch.testing.assert_close(match_all(model, words, frames, precision="32-true"), whole, atol=1e-6, rtol=0)
    monkeypatch.setattr(token_wise, "PIECE", 100)
    pieces = match_all(model, words, frames, precision="32-true", batch_size=5)
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)
    only = torch.rand(whole.shape) > 0.5
    some = match_all(model, words, frames, only=only, precision="32-true", batch_size=5)
    torch.testing.assert_close(some[only], whole[only], atol=1e-6, rtol=0)
    assert (some[~only] == -torch.inf).all()


def test_what_trains_and_is_scored_in_bf16_gives_nearly_the_same(model, clips):
    """As on a machine with bf16, where features come in bf16 and are compared in float32."""
    half = replace(DATA_CONFIG, precision="bf16-mixed")
    settings = TrainConfig(epochs=1, batch_size=4, warmup=0.0, data_config=half)
    if any(True for _ in model.matcher.parameters()):
        train(model, clips, clips, settings, progress=False)
    texts_of, frames = texts(clips), {}
    for data_config in (DATA_CONFIG, half):
        found, _, _ = embed_frames(model, clips, data_config)
        frames[data_config.precision] = match_all(model, texts_of, found, precision=data_config.precision)
        evaluate_retrieval(model, clips, data_config)
        evaluate_retrieval(model, clips, data_config, rerank=2)
    torch.testing.assert_close(frames["bf16-mixed"], frames["32-true"], atol=0.05, rtol=0)


def test_the_cosine_of_means_is_float32_under_autocast_too():
    model = create_model("clipvid-mini", branch="mean").eval()
    text, frames = torch.nn.functional.normalize(torch.randn(3, model.embed_dim)), torch.randn(4, 5, model.embed_dim)
    exact = text @ torch.nn.functional.normalize(frames.mean(dim=1), dim=-1).T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.match(text, frames)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)


def test_evaluation_scores_all_pairs_by_the_models_similarity(model, clips):
    frames, kept, _ = embed_frames(model, clips, DATA_CONFIG)
    expected = retrieval_metrics(match_all(model, texts(kept), frames, precision="32-true"), video_indices(kept))
    assert evaluate_retrieval(model, clips, DATA_CONFIG).metrics.to_dict() == expected.to_dict()


def test_reranking_orders_the_best_by_the_token_wise_similarity_and_leaves_the_rest(model, clips):
    frames, kept, _ = embed_frames(model, clips, DATA_CONFIG)
    pooled = torch.nn.functional.normalize(mean_over_frames(frames.embeddings, frames.mask), dim=-1)
    cosine = embed_texts(model, texts(kept), precision="32-true") @ pooled.T
    again = match_all(model, texts(kept), frames, precision="32-true")
    found = evaluate_retrieval(model, clips, DATA_CONFIG, rerank=3).metrics
    for place, row in enumerate(reranked(cosine, again, candidates(cosine, 3))):
        best = sorted(range(6), key=lambda i: -cosine[place, i])
        first = sorted(best[:3], key=lambda i: -again[place, i])
        assert row.argsort(descending=True).tolist() == [*first, *best[3:]]
    forth = retrieval_metrics(reranked(cosine, again, candidates(cosine, 3)), video_indices(kept))
    assert found.t2v.to_dict() == forth.t2v.to_dict()
    back = retrieval_metrics(reranked(cosine, again, candidates(cosine.T, 3).T), video_indices(kept))
    assert found.v2t.to_dict() == back.v2t.to_dict()
    everything = evaluate_retrieval(model, clips, DATA_CONFIG, rerank=6).metrics.t2v.to_dict()
    assert everything == evaluate_retrieval(model, clips, DATA_CONFIG).metrics.t2v.to_dict()


def test_search_reads_the_first_hits_again(model, clips):
    index = VideoIndex.build(model, [r.path for r in clips], frames=3, progress=False)
    plain = index.search("a red circle", k=6)
    again = index.search("a red circle", k=6, rerank=4)
    assert {hit.path for hit in again[:4]} == {hit.path for hit in plain[:4]}
    assert [hit.path for hit in again[4:]] == [hit.path for hit in plain[4:]]
    assert [hit.rank for hit in again] == [1, 2, 3, 4, 5, 6]
    scores = [hit.score for hit in again[:4]]
    assert scores == sorted(scores, reverse=True)
    assert len(index.search("a red circle", k=2, rerank=4)) == 2


def test_reranking_needs_a_token_wise_similarity(clips):
    plain = create_model("clipvid-mini", branch="mean")
    with pytest.raises(ValueError, match="whose similarity is 'mean'; attach it with similarity wti"):
        evaluate_retrieval(plain, clips, DATA_CONFIG, rerank=3)
    index = VideoIndex.build(plain, [clips[0].path], frames=3, progress=False)
    with pytest.raises(ValueError, match="needs a model with a token-wise similarity"):
        index.search("a red circle", rerank=3)
    with pytest.raises(ValueError, match="unknown similarity 'wit'; choose one of mean, wti, mug"):
        create_model("clipvid-mini", similarity="wit")
