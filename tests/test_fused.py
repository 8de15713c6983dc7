"""Fused copies give autocast's own numbers, the gradients of the module itself, and notice when a weight changes."""

from __future__ import annotations

import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower
from torch import nn

from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.fused import (
    FrozenLinear,
    FrozenPatches,
    FusedAttention,
    FusedCopies,
    frozen_copy,
    orders,
    trainable_copy,
)
from clipvid.models.factory import attach
from clipvid.nn.attention import QuickGELU
from clipvid.runtime import precision as precisions

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
    fused = frozen_copy(visual, BF16)
    kinds = {type(part) for part in fused.modules()}
    assert {FrozenLinear, FrozenPatches, FusedAttention} <= kinds
    assert nn.MultiheadAttention not in kinds
    assert nn.Linear not in kinds
    assert nn.SiLU not in kinds or not orders(visual.conv1.weight, BF16), "oneDNN takes the activation along"
    with torch.no_grad():
        exact = levels_of(visual, images)
        with autocast():
            theirs, ours = levels_of(visual, images), levels_of(fused, images)
    for level, (true, their, our) in enumerate(zip(exact, theirs, ours, strict=True)):
        assert our.dtype == their.dtype, level
        error = (their.float() - true).abs().max()
        assert (our.float() - true).abs().max() <= 2 * error, level
        assert error > 0, level


def test_a_frozen_copy_shares_what_it_does_not_cast(tiny_clip):
    visual = tiny_clip.visual
    fused = frozen_copy(visual, BF16)
    assert fused.ln_pre.weight is visual.ln_pre.weight
    assert fused.positional_embedding is visual.positional_embedding
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
    fused = trainable_copy(visual)
    assert {id(p) for p in fused.parameters()} == {id(p) for p in visual.parameters()}
    grads = []
    for module in (visual, fused):
        module(images.double()).square().sum().backward()
        grads.append({n: p.grad for n, p in visual.named_parameters() if p.grad is not None})
        visual.zero_grad(set_to_none=True)
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name], rtol=1e-9, atol=1e-12)


def add_to_one_entry(linear):
    linear.weight[3, 5] += 1


def load_other_values(linear):
    linear.load_state_dict({k: v + 1 for k, v in linear.state_dict().items()})


def load_other_tensors(linear):
    linear.load_state_dict({k: v + 1 for k, v in linear.state_dict().items()}, assign=True)


def put_another_parameter(linear):
    linear.weight = nn.Parameter(linear.weight + 1)


def put_other_memory(linear):
    for _ in range(3):  # memory that was freed is given out again first
        linear.weight.data = linear.weight.data + 1


def step(linear, optimizer, **options):
    with torch.enable_grad():
        linear(torch.ones(1, 8)).sum().backward()
    optimizer(linear.parameters(), lr=0.1, **options).step()


WRITES = {
    "one entry": add_to_one_entry,
    "load_state_dict": load_other_values,
    "load_state_dict, assign": load_other_tensors,
    "another parameter": put_another_parameter,
    "other memory": put_other_memory,
    "foreach": lambda linear: torch._foreach_mul_([linear.weight], 2.0),
    "numbers": lambda linear: torch.nn.utils.vector_to_parameters(torch.ones(72), linear.parameters()),
    "SGD": partial(step, optimizer=torch.optim.SGD),
    "SGD, fused": partial(step, optimizer=torch.optim.SGD, fused=True),
    "AdamW, fused": partial(step, optimizer=torch.optim.AdamW, fused=True),
    "AdamW, foreach": partial(step, optimizer=torch.optim.AdamW, foreach=True),
    "told": lambda linear: (linear.weight.data.mul_(2), torch.autograd.graph.increment_version(linear.weight)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_a_changed_weight_is_noticed(write):
    """Fused optimizers do not raise torch's count of writes; their steps are noticed all the same."""
    tower = nn.Sequential(nn.Linear(8, 8))
    copies = FusedCopies()
    before = copies.frozen(tower, BF16)
    assert copies.frozen(tower, BF16) is before
    with torch.no_grad():
        write(tower[0])
        after = copies.frozen(tower, BF16)
        assert after is not before
        x = torch.randn(3, 8)
        with autocast():
            torch.testing.assert_close(after(x), tower(x))


def test_steps_of_other_weights_and_steps_without_a_gradient_leave_copies_as_they_are():
    tower, other = nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8)
    copies = FusedCopies()
    before = copies.frozen(tower, BF16)
    other(torch.ones(1, 8)).sum().backward()
    torch.optim.AdamW([*tower.parameters(), *other.parameters()], fused=True).step()
    assert copies.frozen(tower, BF16) is before


def test_a_write_past_torch_needs_forget(tiny_clip):
    model = attach(tiny_clip, depth=2)
    video = torch.ones(1, 2, 3, 32, 32)

    def frames() -> torch.Tensor:
        with torch.no_grad(), autocast():
            return model.taps(video).frames

    before = frames()
    tiny_clip.visual.conv1.weight.data.mul_(3)
    assert torch.equal(frames(), before), "the limit that the documentation names"
    model.forget_copies()
    assert not torch.equal(frames(), before)


@pytest.mark.parametrize("change", ["set_trainable", "load_state_dict", "to"])
def test_what_changes_a_model_drops_its_copies(tiny_clip, change):
    model = attach(tiny_clip, depth=2)
    made = [model.backbone._fused_visual._inference, model.backbone._fused_text._inference]
    made += [] if change == "set_trainable" else [model._fused_branch._inference]
    with torch.no_grad(), autocast():
        model.encode_video(torch.ones(1, 2, 3, 32, 32))
        model.encode_text(torch.zeros(1, 12, dtype=torch.long))
    assert all(cache._values for cache in made)
    if change == "set_trainable":
        model.set_trainable("last:1")
    elif change == "load_state_dict":
        model.load_state_dict(model.state_dict())
    else:
        model.to(torch.float32)
    assert not any(cache._values for cache in made)


def test_weights_made_in_inference_mode_are_not_remembered():
    with torch.inference_mode():
        tower = nn.Sequential(nn.Linear(8, 8))
    with autocast(), torch.no_grad():
        assert FusedCopies().of(tower, grad=False) is tower


def in_threads(*jobs):
    """Run the jobs at once; raise the first error of any."""
    start = Barrier(len(jobs))
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(lambda job=job: (start.wait(), job())[1]) for job in jobs]
        return [future.result() for future in futures]


