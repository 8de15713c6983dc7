"""Intermediate and posterior structures on CLIP: what they are at step 0, masks, time, starts, refusals."""

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from clipvid.errors import BackboneError
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Pixels
from clipvid.models.branches import BRANCHES, build, choose, from_config
from clipvid.models.branches.intermediate import PRESETS, Intermediate, IntermediateOptions
from clipvid.models.factory import attach
from clipvid.nn.mixers import MIXERS
from clipvid.nn.pooling import mean_over_frames


@pytest.fixture
def backbone(tiny_clip):
    return Backbone(tiny_clip)


def quiet(branch):
    """Without stochastic depth."""
    return branch.eval()


def noisy(module, scale=0.3):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module.eval()


def read(backbone, branch, video, mask=None):
    return Pixels(video, mask) if branch.reads_pixels else backbone(video, levels=branch.levels, mask=mask)


@pytest.mark.parametrize("depth", [1, 3, None])
@pytest.mark.parametrize("name", ["space", "vivit2", "vivit3"])
def test_structures_with_class_tokens_of_frames_are_clip_at_step_0(backbone, name, depth):
    branch = quiet(build(backbone, choose(name, {"depth": depth})))
    taps = backbone(torch.rand(2, 3, 3, 32, 32), levels=branch.levels)
    torch.testing.assert_close(branch(taps), taps.frames, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["posterior", "stan"])
def test_gated_structures_are_clip_at_step_0_to_the_bit(backbone, name):
    branch = quiet(build(backbone, BRANCHES[name]))
    taps = backbone(torch.rand(2, 3, 3, 32, 32), levels=branch.levels)
    assert torch.equal(branch(taps), taps.frames)


@pytest.mark.parametrize("name", ["divided", "local_global", "axial"])
def test_structures_with_extra_steps_are_their_blocks_own_attention_at_step_0_exactly(backbone, name):
    branch = quiet(build(backbone, BRANCHES[name]))
    taps = backbone(torch.rand(2, 3, 3, 32, 32), levels=branch.levels)
    whole = branch(taps)
    for layer in branch.layers:
        layer.steps = torch.nn.ModuleList()
    assert torch.equal(branch(taps), whole)


