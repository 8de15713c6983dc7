"""STAN: identities at step 0, loop oracles, permutation, masks, any number of frames, published sizes."""

import json

import pytest
import torch
import torch.nn.functional as F

from clipvid.errors import BackboneError
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.branches.base import build
from clipvid.models.branches.options import choose, from_config
from clipvid.models.branches.presets import StanOptions
from clipvid.models.branches.stan import STAN
from clipvid.nn.attention import SelfAttention, attend
from clipvid.nn.pooling import stretched
from clipvid.nn.spacetime import SpaceTimeBlock
from clipvid.registry import BRANCHES, MIXERS

GRID = (4, 4)


@pytest.fixture
def backbone(tiny_clip):
    return Backbone(tiny_clip)


def perturbed(module, scale=0.3):
    """Add noise to every parameter, because zero-initialised parts would hide mistakes."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module.eval()


def taps_of(backbone, frames=5, batch=2, depth=3):
    return backbone(torch.rand(batch, frames, 3, 32, 32), levels=backbone.last_levels(depth))


@pytest.mark.parametrize("name", list(MIXERS))
def test_mixers_add_nothing_at_step_0_and_their_zeroed_weight_learns(name):
    mixer = MIXERS[name](32, 4)
    x = torch.randn(2, 5, 16, 32)
    out = mixer(x, grid=GRID)
    assert torch.equal(out, torch.zeros_like(x))
    out.sum().backward()
    zeroed = mixer.up if name == "conv" else mixer.out
    assert zeroed.weight.grad.abs().max() > 0
    others = [p.grad for n, p in mixer.named_parameters() if not n.startswith(("up", "out"))]
    assert all(g is None or g.abs().max() == 0 for g in others)


def test_attention_mixer_equals_a_loop_over_positions():
    mixer = perturbed(MIXERS["attention"](8, 2).double())
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for b in range(2):
        for n in range(3):
            sequence = mixer.norm(x[b, :, n])
            q, k, v = (
                sequence @ w.T + c
                for w, c in zip(mixer.attention.qkv.weight.chunk(3), mixer.attention.qkv.bias.chunk(3), strict=True)
            )
            heads = []
            for a in (slice(0, 4), slice(4, 8)):
                heads.append(((q[:, a] @ k[:, a].T) / 2.0).softmax(-1) @ v[:, a])
            expected[b, :, n] = mixer.out(mixer.attention.out(torch.cat(heads, dim=-1)))
    torch.testing.assert_close(mixer(x, grid=(1, 3)), expected, atol=1e-12, rtol=0)


def test_conv_mixer_equals_conv1d_over_time():
    mixer = perturbed(MIXERS["conv"](16, 2).double())
    x = torch.randn(2, 6, 4, 16, dtype=torch.float64)
    for n in range(4):
        down = mixer.down(x[:, :, n]).transpose(1, 2)
        out = mixer.up(F.gelu(F.conv1d(down, mixer.conv.weight, mixer.conv.bias, padding=1)).transpose(1, 2))
        torch.testing.assert_close(mixer(x, grid=(2, 2))[:, :, n], out, atol=1e-12, rtol=0)


def test_conv_full_mixer_equals_conv3d():
    mixer = perturbed(MIXERS["conv_full"](6, 2).double())
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    volume = x.view(1, 4, 2, 3, 6).permute(0, 4, 1, 2, 3)
    out = F.conv3d(volume, mixer.conv.weight, mixer.conv.bias, padding=1).permute(0, 2, 3, 4, 1).reshape(1, 4, 6, 6)
    torch.testing.assert_close(mixer(x, grid=(2, 3)), mixer.out(out), atol=1e-12, rtol=0)


def test_a_layer_with_one_frame_equals_the_clip_block_it_was_copied_from(backbone):
    taps = taps_of(backbone, frames=1)
    branch = STAN(backbone, StanOptions(depth=3)).eval()
    blocks = backbone.visual.transformer.resblocks[-3:]
    for k, layer in enumerate(branch.layers):
        cls, patch = layer(taps.cls[k][:, 0], taps.patches[k], grid=GRID)
        expected = blocks[k](torch.cat([taps.cls[k], taps.patches[k][:, 0]], dim=1))
        torch.testing.assert_close(cls, expected[:, 0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(patch[:, 0], expected[:, 1:], atol=1e-6, rtol=1e-6)


def test_intra_frame_attention_equals_a_loop_over_frames(backbone):
    layer: SpaceTimeBlock = perturbed(STAN(backbone, StanOptions(depth=1)).double()).layers[0]
    cls, patch = torch.randn(2, 32, dtype=torch.float64), torch.randn(2, 3, 16, 32, dtype=torch.float64)
    mixed = patch + layer.steps[0](patch, grid=GRID)
    residuals = [layer.block.attention_residual(torch.cat([cls[:, None], mixed[:, t]], dim=1)) for t in range(3)]
    out_cls = cls + sum(r[:, 0] for r in residuals) / 3
    out_patch = mixed + torch.stack([r[:, 1:] for r in residuals], dim=1)
    tokens = torch.cat([out_cls[:, None], out_patch.flatten(1, 2)], dim=1)
    tokens = tokens + layer.block.mlp_residual(tokens)
    got_cls, got_patch = layer(cls, patch, grid=GRID)
    torch.testing.assert_close(got_cls, tokens[:, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(got_patch.flatten(1, 2), tokens[:, 1:], atol=1e-12, rtol=0)


def test_only_the_time_embedding_makes_the_branch_sensitive_to_frame_order(backbone):
    branch = perturbed(STAN(backbone, StanOptions(depth=3)))
    taps = taps_of(backbone)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = taps.map(lambda t: t[:, order])
    assert not torch.allclose(branch.state(taps).cls, branch.state(shuffled).cls, atol=1e-4)
    branch.position.time.data.zero_()
    state, other = branch.state(taps), branch.state(shuffled)
    torch.testing.assert_close(other.cls, state.cls, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.patch, state.patch[:, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_masked_frames_change_nothing(backbone, mixer):
    branch = perturbed(STAN(backbone, StanOptions(depth=2, mixer=mixer)))
    video = torch.rand(2, 3, 3, 32, 32)
    padded = torch.cat([video, torch.rand(2, 2, 3, 32, 32)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    taps, masked = backbone(video, levels=(3, 4)), backbone(padded, levels=(3, 4), mask=mask)
    torch.testing.assert_close(branch.state(masked).cls, branch.state(taps).cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(branch(masked)[:, :3], branch(taps), atol=1e-5, rtol=1e-5)


def test_the_time_table_is_stretched_for_more_frames_than_its_size(backbone):
    branch = STAN(backbone, StanOptions(depth=1, time_size=4))
    table = branch.position.time
    assert torch.equal(stretched(table, 3), table[:3])
    long = stretched(table, 7)
    torch.testing.assert_close(long[[0, 2, 4, 6]], table)
    torch.testing.assert_close(long[1], table[:2].mean(0))
    assert branch(taps_of(backbone, frames=9)).shape == (2, 9, 16)


def test_short_bf16_attention_on_the_cpu_agrees_with_the_fused_kernel():
    q, k, v = (torch.randn(2, 3, 7, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.rand(2, 1, 1, 7) > 0.3
    mask[..., 0] = True
    fused = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask=mask).float(), fused, atol=0.03, rtol=0.03)


def test_self_attention_equals_torch_multihead_attention():
    ours, theirs = SelfAttention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, torch.randn(36)
    ours.qkv.bias.data = theirs.in_proj_bias.data
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, 5, 12)
    mask = torch.tensor([[True, True, False, True, True], [True] * 5])
    expected = theirs(x, x, x, key_padding_mask=~mask)[0]
    torch.testing.assert_close(ours(x, mask=mask), expected, atol=1e-6, rtol=1e-5)


def test_merge_project_equals_add_at_step_0(backbone):
    torch.manual_seed(0)
    added = build(backbone, StanOptions(depth=2, merge="add")).eval()
    torch.manual_seed(0)
    projected = build(backbone, StanOptions(depth=2, merge="project")).eval()
    projected.position.load_state_dict(added.position.state_dict())
    taps = taps_of(backbone, depth=2)
    torch.testing.assert_close(projected.state(taps).cls, added.state(taps).cls, atol=1e-6, rtol=1e-6)


def test_drop_path_grows_linearly_and_is_off_in_eval(backbone):
    branch = STAN(backbone, StanOptions(depth=3, drop_path=0.4))
    assert [layer.drop_path for layer in branch.layers] == pytest.approx([0.0, 0.2, 0.4])
    assert [layer.steps[0].drop_path for layer in branch.layers] == pytest.approx([0.0, 0.2, 0.4])
    taps = taps_of(backbone)
    perturbed(branch)
    assert torch.equal(branch(taps), branch(taps))
    branch.train()
    assert not torch.equal(branch(taps), branch(taps))


def test_mixer_options_are_checked_by_name_and_survive_the_config(backbone):
    asked = choose("stan", {"depth": 2, "mixer": "rsa", "mixer_options": {"kernel": [3, 1, 1], "bottleneck": 2}})
    branch = build(backbone, from_config(json.loads(json.dumps(asked.to_config()))))
    assert branch.layers[1].steps[0].relate.h2.shape[2:] == (3, 1, 1)
    assert branch.layers[1].steps[0].down.out_features == 16
    with pytest.raises(ValueError, match="mixer rsa has no option 'kernels'; it has kernel, queries, bottleneck"):
        choose("stan", {"mixer": "rsa", "mixer_options": {"kernels": (3, 1, 1)}})
    with pytest.raises(ValueError, match="mixer attention has no option 'kernel'; it has none"):
        choose("stan", {"mixer_options": {"kernel": (3, 1, 1)}})


@pytest.mark.parametrize("name", list(BRANCHES))
def test_options_survive_the_config(name):
    assert from_config(BRANCHES[name].to_config()) == BRANCHES[name]


def test_wrong_options_name_the_value_and_the_choices(backbone):
    with pytest.raises(
        ValueError,
        match=r"unknown mixer 'atention' .did you mean attention..; choose one of attention, conv, conv_full, rsa",
    ):
        choose("stan", {"mixer": "atention"})
    with pytest.raises(ValueError, match="branch stan has no option 'detph'; it has depth, mixer"):
        choose("stan", {"detph": 3})
    with pytest.raises(
        ValueError, match=r"unknown branch 'stann' .did you mean .*; choose one of mean, posterior, seqtransf, stan"
    ):
        choose("stann")
    with pytest.raises(BackboneError, match="has 4 levels to tap, depth 9 was requested; choose a depth from 1 to 4"):
        build(backbone, choose("stan", {"depth": 9}))
