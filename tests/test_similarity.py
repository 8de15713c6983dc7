"""Token-wise similarity heads: loops over tokens and frames as oracle, masks, broadcasting, the released numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clipvid.nn.similarity import FORMS, SIMILARITIES, WTI, Mug

E = 8
HEADS = {
    "wti": lambda: WTI(E),
    "wti, one layer": lambda: WTI(E, layers=1),
    "wti, three layers": lambda: WTI(E, layers=3),
    "mug": lambda: Mug(sharpness=7.0),  # at 100 one token would take all the weight
    "mug_simple": lambda: Mug(form="frame_token_simple", sharpness=7.0),
}
heads = pytest.mark.parametrize("name", list(HEADS))


def head_of(name: str) -> torch.nn.Module:
    head = HEADS[name]().double()
    for p in head.parameters():  # weights that differ between tokens, none of them at 0
        torch.nn.init.normal_(p, std=0.4)
    return head


def case(m: int = 4, b: int = 3, length: int = 6, frames: int = 5) -> tuple[torch.Tensor, ...]:
    """Return text (M, L, E), video (B, T, E) and random masks with at least one token and one frame per row."""
    text, video = (torch.randn(shape, dtype=torch.float64) for shape in ((m, length, E), (b, frames, E)))
    text_mask, video_mask = torch.rand(m, length) > 0.5, torch.rand(b, frames) > 0.4
    text_mask[range(m), torch.randint(length, (m,))] = True
    video_mask[range(b), torch.randint(frames, (b,))] = True
    return text, video, text_mask, video_mask


def all_pairs(head, text, video, text_mask, video_mask):
    return head(text[:, None], video[None], text_mask=text_mask[:, None], video_mask=video_mask[None])


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


@torch.no_grad()
def naive(head, text: list[torch.Tensor], video: list[torch.Tensor]) -> float:
    """Score one pair, given only its unmasked tokens and frames, by the papers' formulas."""
    cosine = [[float(word @ frame / word.norm() / frame.norm()) for frame in video] for word in text]
    across = [list(column) for column in zip(*cosine, strict=True)]
    if isinstance(head, WTI):
        w = softmax([float(head.text_weight(word)) for word in text])
        u = softmax([float(head.video_weight(frame)) for frame in video])
        total = sum(a * max(row) for a, row in zip(w, cosine, strict=True))
        return (total + sum(a * max(column) for a, column in zip(u, across, strict=True))) / 2
    words, frames = ([x / x.norm() for x in side] for side in (text, video))

    def mean(side: list[torch.Tensor], cosines: list[float]) -> torch.Tensor:
        weights = softmax([head.sharpness * value for value in cosines])
        return sum((a * x for a, x in zip(weights, side, strict=True)), torch.zeros(E, dtype=torch.float64))

    word_scores = [float(mean(frames, row) @ word) for row, word in zip(cosine, words, strict=True)]
    frame_scores = [float(mean(words, column) @ frame) for column, frame in zip(across, frames, strict=True)]
    if head.form == "frame_token":
        return float(mean(words, word_scores) @ mean(frames, frame_scores))
    halves = (
        sum(a * value for a, value in zip(softmax([head.sharpness * value for value in scores]), scores, strict=True))
        for scores in (word_scores, frame_scores)
    )
    return sum(halves) / 2


@heads
def test_a_head_equals_the_loops_over_tokens_and_frames(name):
    head = head_of(name)
    text, video, text_mask, video_mask = case()
    got = all_pairs(head, text, video, text_mask, video_mask)
    assert got.shape == (4, 3)
    for i, j in itertools.product(range(4), range(3)):
        expected = naive(head, list(text[i][text_mask[i]]), list(video[j][video_mask[j]]))
        assert got[i, j].item() == pytest.approx(expected, abs=1e-10)


@heads
def test_paired_scores_equal_those_of_all_pairs(name):
    head = head_of(name)
    text, video, text_mask, video_mask = case()
    table = all_pairs(head, text, video, text_mask, video_mask)
    i, j = torch.tensor([0, 3, 1, 1]), torch.tensor([2, 0, 1, 2])
    got = head(text[i], video[j], text_mask=text_mask[i], video_mask=video_mask[j])
    torch.testing.assert_close(got, table[i, j], atol=1e-12, rtol=0)
    one = head(text[3], video[0], text_mask=text_mask[3], video_mask=video_mask[0])
    assert one.shape == ()
    torch.testing.assert_close(one, table[3, 0], atol=1e-12, rtol=0)
    one_to_all = head(text[3], video, text_mask=text_mask[3], video_mask=video_mask)
    torch.testing.assert_close(one_to_all, table[3], atol=1e-12, rtol=0)


@heads
def test_masked_tokens_and_frames_change_nothing(name):
    head = head_of(name)
    text, video, text_mask, video_mask = case()
    expected = all_pairs(head, text, video, text_mask, video_mask)
    text[~text_mask], video[~video_mask] = 1e200, -1e200
    assert torch.equal(all_pairs(head, text, video, text_mask, video_mask), expected)
    text, video = F.pad(text, (0, 0, 0, 4), value=9.0), F.pad(video, (0, 0, 0, 3), value=-9.0)
    got = all_pairs(head, text, video, F.pad(text_mask, (0, 4)), F.pad(video_mask, (0, 3)))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@heads
def test_no_video_mask_means_that_all_frames_count(name):
    head = head_of(name)
    text, video, text_mask, _ = case(m=3)
    all_valid = torch.ones(3, 5, dtype=torch.bool)
    expected = head(text, video, text_mask=text_mask, video_mask=all_valid)
    assert torch.equal(head(text, video, text_mask=text_mask), expected)