def test_one_frame_makes_divided_and_joint_clip_too(backbone):
    """With one frame there is one class token, one frame's patches, and nothing to mix."""
    for name in ("divided", "joint", "vivit1"):
        branch = quiet(build(backbone, BRANCHES[name]))
        taps = backbone(torch.rand(2, 1, 3, 32, 32), levels=branch.levels)
        torch.testing.assert_close(branch(taps), taps.frames, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", list(PRESETS))
def test_masked_frames_change_nothing(backbone, name):
    branch = noisy(build(backbone, choose(name, {"depth": 2})))
    video = torch.rand(1, 3, 3, 32, 32)
    padded = torch.cat([video, torch.rand(1, 2, 3, 32, 32)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 2])
    with torch.no_grad():
        short = branch(read(backbone, branch, video))
        long = branch(read(backbone, branch, padded, mask))
    torch.testing.assert_close(mean_over_frames(long, mask), mean_over_frames(short, None), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["joint", "divided", "local_global", "axial", "vivit1", "vivit2", "vivit3", "posterior"]
)
def test_order_is_seen_once_something_has_been_learnt(backbone, name):
    branch = noisy(build(backbone, BRANCHES[name]))
    video = torch.rand(1, 4, 3, 32, 32)
    with torch.no_grad():
        forth, back = (branch(read(backbone, branch, v)).mean(dim=1) for v in (video, video.flip(1)))
    assert not torch.allclose(forth, back, atol=1e-3)


def test_space_never_sees_the_order(backbone):
    branch = noisy(build(backbone, BRANCHES["space"]))
    branch.time.data.zero_()
    video = torch.rand(1, 4, 3, 32, 32)
    with torch.no_grad():
        forth, back = (branch(read(backbone, branch, v)).mean(dim=1) for v in (video, video.flip(1)))
    torch.testing.assert_close(forth, back, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_divided_takes_every_mixer_and_starts_the_same_with_each(backbone, mixer):
    plain, own = (quiet(build(backbone, choose("divided", {"mixer": m, "depth": 2}))) for m in (None, mixer))
    taps = backbone(torch.rand(1, 3, 3, 32, 32), levels=plain.levels)
    assert torch.equal(own(taps), plain(taps))


def test_a_stem_of_single_frames_makes_the_whole_tower_trainable_and_is_clip_at_step_0(backbone):
    branch = quiet(Intermediate(backbone, IntermediateOptions("space", stem="frame")))
    video = torch.rand(2, 3, 3, 32, 32)
    expected = backbone(video, levels=()).frames
    torch.testing.assert_close(branch(Pixels(video)), expected, atol=2e-6, rtol=1e-5)
    assert len(branch.layers) == 4
    assert branch.levels == ()


def test_central_tubelets_start_as_clip_on_every_other_frame(backbone):
    branch = quiet(Intermediate(backbone, IntermediateOptions("factorised", stem="tubelet", tubelet=2)))
    video = torch.rand(2, 6, 3, 32, 32)
    expected = backbone(video[:, 1::2], levels=()).frames.repeat_interleave(2, dim=1)
    torch.testing.assert_close(branch(Pixels(video)), expected, atol=2e-6, rtol=1e-5)


def test_a_structure_of_frozen_lower_blocks_reads_one_level_and_runs_no_block_above_it(backbone):
    model = attach(backbone, "divided", depth=2)
    ran = []
    for block in backbone.visual.transformer.resblocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    taps = model.reads(torch.rand(1, 2, 3, 32, 32))
    assert taps.levels == (2,)
    assert len(ran) == 2
    with pytest.raises(ValueError, match="needs no frame embeddings"), model.branch_disabled():
        model.encode_video(taps)


def test_seqtransf_starts_from_the_text_towers_blocks_where_they_fit():
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


def test_combinations_that_cannot_be_are_refused_with_the_reason(backbone):
    with pytest.raises(ValueError, match="scheme 'joint' says itself how frames are mixed, so it takes no mixer"):
        choose("joint", {"mixer": "rsa"})
    with pytest.raises(ValueError, match="branch posterior has no cross-frame module, so mixer does not apply"):
        choose("posterior", {"mixer": "rsa"})
    with pytest.raises(ValueError, match="unknown scheme 'divide'; choose one of space, joint"):
        IntermediateOptions("divide")
    with pytest.raises(
        ValueError, match="tubelet 4 and inflation 'central' belong to stem 'tubelet', this one is 'tow"
    ):
        choose("divided", {"tubelet": 4})
    with pytest.raises(BackboneError, match="has 4 levels to tap, depth 9"):
        build(backbone, choose("divided", {"depth": 9}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in BRANCHES if not n.startswith(("timesformer", "vivit-", "seqtransf"))])
def test_a_branch_is_in_float32_beside_a_tower_in_half_precision(tiny_clip, name, dtype):
    """As open_clip makes them (precision="fp16"): kernels and matrices in half precision, norms and tables not."""
    from open_clip.model import convert_weights_to_lp

    torch.manual_seed(0)
    changes = {"depth": 2} if name != "mean" else {"hidden": 8}
    whole = attach(tiny_clip, name, options=changes).eval()
    video = torch.randint(0, 255, (2, 3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = whole.encode_video(video)
    convert_weights_to_lp(tiny_clip, dtype)
    model = attach(tiny_clip, name, options=changes).eval()
    assert {p.dtype for p in model.branch.parameters()} == {torch.float32}
    model.branch.load_state_dict(whole.branch.state_dict())
    found = model.encode_video(video)
    assert found.dtype == torch.float32
    assert (found * expected).sum(dim=-1).min() > 0.995, "cosine with the embedding in float32"
    (found * torch.randn_like(found)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.branch.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.branch.parameters())
