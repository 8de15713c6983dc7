"""Fused copies: autocast's numbers, the original module's gradients, and a new copy after every change of a weight."""

from __future__ import annotations

import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import open_clip
import pytest
import timm
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
    """A tiny CLIP with QuickGELU, the activation of OpenAI's weights."""
    from open_clip.transformer import QuickGELU as OpenClipQuickGELU

    for part in list(tiny_clip.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.GELU):
                setattr(part, name, OpenClipQuickGELU())
    return tiny_clip


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tower_outputs(visual, images):
    outputs = visual.forward_intermediates(images, indices=[0, 1, 3], output_fmt="NLC", output_extra_tokens=True)
    return [*outputs["image_intermediates"], *outputs["image_intermediates_prefix"], outputs["image_features"]]


def autocast():
    return torch.autocast("cpu", dtype=BF16)


@pytest.mark.parametrize("clip", ["tiny_clip", "openai_like"])
def test_a_frozen_copy_matches_autocast_within_its_rounding(clip, images, request):
    """Layers, class tokens and embeddings lie within twice autocast's error against float32."""
    visual = request.getfixturevalue(clip).visual.requires_grad_(False)
    fused = frozen_copy(visual, BF16)
    kinds = {type(part) for part in fused.modules()}
    assert {FrozenLinear, FrozenPatches, FusedAttention} <= kinds
    assert nn.MultiheadAttention not in kinds
    assert nn.Linear not in kinds
    assert nn.SiLU not in kinds or not orders(visual.conv1.weight, BF16), "oneDNN fuses the activation into the product"
    with torch.no_grad():
        exact = tower_outputs(visual, images)
        with autocast():
            theirs, ours = tower_outputs(visual, images), tower_outputs(fused, images)
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
    assert isinstance(visual.transformer.resblocks[0].attn, nn.MultiheadAttention)  # the original module is unchanged


