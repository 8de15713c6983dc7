"""Intermediate and posterior structures on CLIP: output at step 0, masks, frame order, initialisation, refusals."""

import copy
from itertools import cycle

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from clipvid.errors import BackboneError
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Pixels
from clipvid.models.branches.base import build
from clipvid.models.branches.intermediate import Intermediate
from clipvid.models.branches.options import choose, from_config
from clipvid.models.branches.presets import IntermediateOptions
from clipvid.models.factory import attach
from clipvid.nn.pooling import mean_over_frames
from clipvid.registry import BRANCHES, MIXERS

NAMES = [name for name in BRANCHES if not name.startswith(("timesformer", "vivit-", "seqtransf"))]
HALVES = list(zip(NAMES, cycle([torch.float16, torch.bfloat16]), strict=False))
"""A dtype of half precision for each kind of branch, the two in turn."""


@pytest.fixture(scope="module")
def backbone(_one_tiny_clip):
    return Backbone(copy.deepcopy(_one_tiny_clip))


def in_eval(branch):
    """Return the branch without stochastic depth."""
    return branch.eval()


def perturbed(module, scale=0.3):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module.eval()


def features_for(backbone, branch, video, mask=None):
    return Pixels(video, mask) if branch.reads_pixels else backbone(video, levels=branch.levels, mask=mask)


@pytest.mark.parametrize("depth", [1, 3, None])
@pytest.mark.parametrize("name", ["space", "vivit2", "vivit3"])
def test_structures_with_a_class_token_per_frame_equal_clip_at_step_0(backbone, name, depth):
    branch = in_eval(build(backbone, choose(name, {"depth": depth})))
    taps = backbone(torch.rand(2, 3, 3, 32, 32), levels=branch.levels)
    torch.testing.assert_close(branch(taps), taps.frames, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["posterior", "stan"])
def test_gated_structures_equal_clip_at_step_0_to_the_bit(backbone, name):
    branch = in_eval(build(backbone, BRANCHES[name]))
    taps = backbone(torch.rand(2, 3, 3, 32, 32), levels=branch.levels)
    assert torch.equal(branch(taps), taps.frames)


@pytest.mark.parametrize("name", ["divided", "local_global", "axial"])
def test_extra_steps_of_structures_change_nothing_at_step_0(backbone, name):
    branch = in_eval(build(backbone, BRANCHES[name]))
    taps = backbone(torch.rand(2, 3, 3, 32, 32), levels=branch.levels)
    with_steps = branch(taps)
    for layer in branch.layers:
        layer.steps = torch.nn.ModuleList()
    assert torch.equal(branch(taps), with_steps)


