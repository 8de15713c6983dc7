"""Run by test_compile.py in a process of its own: the shape checks of the tests cannot be traced."""

from __future__ import annotations

import sys

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from clipvid.model import attach, create_model
from clipvid.precision import autocast

KINDS = {"attention": ("stan", "attention"), "conv_full": ("stan", "conv_full"), "divided": ("divided", None)}


def model_of(branch, mixer=None):
    torch.manual_seed(0)
    return told(create_model("clipvid-mini", branch=branch, depth=2, **({"mixer": mixer} if mixer else {})))


def tiny_model():
    """On a tower of two blocks: what cannot be traced is in each of them, and tracing more takes longer."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1)
    return told(attach(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text), "stan", depth=1))


def told(model):
    """The model with a branch that has its say, and clips for it."""
    model.eval()
    with torch.no_grad():
        for p in model.branch.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model, torch.randint(0, 255, (2, 4, 3, *model.backbone.image_size), dtype=torch.uint8)


def learns_the_same(kind):
    """A branch compiles without a break in its graph; its gradients and the names of its weights stay."""
    model, video = model_of(*KINDS[kind])
    names, taps, grads = set(model.branch.state_dict()), model.taps(video), []
    for compiled in (False, True):
        if compiled:
            model.branch.compile(fullgraph=True, backend="aot_eager")
        model.zero_grad()
        model.encode_video(taps)[:, 0].sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.branch.named_parameters() if p.grad is not None})
    assert set(model.branch.state_dict()) == names
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


def whole_model():
    """A model compiles without a break, also under autocast, where quick copies would be looked up."""
    model, video = tiny_model()
    compiled = torch.compile(lambda clips: model.encode_video(clips), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(video), model.encode_video(video), rtol=1e-4, atol=1e-5)
        with autocast("bf16-mixed", model.device):
            found, plain = compiled(video), model.encode_video(video)
    assert torch.nn.functional.cosine_similarity(found.float(), plain.float()).min() > 0.999


if __name__ == "__main__":
    whole_model() if sys.argv[1] == "whole" else learns_the_same(sys.argv[1])