def test_threads_that_ask_at_once_share_one_copy(monkeypatch):
    made: list[None] = []

    def slowly(module, dtype):
        made.append(None)
        time.sleep(0.05)
        return frozen_copy(module, dtype)

    monkeypatch.setattr("clipvid.models.backbone.fused.frozen_copy", slowly)
    tower, copies = nn.Sequential(nn.Linear(8, 8)), FusedCopies()
    given = in_threads(*[partial(copies.frozen, tower, BF16)] * 4)
    assert len(made) == 1
    assert all(copy is given[0] for copy in given)


def test_a_copy_in_use_is_not_written_to_when_a_weight_changes():
    tower, copies, x = nn.Sequential(nn.Linear(8, 8)), FusedCopies(), torch.randn(3, 8)
    with torch.no_grad(), autocast():
        in_use = copies.of(tower, grad=False)
        before = in_use(x)
        tower[0].weight.mul_(2)
        assert copies.of(tower, grad=False) is not in_use
        assert torch.equal(in_use(x), before)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_threads_get_what_one_thread_gets(tiny_clip, precision):
    """Level 0 is what a hook on the tower sees, also of passes that run at the same time."""
    backbone = Backbone(tiny_clip)
    videos = [torch.full((1, 2, 3, 32, 32), float(k)) for k in range(4)]

    def stem(video):
        with torch.no_grad(), precisions.autocast(precision, backbone.device):
            return [backbone(video, levels=(0, 4)).patches[0] for _ in range(20)]

    alone = [stem(video)[0] for video in videos]
    for expected, given in zip(alone, in_threads(*(partial(stem, video) for video in videos)), strict=True):
        assert all(torch.equal(patches, expected) for patches in given)


@pytest.mark.parametrize("grad", [False, True])
def test_a_changed_activation_is_noticed(grad):
    tower = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    copies, x = FusedCopies(), torch.randn(3, 8)
    with autocast():
        assert copies.of(tower, grad=grad) is copies.of(tower, grad=grad)
        tower[1] = nn.Tanh()
        torch.testing.assert_close(copies.of(tower, grad=grad)(x), tower(x))


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


@pytest.mark.native_bf16
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "EVA02-B-16", "coca_ViT-B-32", "convnext_tiny", "MobileCLIP2-S0"])
def test_every_make_of_tower_has_its_inference_copy(name):
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
    copies = FusedCopies()
    first = copies.trainable(tiny_clip)
    tiny_clip.double().float()
    again = copies.trainable(tiny_clip)
    assert again is not first
    assert again.attn_mask is tiny_clip.attn_mask


def test_a_model_that_ran_under_autocast_is_pickled_without_its_copies(tiny_clip):
    copies = FusedCopies()
    copies.frozen(tiny_clip.visual, BF16)
    with torch.no_grad(), autocast():
        copies.trainable(tiny_clip.visual)
    again = pickle.loads(pickle.dumps(copies))
    assert again._training is None
    assert not again._inference._values


def test_a_compiled_module_is_left_to_its_compiler():
    tower = nn.Sequential(nn.Linear(4, 4))
    with autocast():
        assert FusedCopies().of(tower, grad=False) is not tower
        tower.compile(backend="eager")
        assert FusedCopies().of(tower, grad=False) is tower


def test_attention_that_looks_at_something_else_is_left_as_it_is():
    """CoCa's pooler asks with queries of its own."""
    pooler = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)})
    assert type(frozen_copy(pooler, BF16)["attn"]) is nn.MultiheadAttention  # type: ignore[index]
