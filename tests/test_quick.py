"""Quick copies give autocast's own numbers, the gradients of the module itself, and notice when a weight changes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower
from torch import nn

from clipvid.backbone import Backbone
from clipvid.nn.attention import QuickGELU
from clipvid.quick import FrozenLinear, FrozenPatches, Quick, QuickAttention, frozen_copy, orders, trainable_copy

BF16 = torch.bfloat16


@pytest.fixture
def openai_like(tiny_clip):
    """With the activation of OpenAI's weights."""
    from open_clip.transformer import QuickGELU as Theirs

    for part in list(tiny_clip.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.GELU):
                setattr(part, name, Theirs())
    return tiny_clip


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def levels_of(visual, images):
    found = visual.forward_intermediates(images, indices=[0, 1, 3], output_fmt="NLC", output_extra_tokens=True)
    return [*found["image_intermediates"], *found["image_intermediates_prefix"], found["image_features"]]


def autocast():
    return torch.autocast("cpu", dtype=BF16)


@pytest.mark.parametrize("clip", ["tiny_clip", "openai_like"])
def test_a_frozen_copy_gives_what_autocast_gives_within_its_rounding(clip, images, request):
    """Apart from each other by no more than autocast is from float32; layers, class tokens and embeddings."""
    visual = request.getfixturevalue(clip).visual.requires_grad_(False)
    quick = frozen_copy(visual, BF16)
    kinds = {type(part) for part in quick.modules()}
    assert {FrozenLinear, FrozenPatches, QuickAttention} <= kinds
    assert nn.MultiheadAttention not in kinds
    assert nn.Linear not in kinds
    assert nn.SiLU not in kinds or not orders(visual.conv1.weight, BF16), "oneDNN takes the activation along"
    with torch.no_grad():
        exact = levels_of(visual, images)
        with autocast():
            theirs, ours = levels_of(visual, images), levels_of(quick, images)
    for level, (true, their, our) in enumerate(zip(exact, theirs, ours, strict=True)):
        assert our.dtype == their.dtype, level
        error = (their.float() - true).abs().max()
        assert (our.float() - true).abs().max() <= 2 * error, level
        assert error > 0, level


def test_a_frozen_copy_shares_what_it_does_not_cast(tiny_clip):
    visual = tiny_clip.visual
    quick = frozen_copy(visual, BF16)
    assert quick.ln_pre.weight is visual.ln_pre.weight
    assert quick.positional_embedding is visual.positional_embedding
    assert isinstance(visual.transformer.resblocks[0].attn, nn.MultiheadAttention)  # the module itself is as it was


