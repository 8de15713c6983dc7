"""Space-time attention: every kind against masked full attention, key counts of the papers, identities at step 0."""

import itertools

import pytest
import torch

from clipvid.nn.attention import Block
from clipvid.nn.attention_patterns import PAIRINGS, attend_in_groups, even_grid
from clipvid.nn.mixers import AttentionStep
from clipvid.nn.spacetime import SCHEMES, SpaceTimeBlock, keys_per_patch, scheme_block, scheme_blocks

T, H, W, D, HEADS = 3, 4, 5, 8, 2
POSITIONS = list(itertools.product(range(T), range(H), range(W)))


def noisy(module, scale=0.5):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module.double().eval()


def sees(kind, query, key):
    """Return True if a patch attends to another according to the papers' text."""
    (t, h, w), (u, i, j) = query, key
    if kind == "local":  # half the height and width around it, moved inwards at the borders, in all frames
        top, left = (min(max(x - (n // 2) // 2, 0), n - n // 2) for x, n in ((h, H), (w, W)))
        return top <= i < top + H // 2 and left <= j < left + W // 2
    return {
        "time": (h, w) == (i, j),
        "space": t == u,
        "joint": True,
        "width": (t, h) == (u, i),
        "height": (t, w) == (u, j),
        "grid": not (u % 2 or i % 2 or j % 2),
    }[kind]


def masked_full_attention(attention, tokens, allowed):
    """Return softmax attention of all tokens (L, D) over all, limited to `allowed` (A, L, L)."""
    q, k, v = (
        (tokens @ w.T + c).unflatten(1, (HEADS, -1)).transpose(0, 1)
        for w, c in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
    )
    scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
    mixed = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v
    return attention.out(mixed.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("cls_key", [False, True])
@pytest.mark.parametrize("kind", ["time", "width", "height", "local"])
def test_a_step_equals_masked_full_attention(kind, cls_key):
    step = noisy(AttentionStep(D, HEADS, kind=kind, cls_key=cls_key))
    cls, patch = torch.randn(2, D, dtype=torch.float64), torch.randn(2, T, H * W, D, dtype=torch.float64)
    allowed = torch.tensor([[sees(kind, q, k) for k in POSITIONS] for q in POSITIONS])
    allowed = torch.cat([torch.full((len(POSITIONS), 1), cls_key), allowed], dim=1)
    allowed = torch.cat([torch.ones(1, len(POSITIONS) + 1, dtype=torch.bool), allowed])
    got = step(patch, grid=(H, W), cls=cls)
    for b in range(2):
        tokens = step.norm(torch.cat([cls[b, None], patch[b].flatten(0, 1)]))
        expected = step.out(masked_full_attention(step.attention, tokens, allowed)[1:])
        torch.testing.assert_close(got[b].flatten(0, 1), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["space", "height", "joint", "grid"])
def test_a_blocks_attention_equals_masked_full_attention_with_the_class_token_averaged_over_groups(kind):
    block = noisy(Block(D, HEADS))
    cls, patch = torch.randn(2, D, dtype=torch.float64), torch.randn(2, T, H * W, D, dtype=torch.float64)
    got_cls, got = attend_in_groups(block.attention_residual, patch, kind=kind, grid=(H, W), cls=cls)
    allowed = torch.tensor([[True, *(sees(kind, q, k) for k in POSITIONS)] for q in POSITIONS])
    groups = {tuple(row.tolist()) for row in allowed}  # the sequences that the class token joins
    for b in range(2):
        tokens = block.norm1(torch.cat([cls[b, None], patch[b].flatten(0, 1)]))
        answers = []
        for group in groups:
            rows = torch.cat([torch.tensor([group]), allowed])
            output = masked_full_attention(block.attention, tokens, rows)
            answers.append(output[0])
        torch.testing.assert_close(got[b].flatten(0, 1), output[1:], atol=1e-12, rtol=0)
        torch.testing.assert_close(got_cls[b], torch.stack(answers).mean(0), atol=1e-12, rtol=0)


def test_split_heads_equal_full_attention_with_one_mask_per_head():
    block = noisy(Block(D, HEADS))
    patch = torch.randn(2, T, H * W, D, dtype=torch.float64)
    _, got = attend_in_groups(block.attention_residual, patch, kind="split", grid=(H, W))
    allowed = torch.stack(
        [torch.tensor([[sees(kind, q, k) for k in POSITIONS] for q in POSITIONS]) for kind in ("time", "space")]
    )
    for b in range(2):
        expected = masked_full_attention(block.attention, block.norm1(patch[b].flatten(0, 1)), allowed)
        torch.testing.assert_close(got[b].flatten(0, 1), expected, atol=1e-12, rtol=0)


def test_factorised_attention_is_masked_full_attention_twice_and_then_the_mlp():
    layer = noisy(scheme_block(SCHEMES["factorised"], Block(D, HEADS), D, heads=HEADS))
    patch = torch.randn(1, T, H * W, D, dtype=torch.float64)
    _, got = layer(None, patch, grid=(H, W))
    x = patch[0].flatten(0, 1)
    within, over = (
        torch.tensor([[sees(kind, q, k) for k in POSITIONS] for q in POSITIONS]) for kind in ("space", "time")
    )
    x = x + masked_full_attention(layer.block.attention, layer.block.norm1(x), within)
    x = x + masked_full_attention(layer.steps[0].attention, layer.steps[0].norm(x), over)
    x = x + layer.block.mlp(layer.block.norm2(x))
    torch.testing.assert_close(got[0].flatten(0, 1), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", list(PAIRINGS))
@pytest.mark.parametrize("side", [(1, 1), (3, 3), (6, 6), (7, 2)])
def test_pairings_work_on_every_grid(kind, side):
    block = noisy(Block(D, HEADS))
    cls = None if kind == "split" else torch.randn(1, D, dtype=torch.float64)
    patch = torch.randn(1, 2, side[0] * side[1], D, dtype=torch.float64)
    assert attend_in_groups(block.attention_residual, patch, kind=kind, grid=side, cls=cls)[1].isfinite().all()


def test_a_patch_is_compared_with_as_many_keys_as_the_papers_count():
    eight = {"frames": 8, "grid": (14, 14)}
    assert sum(keys_per_patch("space", **eight)) == 197
    assert sum(keys_per_patch("joint", **eight)) == 1569
    assert sum(keys_per_patch("divided", **eight)) == 205  # the release
    assert sum(keys_per_patch("divided", **eight, cls_key=True)) == 206  # the paper
    assert keys_per_patch("local_global", **eight) == [393, 197]
    assert keys_per_patch("axial", **eight) == [9, 15, 15]
    assert keys_per_patch("divided", **eight, cls=False) == [8, 196]


def test_the_key_counts_are_those_of_the_masks():
    for scheme in ("space", "joint", "local_global", "axial", "divided"):
        kinds = [*SCHEMES[scheme].steps, SCHEMES[scheme].kind]
        counts = keys_per_patch(scheme, frames=T, grid=(H, W), cls_key=True)
        for kind, count in zip(kinds, counts, strict=True):
            assert {1 + sum(sees(kind, q, k) for k in POSITIONS) for q in POSITIONS} == {count}


def test_with_one_frame_axial_looks_along_rows_and_columns_only():
    layer = noisy(scheme_block(SCHEMES["axial"], Block(D, HEADS), D, heads=HEADS))
    cls, patch = torch.randn(1, D, dtype=torch.float64), torch.randn(1, 1, H * W, D, dtype=torch.float64)
    changed = patch.clone()
    changed[0, 0, -1] = torch.randn(D)  # the last row, the last column
    before, after = (layer.steps[1](p, grid=(H, W), cls=cls) for p in (patch, changed))
    touched = (before != after).any(dim=-1)[0, 0].unflatten(0, (H, W))
    assert touched[-1].all()
    assert not touched[:-1].any()


@pytest.mark.parametrize("scheme", [name for name, s in SCHEMES.items() if s.steps])
def test_extra_steps_are_exact_identities_at_step_0_and_their_zero_weights_get_gradients(scheme):
    s = SCHEMES[scheme]
    layer = scheme_block(s, Block(D, HEADS), D, heads=HEADS)
    bare = SpaceTimeBlock(layer.block, kind=s.kind)
    cls = None if s.cls == "frame" else torch.randn(2, D)
    patch = torch.randn(2, T, H * W, D)
    (got_cls, got), (bare_cls, expected) = layer(cls, patch, grid=(H, W)), bare(cls, patch, grid=(H, W))
    assert torch.equal(got, expected)
    assert (got_cls is None and bare_cls is None) or torch.equal(got_cls, bare_cls)
    got.square().sum().backward()
    for step in layer.steps:
        zeroed = step.out if s.linear else step.attention.out
        assert zeroed.weight.grad.abs().max() > 0
        assert not zeroed.weight.any()
        assert not zeroed.bias.any()


def test_steps_start_from_the_blocks_attention_by_default():
    block = Block(D, HEADS)
    layer = scheme_block(SCHEMES["divided"], block, D, heads=HEADS)
    assert torch.equal(layer.steps[0].attention.qkv.weight, block.attention.qkv.weight)
    assert layer.steps[0].attention.qkv.weight is not block.attention.qkv.weight
    fresh = scheme_block(SCHEMES["divided"], block, D, heads=HEADS, copy_attention=False)
    assert not torch.equal(fresh.steps[0].attention.qkv.weight, block.attention.qkv.weight)
    third = scheme_block(SCHEMES["factorised"], block, D, heads=HEADS)
    assert torch.equal(third.steps[0].attention.qkv.weight, block.attention.qkv.weight)


def test_stochastic_depth_grows_linearly_and_vivits_drops_whole_clips_without_rescaling():
    layers = scheme_blocks(SCHEMES["divided"], D, 3, heads=HEADS, drop_path=0.4)
    assert [layer.drop_path for layer in layers] == pytest.approx([0, 0.2, 0.4])
    assert [layer.steps[0].drop_path for layer in layers] == pytest.approx([0, 0.2, 0.4])
    layer = SpaceTimeBlock(Block(D, HEADS), drop_path=0.5, drop="clip").train()
    layer.block.mlp[2].weight.data.zero_()
    layer.block.mlp[2].bias.data.zero_()
    patch = torch.randn(1, T, H * W, D).expand(64, -1, -1, -1)
    _, out = layer(None, patch, grid=(H, W))
    moved = (out - patch).flatten(1)
    survived = moved.abs().amax(dim=1) > 0
    assert 10 < int(survived.sum()) < 54
    _, undropped = layer.eval()(None, patch[:1], grid=(H, W))
    torch.testing.assert_close(moved[survived], (undropped - patch[:1]).flatten(1).expand(int(survived.sum()), -1))


@pytest.mark.parametrize("drop", ["clip", "released"])
def test_class_token_and_patches_of_a_clip_are_dropped_together(drop):
    """Class token and patches of a clip are one residual in the papers: both change, or neither does."""
    layer = SpaceTimeBlock(Block(D, HEADS), drop_path=0.5, drop_mlp=True, drop=drop).train()
    layer.block.attention.out.weight.data.zero_()  # only the MLP still has an effect
    layer.block.attention.out.bias.data.zero_()
    cls, patch = torch.randn(1, D).expand(64, -1), torch.randn(1, T, H * W, D).expand(64, -1, -1, -1)
    new_cls, new_patch = layer(cls, patch, grid=(H, W))
    moved = [(new - old).flatten(1).abs().amax(dim=1) > 0 for new, old in ((new_cls, cls), (new_patch, patch))]
    assert torch.equal(moved[0], moved[1])
    assert 10 < int(moved[0].sum()) < 54
    undropped = layer.eval()(cls[:1], patch[:1], grid=(H, W))
    scale = 1 if drop == "clip" else 2  # "released" rescales the remaining residuals by 1 / (1 - rate)
    torch.testing.assert_close((new_cls - cls)[moved[0]][:1], scale * (undropped[0] - cls[:1]))
    torch.testing.assert_close((new_patch - patch)[moved[0]][:1], scale * (undropped[1] - patch[:1]))


def test_vivits_stochastic_depth_drops_the_class_tokens_attention_too():
    layer = SpaceTimeBlock(Block(D, HEADS), drop_path=0.5, drop="clip").train()
    layer.block.mlp[2].weight.data.zero_()
    layer.block.mlp[2].bias.data.zero_()
    cls, patch = torch.randn(1, D).expand(64, -1), torch.randn(1, T, H * W, D).expand(64, -1, -1, -1)
    new_cls, new_patch = layer(cls, patch, grid=(H, W))
    moved = [(new - old).flatten(1).abs().amax(dim=1) > 0 for new, old in ((new_cls, cls), (new_patch, patch))]
    assert torch.equal(moved[0], moved[1])
    assert 10 < int(moved[0].sum()) < 54


def test_an_even_grid_without_keys_is_refused():
    x = torch.randn(2, HEADS, T * H * W, D // HEADS)
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[1, ::2] = False
    with pytest.raises(ValueError, match="mask must leave one of frames 0, 2, 4"):
        even_grid(x, x, x, shape=(T, H, W), mask=mask)


def test_an_odd_number_of_heads_cannot_be_split():
    with pytest.raises(ValueError, match="must be even, got 3"):
        SpaceTimeBlock(Block(9, 3), kind="split")


def test_the_mlp_gives_the_same_for_a_class_token_apart_or_with_the_patches():
    """A CPU computes the class token apart, a GPU with the patches."""
    block = noisy(SpaceTimeBlock(Block(D, HEADS)))
    cls, patch = torch.randn(2, D, dtype=torch.float64), torch.randn(2, T, H * W, D, dtype=torch.float64)
    for one, other in zip(
        *(block._mlp_residuals(cls, patch, separate_cls=apart) for apart in (True, False)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert block._mlp_residuals(None, patch, separate_cls=False)[0] is None