def test_a_float32_copy_differs_only_by_summation_order(openai_like, images):
    visual = openai_like.visual.requires_grad_(False)
    with torch.no_grad():
        for ours, theirs in zip(
            tower_outputs(frozen_copy(visual, torch.float32), images), tower_outputs(visual, images), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_trainable_copy_shares_its_modules_parameters_and_gradients(openai_like, images):
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


def replace_parameter(linear):
    linear.weight = nn.Parameter(linear.weight + 1)


def replace_storage(linear):
    for _ in range(3):  # the allocator reuses freed memory first
        linear.weight.data = linear.weight.data + 1


def step(linear, optimizer, **options):
    with torch.enable_grad():
        linear(torch.ones(1, 8)).sum().backward()
    optimizer(linear.parameters(), lr=0.1, **options).step()


WRITES = {
    "one entry": add_to_one_entry,
    "load_state_dict": load_other_values,
    "load_state_dict, assign": load_other_tensors,
    "new parameter": replace_parameter,
    "new storage": replace_storage,
    "foreach": lambda linear: torch._foreach_mul_([linear.weight], 2.0),
    "vector_to_parameters": lambda linear: torch.nn.utils.vector_to_parameters(torch.ones(72), linear.parameters()),
    "SGD": partial(step, optimizer=torch.optim.SGD),
    "SGD, fused": partial(step, optimizer=torch.optim.SGD, fused=True),
    "AdamW, fused": partial(step, optimizer=torch.optim.AdamW, fused=True),
    "AdamW, foreach": partial(step, optimizer=torch.optim.AdamW, foreach=True),
    "increment_version": lambda linear: (
        linear.weight.data.mul_(2),
        torch.autograd.graph.increment_version(linear.weight),
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_a_changed_weight_is_noticed(write):
    """Fused optimizers do not raise torch's version counter; their steps must be noticed all the same."""
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


def test_optimizer_steps_without_a_gradient_for_the_tower_keep_its_copy():
    tower, other = nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8)
    copies = FusedCopies()
    before = copies.frozen(tower, BF16)
    other(torch.ones(1, 8)).sum().backward()
    torch.optim.AdamW([*tower.parameters(), *other.parameters()], fused=True).step()
    assert copies.frozen(tower, BF16) is before


def test_a_write_that_torch_does_not_count_needs_forget_copies(tiny_clip):
    model = attach(tiny_clip, branch_kwargs={"depth": 2})
    video = torch.ones(1, 2, 3, 32, 32)

    def frames() -> torch.Tensor:
        with torch.no_grad(), autocast():
            return model.taps(video).frames

    before = frames()
    tiny_clip.visual.conv1.weight.data.mul_(3)
    assert torch.equal(frames(), before), "the documented limit"
    model.forget_copies()
    assert not torch.equal(frames(), before)


@pytest.mark.parametrize("change", ["set_trainable", "load_state_dict", "to"])
def test_calls_that_change_a_model_drop_its_copies(tiny_clip, change):
    model = attach(tiny_clip, branch_kwargs={"depth": 2})
    caches = [model.backbone._fused_visual._inference, model.backbone._fused_text._inference]
    caches += [] if change == "set_trainable" else [model._fused_branch._inference]
    with torch.no_grad(), autocast():
        model.encode_video(torch.ones(1, 2, 3, 32, 32))
        model.encode_text(torch.zeros(1, 12, dtype=torch.long))
    assert all(cache._values for cache in caches)
    if change == "set_trainable":
        model.set_trainable("last:1")
    elif change == "load_state_dict":
        model.load_state_dict(model.state_dict())
    else:
        model.to(torch.float32)
    assert not any(cache._values for cache in caches)


def test_weights_created_in_inference_mode_get_no_copy():
    with torch.inference_mode():
        tower = nn.Sequential(nn.Linear(8, 8))
    with autocast(), torch.no_grad():
        assert FusedCopies().of(tower, grad=False) is tower


def in_threads(*jobs):
    """Run the jobs concurrently and return their results; raise the first error."""
    start = Barrier(len(jobs))
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(lambda job=job: (start.wait(), job())[1]) for job in jobs]
        return [future.result() for future in futures]


def test_concurrent_requests_share_one_copy(monkeypatch):
    calls: list[None] = []

    def slow_copy(module, dtype):
        calls.append(None)
        time.sleep(0.05)
        return frozen_copy(module, dtype)

    monkeypatch.setattr("clipvid.models.backbone.fused.frozen_copy", slow_copy)
    tower, copies = nn.Sequential(nn.Linear(8, 8)), FusedCopies()
    results = in_threads(*[partial(copies.frozen, tower, BF16)] * 4)
    assert len(calls) == 1
    assert all(copy is results[0] for copy in results)


def test_a_copy_in_use_is_not_written_to_when_a_weight_changes():
    tower, copies, x = nn.Sequential(nn.Linear(8, 8)), FusedCopies(), torch.randn(3, 8)
    with torch.no_grad(), autocast():
        in_use = copies.of(tower, grad=False)
        before = in_use(x)
        tower[0].weight.mul_(2)
        assert copies.of(tower, grad=False) is not in_use
        assert torch.equal(in_use(x), before)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_concurrent_passes_give_the_outputs_of_serial_ones(tiny_clip, precision):
    """Level 0 comes from a hook on the tower, and concurrent passes must not read each other's."""
    backbone = Backbone(tiny_clip)
    videos = [torch.full((1, 2, 3, 32, 32), float(k)) for k in range(4)]

    def stem(video):
        with torch.no_grad(), precisions.autocast(precision, backbone.device):
            return [backbone(video, levels=(0, 4)).patches[0] for _ in range(10)]

    serial = [stem(video)[0] for video in videos]
    for expected, outputs in zip(serial, in_threads(*(partial(stem, video) for video in videos)), strict=True):
        assert all(torch.equal(patches, expected) for patches in outputs)


@pytest.mark.parametrize("grad", [False, True])
def test_a_changed_activation_is_noticed(grad):
    tower = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    copies, x = FusedCopies(), torch.randn(3, 8)
    with autocast():
        assert copies.of(tower, grad=grad) is copies.of(tower, grad=grad)
        tower[1] = nn.Tanh()
        torch.testing.assert_close(copies.of(tower, grad=grad)(x), tower(x))


def test_copies_stay_out_of_state_dicts_and_deep_copies(tiny_clip):
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


def test_without_autocast_embeddings_are_open_clips_to_the_bit(tiny_clip, images):
    """Float32 uses the original modules, never copies."""
    backbone = Backbone(tiny_clip)
    with torch.no_grad():
        assert torch.equal(backbone(images[None], levels=(4,)).frames[0], tiny_clip.encode_image(images))


@pytest.mark.native_bf16
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "EVA02-B-16", "coca_ViT-B-32", "convnext_tiny", "MobileCLIP2-S0"])
def test_every_kind_of_tower_has_an_inference_copy(name, monkeypatch):
    """Embeddings agree with autocast's up to the rounding of bf16. ViTs are cut to two blocks of the same form."""
    config = open_clip.get_model_config(name)
    if "layers" in config["vision_cfg"]:
        config["vision_cfg"]["layers"] = 2
    elif name in ("ViT-B-16-SigLIP2", "EVA02-B-16"):
        monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=2))
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


def test_quick_gelu_and_its_gradient_follow_the_formula():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(QuickGELU(), x)


def test_replaced_buffers_give_a_new_copy(tiny_clip):
    """Module.to replaces buffers, and an old copy would keep the attention mask of the old device."""
    copies = FusedCopies()
    first = copies.trainable(tiny_clip)
    tiny_clip.attn_mask = tiny_clip.attn_mask.clone()
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


def test_a_compiled_module_gets_no_copy():
    tower = nn.Sequential(nn.Linear(4, 4))
    with autocast():
        assert FusedCopies().of(tower, grad=False) is not tower
        tower.compile(backend="eager")
        assert FusedCopies().of(tower, grad=False) is tower


def test_cross_attention_is_not_replaced():
    """CoCa's pooler attends with learned queries, which self-attention cannot replace."""
    pooler = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)})
    assert type(frozen_copy(pooler, BF16)["attn"]) is nn.MultiheadAttention  # type: ignore[index]