@heads
def test_masked_cosines_do_not_beat_negative_ones(name):
    """The released WTI sets masked cosines to 0, which beat negative ones; ours leaves them out."""
    head = head_of(name)
    text = torch.randn(1, 4, E, dtype=torch.float64)
    video = -text[:, :1].expand(1, 3, E)
    text_mask, video_mask = torch.tensor([[True, False, False, False]]), torch.tensor([[True, True, False]])
    got = head(text, video, text_mask=text_mask, video_mask=video_mask)
    torch.testing.assert_close(got, torch.tensor([-1.0], dtype=torch.float64))


@heads
def test_one_word_and_a_still_clip_give_the_cosine(name):
    head = head_of(name)
    text, frame = torch.randn(3, 6, E, dtype=torch.float64), torch.randn(3, 1, E, dtype=torch.float64)
    text_mask = F.one_hot(torch.tensor([2, 0, 5]), 6).bool()
    got = head(text, frame.expand(3, 5, E), text_mask=text_mask)
    expected = F.cosine_similarity(text[text_mask], frame[:, 0], dim=-1)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@heads
def test_gradients_are_finite_and_reach_only_unmasked_entries(name):
    head = head_of(name).float()
    text, video, text_mask, video_mask = case(length=77, frames=12)
    text_mask[:] = torch.arange(77) < 2
    text[~text_mask], video[~video_mask] = 1e30, 0.0
    text, video = (x.float().requires_grad_() for x in (text, video))
    total = all_pairs(head, text, video, text_mask, video_mask).square().sum()
    grads = torch.autograd.grad(total, (text, video, *head.parameters()))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
    assert not grads[0][~text_mask].any()
    assert not grads[1][~video_mask].any()
    assert grads[0][text_mask].any(dim=-1).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_release_differs_from_ours_by_padding_alone(form):
    head = Mug(form=form).double()
    text, video, _, _ = case()
    all_valid = torch.ones(4, 6, dtype=torch.bool)
    got = head(text[:, None], video[None], text_mask=all_valid[:, None])
    ours = Mug(form=form.replace("_release", "")).double()
    assert torch.equal(got, ours(text[:, None], video[None], text_mask=all_valid[:, None]))


@pytest.mark.parametrize(
    ("form", "tensor"),
    [("frame_token_release", "sim_mug_frame_token"), ("frame_token_simple", "sim_mug_frame_token_simple")],
)
def test_similarities_equal_the_released_heads(shared_data, form, tensor):
    io = load_file(shared_data / "fixtures" / "stan_release" / "io.safetensors")
    text, video, mask = io["text_token_embeddings"], io["frame_embeddings"], io["token_ids"] != 0
    got = Mug(form=form)(text[:, None], video[None], text_mask=mask[:, None])
    torch.testing.assert_close(got, io[tensor], atol=1e-5, rtol=0)


def test_without_its_padding_the_released_frame_token_is_ours(shared_data):
    """The released code counts padding, so each caption is cut to its 4 to 6 of 12 tokens first."""
    io = load_file(shared_data / "fixtures" / "stan_release" / "io.safetensors")
    mask, released = io["token_ids"] != 0, Mug(form="frame_token_release")
    text, video = io["text_token_embeddings"], io["frame_embeddings"]
    ours = Mug()(text[:, None], video[None], text_mask=mask[:, None])
    for i, words in enumerate(mask.sum(dim=1)):
        cut = released(text[i, :words], video, text_mask=mask[i, :words])
        torch.testing.assert_close(ours[i], cut, atol=1e-6, rtol=0)
    assert (ours - io["sim_mug_frame_token"]).abs().max() > 0.01


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_every_name_makes_a_head_of_the_given_width(name):
    head = SIMILARITIES[name](E)
    text, video, text_mask, video_mask = case()
    got = all_pairs(head, text.float(), video.float(), text_mask, video_mask)
    assert got.shape == (4, 3)
    assert got.abs().max() <= 1


def test_a_new_wti_weighs_all_tokens_and_frames_about_the_same():
    text, video, text_mask, video_mask = case()
    plain = WTI(E).double()
    for p in plain.parameters():
        torch.nn.init.zeros_(p)
    got, expected = (all_pairs(head, text, video, text_mask, video_mask) for head in (WTI(E).double(), plain))
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)


def test_autocast_does_not_blur_the_cosines():
    text, video, text_mask, video_mask = case()
    text, video = text.float(), video.float()
    for head in (Mug(), WTI(E)):
        expected = all_pairs(head, text, video, text_mask, video_mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(all_pairs(head, text, video, text_mask, video_mask), expected)
        # features that a tower returned under autocast, compared outside of it
        got = all_pairs(head, text.bfloat16(), video.bfloat16(), text_mask, video_mask)
        assert got.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_a_fully_masked_item_is_named(name):
    head = SIMILARITIES[name](E).double()
    text, video, text_mask, video_mask = case()
    video_mask[1] = False
    with pytest.raises(ValueError, match="video row 1 has no valid frame"):
        all_pairs(head, text, video, text_mask, video_mask)
    text_mask[2] = False
    with pytest.raises(ValueError, match="text row 2 has no valid token: its mask is all False; leave it out"):
        all_pairs(head, text, video, text_mask, video_mask)


def test_wrong_options_name_the_value_and_what_is_allowed():
    with pytest.raises(ValueError, match="layers must be 1, 2 or 3, as in the released code, got 0"):
        WTI(E, layers=0)
    with pytest.raises(ValueError, match="unknown form 'token_frame'; choose one of frame_token, frame_token_simple"):
        Mug(form="token_frame")
    with pytest.raises(ValueError, match=r"must be above 0, got -1\.0"):
        Mug(sharpness=-1.0)