def test_a_copy_in_float32_differs_by_the_order_of_sums_alone(openai_like, images):
    visual = openai_like.visual.requires_grad_(False)
    with torch.no_grad():
        for ours, theirs in zip(
            levels_of(frozen_copy(visual, torch.float32), images), levels_of(visual, images), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_trainable_copy_has_the_modules_own_parameters_and_gradients(openai_like, images):
    visual = openai_like.visual.double()
    quick = trainable_copy(visual)
    assert {id(p) for p in quick.parameters()} == {id(p) for p in visual.parameters()}
    grads = []
    for module in (visual, quick):
        module(images.double()).square().sum().backward()
        grads.append({n: p.grad for n, p in visual.named_parameters() if p.grad is not None})
        visual.zero_grad(set_to_none=True)
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("write", ["add_", "data", "load", "other"])
def test_a_changed_weight_is_noticed(write):
    """Also one that was written through `.data`, which torch does not count."""
    tower = nn.Sequential(nn.Linear(8, 8))
    linear: Any = tower[0]
    quick = Quick()
    before = quick.frozen(tower, BF16)
    assert quick.frozen(tower, BF16) is before
    with torch.no_grad():
        if write == "add_":
            linear.weight.add_(1)
        elif write == "data":
            linear.weight.data.mul_(2)
        elif write == "load":
            linear.load_state_dict({k: v + 1 for k, v in linear.state_dict().items()})
        else:
            linear.weight = nn.Parameter(linear.weight + 1)
    after = quick.frozen(tower, BF16)
    assert after is not before
    x = torch.randn(3, 8)
    with autocast():
        torch.testing.assert_close(after(x), tower(x))


@pytest.mark.parametrize("grad", [False, True])
def test_a_changed_activation_is_noticed(grad):
    tower = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    quick, x = Quick(), torch.randn(3, 8)
    with autocast():
        assert quick.of(tower, grad=grad) is quick.of(tower, grad=grad)
        tower[1] = nn.Tanh()
        torch.testing.assert_close(quick.of(tower, grad=grad)(x), tower(x))


def test_the_copies_stay_out_of_states_and_are_not_copied(tiny_clip):
    backbone = Backbone(tiny_clip)
    names = set(backbone.state_dict())
    with torch.no_grad(), autocast():
        backbone(torch.zeros(1, 2, 3, 32, 32), levels=(4,))
        backbone.encode_text(torch.zeros(1, 12, dtype=torch.long))
    assert set(backbone.state_dict()) == names
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        other.clip.visual.conv1.weight.add_(1)
        with autocast():
            taps, changed = (b(torch.ones(1, 2, 3, 32, 32), levels=(4,)).frames for b in (backbone, other))
    assert not torch.equal(taps, changed)


def test_without_autocast_the_tower_is_open_clips_own(tiny_clip, images):
    """So that float32 is CLIP's to the bit."""
    backbone = Backbone(tiny_clip)
    with torch.no_grad():
        assert torch.equal(backbone(images[None], levels=(4,)).frames[0], tiny_clip.encode_image(images))


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "EVA02-B-16", "coca_ViT-B-32", "convnext_tiny", "MobileCLIP2-S0"])
def test_every_make_of_tower_has_its_quick_copy(name):
    """The numbers are autocast's within bf16's rounding."""
    config = open_clip.get_model_config(name)
    visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"]).eval().requires_grad_(False)
    side = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    with torch.no_grad(), autocast():
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        theirs, ours = visual(image), frozen_copy(visual, BF16)(image)
    theirs, ours = (x[0] if isinstance(x, tuple) else x for x in (theirs, ours))
    assert torch.nn.functional.cosine_similarity(theirs.float(), ours.float()).min() > 0.999


@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 8), (1, 1, 1, 8), (0, 8)])
def test_frozen_linears_take_any_batch(shape):
    linear = nn.Linear(8, 6)
    x = torch.randn(shape)
    with torch.no_grad():
        ours = FrozenLinear(linear.weight, linear.bias, BF16)(x)
        exact = linear(x)
    assert ours.dtype == BF16
    torch.testing.assert_close(ours.float(), exact, rtol=2e-2, atol=2e-2)


def test_quick_gelu_is_its_formula_and_so_is_its_slope():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(QuickGELU(), x)


def test_buffers_that_moved_are_shared_anew(tiny_clip):
    """`to` keeps parameters and replaces buffers: the copy's attention mask would stay on the old device."""
    quick = Quick()
    first = quick.trainable(tiny_clip)
    tiny_clip.double().float()
    again = quick.trainable(tiny_clip)
    assert again is not first
    assert again.attn_mask is tiny_clip.attn_mask


def test_a_model_that_ran_under_autocast_is_pickled_without_its_copies(tiny_clip):
    quick = Quick()
    quick.frozen(tiny_clip.visual, BF16)
    assert vars(pickle.loads(pickle.dumps(quick))) == vars(Quick())


def test_a_compiled_module_is_left_to_its_compiler():
    tower = nn.Sequential(nn.Linear(4, 4))
    with autocast():
        assert Quick().of(tower, grad=False) is not tower
        tower.compile(backend="eager")
        assert Quick().of(tower, grad=False) is tower


def test_attention_that_looks_at_something_else_is_left_as_it_is():
    """CoCa's pooler asks with queries of its own."""
    pooler = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)})
    assert type(frozen_copy(pooler, BF16)["attn"]) is nn.MultiheadAttention  # type: ignore[index]