def test_divided_joint_and_vivit1_equal_clip_for_one_frame(backbone):
    """A single frame has one class token and its own patches, so there is nothing to mix."""
    for name in ("divided", "joint", "vivit1"):
        branch = in_eval(build(backbone, BRANCHES[name]))
        taps = backbone(torch.rand(2, 1, 3, 32, 32), levels=branch.levels)
        torch.testing.assert_close(branch(taps), taps.frames, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", list(IntermediateOptions().presets))
def test_masked_frames_change_nothing(backbone, name):
    branch = perturbed(build(backbone, choose(name, {"depth": 2})))
    video = torch.rand(1, 3, 3, 32, 32)
    padded = torch.cat([video, torch.rand(1, 2, 3, 32, 32)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 2])
    with torch.no_grad():
        short = branch(features_for(backbone, branch, video))
        long = branch(features_for(backbone, branch, padded, mask))
    torch.testing.assert_close(mean_over_frames(long, mask), mean_over_frames(short, None), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["joint", "divided", "local_global", "axial", "vivit1", "vivit2", "vivit3", "posterior"]
)
def test_trained_structures_depend_on_frame_order(backbone, name):
    branch = perturbed(build(backbone, BRANCHES[name]))
    video = torch.rand(1, 4, 3, 32, 32)
    with torch.no_grad():
        forth, back = (branch(features_for(backbone, branch, v)).mean(dim=1) for v in (video, video.flip(1)))
    assert not torch.allclose(forth, back, atol=1e-3)


def test_space_without_time_embedding_does_not_depend_on_frame_order(backbone):
    branch = perturbed(build(backbone, BRANCHES["space"]))
    branch.time.data.zero_()
    video = torch.rand(1, 4, 3, 32, 32)
    with torch.no_grad():
        forth, back = (branch(features_for(backbone, branch, v)).mean(dim=1) for v in (video, video.flip(1)))
    torch.testing.assert_close(forth, back, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_divided_accepts_every_mixer_and_starts_the_same_with_each(backbone, mixer):
    plain, mixed = (in_eval(build(backbone, choose("divided", {"mixer": m, "depth": 2}))) for m in (None, mixer))
    taps = backbone(torch.rand(1, 3, 3, 32, 32), levels=plain.levels)
    assert torch.equal(mixed(taps), plain(taps))


def test_stem_frame_makes_all_blocks_trainable_and_equals_clip_at_step_0(backbone):
    branch = in_eval(Intermediate(backbone, IntermediateOptions("space", stem="frame")))
    video = torch.rand(2, 3, 3, 32, 32)
    expected = backbone(video, levels=()).frames
    torch.testing.assert_close(branch(Pixels(video)), expected, atol=2e-6, rtol=1e-5)
    assert len(branch.layers) == 4
    assert branch.levels == ()


def test_central_tubelets_equal_clip_on_every_other_frame_at_step_0(backbone):
    branch = in_eval(Intermediate(backbone, IntermediateOptions("factorised", stem="tubelet", tubelet=2)))
    video = torch.rand(2, 6, 3, 32, 32)
    expected = backbone(video[:, 1::2], levels=()).frames.repeat_interleave(2, dim=1)
    torch.testing.assert_close(branch(Pixels(video)), expected, atol=2e-6, rtol=1e-5)


def test_an_intermediate_structure_reads_one_level_and_runs_no_block_above_it(backbone):
    model = attach(backbone, "divided", branch_kwargs={"depth": 2})
    calls = []
    for block in backbone.visual.transformer.resblocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    taps = model.reads(torch.rand(1, 2, 3, 32, 32))
    assert taps.levels == (2,)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="needs no frame embeddings"), model.branch_disabled():
        model.encode_video(taps)


def test_seqtransf_starts_from_the_blocks_of_the_text_tower_if_widths_match():
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=16, heads=2, layers=3)
    vision = CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=8, image_size=32)
    clip = CLIP(16, vision, text).eval()
    branch = build(Backbone(clip), choose("seqtransf", {"depth": 3}))
    frames = torch.randn(2, 5, 16)
    x = frames + clip.positional_embedding[:5]
    for block in clip.transformer.resblocks:
        x = block(x)
    torch.testing.assert_close(branch.refine(frames), frames + x, atol=1e-5, rtol=1e-5)


def test_text_blocks_of_another_width_are_refused(backbone):
    with pytest.raises(BackboneError, match="text tower is 32 wide, the embedding 16"):
        build(backbone, choose("seqtransf", {"depth": 2}))


@pytest.mark.parametrize("name", list(BRANCHES))
def test_options_survive_the_config(name):
    assert from_config(BRANCHES[name].to_config()) == BRANCHES[name]


def test_impossible_options_are_refused_with_the_reason(backbone):
    with pytest.raises(ValueError, match="scheme must be 'divided' to take a mixer, got 'joint'"):
        choose("joint", {"mixer": "rsa"})
    with pytest.raises(
        ValueError, match=r"branch posterior has no option 'mixer'; it has .*; mixer is an option of stan and divided"
    ):
        choose("posterior", {"mixer": "rsa"})
    with pytest.raises(ValueError, match="unknown scheme 'divide'; choose one of space, joint"):
        IntermediateOptions("divide")
    with pytest.raises(ValueError, match="tubelet 4 and inflation 'central' have no effect with stem 'tower'"):
        choose("divided", {"tubelet": 4})
    with pytest.raises(BackboneError, match="has 4 levels to tap, depth 9"):
        build(backbone, choose("divided", {"depth": 9}))


@pytest.mark.parametrize(("name", "dtype"), HALVES)
def test_a_branch_is_float32_if_the_tower_has_half_precision(tiny_clip, name, dtype):
    """open_clip's precision="fp16" converts kernels and matrices to half precision, but not norms and tables."""
    from open_clip.model import convert_weights_to_lp

    torch.manual_seed(0)
    changes = {"depth": 2} if name != "mean" else {"hidden": 8}
    float32_model = attach(tiny_clip, name, branch_kwargs=changes).eval()
    video = torch.randint(0, 255, (2, 3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = float32_model.encode_video(video)
    convert_weights_to_lp(tiny_clip, dtype)
    model = attach(tiny_clip, name, branch_kwargs=changes).eval()
    assert {p.dtype for p in model.branch.parameters()} == {torch.float32}
    model.branch.load_state_dict(float32_model.branch.state_dict())
    embedding = model.encode_video(video)
    assert embedding.dtype == torch.float32
    assert (embedding * expected).sum(dim=-1).min() > 0.995, "cosine with the embedding in float32"
    (embedding * torch.randn_like(embedding)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.branch.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.branch.parameters())
