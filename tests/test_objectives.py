"""Objectives: mixup and label smoothing equal their formulas, retrieval uses the model's similarity."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clipvid.config.settings import TrainConfig
from clipvid.models.factory import create_model
from clipvid.models.heads import LinearClassifier
from clipvid.training.losses import classification, matching
from clipvid.training.objectives import Recognition, Retrieval
from clipvid.training.train_batch import TrainBatch


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_model("clipvid-mini", branch_kwargs={"depth": 1}).eval()
    model.head = LinearClassifier(model.embed_dim, ("a", "b", "c"))
    torch.nn.init.normal_(model.branch.fusion.gate.weight, std=0.05)
    return model


def make_batch(n=4, **changes):
    fields = {
        "mask": None,
        "text": torch.zeros(0, 1),
        "video_index": torch.zeros(0, dtype=torch.long),
        "labels": torch.tensor([0, 1, 2, 0][:n]),
        **changes,
    }
    video = fields.pop("video", torch.randint(0, 255, (n, 2, 3, 48, 48), dtype=torch.uint8))
    return TrainBatch(0, video, **fields)


def test_mixup_blends_the_batch_with_its_reverse_and_blends_their_losses(model, monkeypatch):
    batch = make_batch()
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, *_: torch.tensor(0.3))
    loss = Recognition(model, TrainConfig(task="recognition", mixup=0.2, label_smoothing=0.1))(batch)
    pixels = model.transform(batch.video)
    logits = model.classify(0.7 * pixels + 0.3 * pixels.flip(0))
    losses = [F.cross_entropy(logits, labels, label_smoothing=0.1) for labels in (batch.labels, batch.labels.flip(0))]
    torch.testing.assert_close(loss, 0.7 * losses[0] + 0.3 * losses[1], atol=1e-6, rtol=0)


def test_mixup_with_share_0_is_the_plain_loss(model, monkeypatch):
    batch = make_batch()
    plain = Recognition(model, TrainConfig(task="recognition"))(batch)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, *_: torch.tensor(0.0))
    mixed = Recognition(model, TrainConfig(task="recognition", mixup=0.2))(batch)
    torch.testing.assert_close(mixed, plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(plain, F.cross_entropy(model.classify(batch.video), batch.labels))


def test_the_mixup_share_follows_its_beta_distribution_and_torchs_seed(model):
    shares = []
    for _ in range(2):
        torch.manual_seed(3)
        shares.append([float(torch.distributions.Beta(0.3, 0.3).sample()) for _ in range(2000)])
    assert shares[0] == shares[1]
    assert sum(shares[0]) / 2000 == pytest.approx(0.5, abs=0.03)
    assert sum((x - 0.5) ** 2 for x in shares[0]) / 2000 == pytest.approx(0.25 / (2 * 0.3 + 1), abs=0.01)


def test_blended_labels_are_checked_too():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="labels run from 0 to 3"):
        classification(logits, labels, blend=(torch.tensor([3, 0, 0, 0]), 0.5))


def test_retrieval_compares_by_the_models_similarity(model):
    texts = ["a red circle moves up", "a blue square", "a star", "nothing"]
    video_index = torch.arange(4)
    batch = make_batch(text=model.encode_text(texts, normalize=True), video_index=video_index)
    scale = model.backbone.logit_scale
    expected = matching(batch.text @ model.encode_video(batch.video, normalize=True).T, video_index, scale=scale)
    torch.testing.assert_close(Retrieval(model, TrainConfig())(batch), expected, atol=1e-5, rtol=1e-5)
    token_wise_model = create_model("clipvid-mini", branch_kwargs={"depth": 1}, similarity="mug").eval()
    batch = make_batch(text=token_wise_model.backbone.tokenize(texts), video_index=video_index)
    frames, _ = token_wise_model.encode_clip(batch.video)
    expected = matching(token_wise_model.match(token_wise_model.text_features(texts), frames), video_index, scale=5.0)
    loss = Retrieval(token_wise_model, TrainConfig(temperature=0.2))(batch)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("micro_batch_size", [0, 2])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_equal_captions_of_a_batch_are_no_negatives_of_each_other(model, as_tokens, micro_batch_size):
    texts = ["a red circle", "a blue square", "a red circle", "a star"]
    text = model.backbone.tokenize(texts) if as_tokens else model.encode_text(texts, normalize=True)
    batch = make_batch(text=text, video_index=torch.arange(4))
    config = TrainConfig(batch_size=4, micro_batch_size=micro_batch_size)
    embeddings = model.encode_video(batch.video, normalize=True)
    similarity = model.encode_text(texts, normalize=True) @ embeddings.T
    scale, numbers = model.backbone.logit_scale, torch.tensor([0, 1, 0, 2])
    expected = matching(similarity, torch.arange(4), scale=scale, caption_index=numbers)
    torch.testing.assert_close(Retrieval(model, config)(batch), expected, atol=1e-4, rtol=1e-4)
    negatives = Retrieval(model, replace(config, multi_positive=False))(batch)
    torch.testing.assert_close(negatives, matching(similarity, torch.arange(4), scale=scale), atol=1e-4, rtol=1e-4)


def test_mixup_masks_only_frames_that_are_padding_in_both_clips(model, monkeypatch):
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, *_: torch.tensor(0.5))
    mask = torch.tensor([[True, False]] + [[True, True]] * 3)
    masks = []
    monkeypatch.setattr(model, "classify", lambda video, mask: masks.append(mask) or torch.zeros(4, 3))
    Recognition(model, TrainConfig(task="recognition", mixup=0.2))(make_batch(mask=mask))
    assert masks[0].all()
