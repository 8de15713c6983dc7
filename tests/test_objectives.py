"""Objectives: mixup and smoothing are their formulas, retrieval compares by the model's own similarity."""

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
    model = create_model("clipvid-mini", depth=1).eval()
    model.head = LinearClassifier(model.embed_dim, ("a", "b", "c"))
    torch.nn.init.normal_(model.branch.fusion.gate.weight, std=0.05)
    return model


def work(n=4, **changes):
    given = {
        "mask": None,
        "text": torch.zeros(0, 1),
        "video_index": torch.zeros(0, dtype=torch.long),
        "labels": torch.tensor([0, 1, 2, 0][:n]),
        **changes,
    }
    video = given.pop("video", torch.randint(0, 255, (n, 2, 3, 48, 48), dtype=torch.uint8))
    return TrainBatch(0, video, **given)


def test_mixup_is_the_blend_of_the_batch_with_its_reverse_and_of_their_losses(model, monkeypatch):
    given = work()
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, *_: torch.tensor(0.3))
    got = Recognition(model, TrainConfig(task="recognition", mixup=0.2, label_smoothing=0.1))(given)
    pixels = model.transform(given.video)
    logits = model.classify(0.7 * pixels + 0.3 * pixels.flip(0))
    losses = [F.cross_entropy(logits, labels, label_smoothing=0.1) for labels in (given.labels, given.labels.flip(0))]
    torch.testing.assert_close(got, 0.7 * losses[0] + 0.3 * losses[1], atol=1e-6, rtol=0)


def test_mixup_with_nothing_mixed_in_is_the_plain_loss(model, monkeypatch):
    given = work()
    plain = Recognition(model, TrainConfig(task="recognition"))(given)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, *_: torch.tensor(0.0))
    mixed = Recognition(model, TrainConfig(task="recognition", mixup=0.2))(given)
    torch.testing.assert_close(mixed, plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(plain, F.cross_entropy(model.classify(given.video), given.labels))


def test_the_share_follows_its_beta_distribution_and_torchs_seed(model):
    augmented_views = []
    for _ in range(2):
        torch.manual_seed(3)
        augmented_views.append([float(torch.distributions.Beta(0.3, 0.3).sample()) for _ in range(2000)])
    assert augmented_views[0] == augmented_views[1]
    assert sum(augmented_views[0]) / 2000 == pytest.approx(0.5, abs=0.03)
    assert sum((x - 0.5) ** 2 for x in augmented_views[0]) / 2000 == pytest.approx(0.25 / (2 * 0.3 + 1), abs=0.01)


def test_a_soft_label_is_refused_nowhere_else():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="labels run from 0 to 3"):
        classification(logits, labels, blend=(torch.tensor([3, 0, 0, 0]), 0.5))


def test_retrieval_compares_by_the_models_similarity(model):
    texts = ["a red circle moves up", "a blue square", "a star", "nothing"]
    video_index = torch.arange(4)
    given = work(text=model.encode_text(texts), video_index=video_index)
    scale = model.backbone.logit_scale
    expected = matching(model.encode_text(texts) @ model.encode_video(given.video).T, video_index, scale=scale)
    torch.testing.assert_close(Retrieval(model, TrainConfig())(given), expected, atol=1e-5, rtol=1e-5)
    words = create_model("clipvid-mini", depth=1, similarity="mug").eval()
    given = work(text=words.backbone.tokenize(texts), video_index=video_index)
    frames, _ = words.encode_clip(given.video)
    expected = matching(words.match(words.text_features(texts), frames), video_index, scale=5.0)
    got = Retrieval(words, TrainConfig(temperature=0.2))(given)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_padding_frames_of_one_clip_do_not_hide_the_other_when_blended(model, monkeypatch):
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, *_: torch.tensor(0.5))
    mask = torch.tensor([[True, False]] + [[True, True]] * 3)
    seen = []
    monkeypatch.setattr(model, "classify", lambda video, mask: seen.append(mask) or torch.zeros(4, 3))
    Recognition(model, TrainConfig(task="recognition", mixup=0.2))(work(mask=mask))
    assert seen[0].all()
