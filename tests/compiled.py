"""Run by test_compile.py in a process of its own: the shape checks of the tests cannot be traced."""

from __future__ import annotations

import sys

import torch

from clipvid.model import create_model
from clipvid.precision import autocast

KINDS = {"attention": ("stan", "attention"), "conv_full": ("stan", "conv_full"), "divided": ("divided", None)}


def model_of(branch, mixer=None):
    torch.manual_seed(0)
    model = create_model("clipvid-mini", branch=branch, depth=2, **({"mixer": mixer} if mixer else {})).eval()
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
    model, video = model_of("stan")
    compiled = torch.compile(lambda clips: model.encode_video(clips), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(video), model.encode_video(video), rtol=1e-4, atol=1e-5)
        with autocast("bf16-mixed", model.device):
            found, plain = compiled(video), model.encode_video(video)
    assert torch.nn.functional.cosine_similarity(found.float(), plain.float()).min() > 0.999


if __name__ == "__main__":
    whole_model() if sys.argv[1] == "whole" else learns_the_same(sys.argv[1])
