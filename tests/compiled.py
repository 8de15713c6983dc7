"""Checks of torch.compile, run by test_compile.py in a separate process without the tests' shape checks."""

from __future__ import annotations

import sys
import tempfile

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.models.factory import attach, create_model
from clipvid.runtime.precision import autocast
from clipvid.training.loop import train

KINDS = {"attention": ("stan", "attention"), "conv_full": ("stan", "conv_full"), "divided": ("divided", None)}


def model_of(branch, mixer=None, *, device="cpu"):
    torch.manual_seed(0)
    options = {"depth": 2} | ({"mixer": mixer} if mixer else {})
    return perturbed(create_model("clipvid-mini", branch=branch, branch_kwargs=options, device=device))


def tiny_model():
    """Return a model on a tower of two blocks; more blocks would only take longer to trace."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1)
    return perturbed(attach(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text), "stan", branch_kwargs={"depth": 1}))


def perturbed(model):
    """Return the model with noise added to its branch, so that the branch affects the output, and clips for it."""
    model.eval()
    with torch.no_grad():
        for p in model.branch.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model, torch.randint(0, 255, (2, 4, 3, *model.backbone.image_size), dtype=torch.uint8)


def check_branch(kind, *, device="cpu", backend="aot_eager", rtol=1e-4):
    """Check that a branch compiles without a graph break and keeps its gradients and the names of its weights."""
    model, video = model_of(*KINDS[kind], device=device)
    names, taps, grads = set(model.branch.state_dict()), model.taps(video), []
    for compiled in (False, True):
        if compiled:
            model.branch.compile(fullgraph=True, backend=backend)
        model.zero_grad()
        model.encode_video(taps)[:, 0].sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.branch.named_parameters() if p.grad is not None})
    assert set(model.branch.state_dict()) == names
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=rtol, atol=rtol / 100)


def check_model():
    """Check that a model compiles without a graph break, also under autocast, where fused copies would be looked up."""
    model, video = tiny_model()
    compiled = torch.compile(lambda clips: model.encode_video(clips), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(video), model.encode_video(video), rtol=1e-4, atol=1e-5)
        with autocast("bf16-mixed", model.device):
            traced, plain = compiled(video), model.encode_video(video)
    assert torch.nn.functional.cosine_similarity(traced.float(), plain.float()).min() > 0.999


def check_training(device):
    """Check that `TrainConfig.compile` changes the losses of a run by no more than rounding."""
    with tempfile.TemporaryDirectory() as folder:
        clips, losses = write_dataset(folder, "train", 8), []
        for compiled in (False, True):
            model, _ = model_of("stan", device=device)
            data_config = DataConfig(frames=4, batch_size=4, precision="32-true")
            config = TrainConfig(
                epochs=3, batch_size=4, lr=1e-4, compile=compiled, cache_taps=True, data_config=data_config
            )
            for part in model.branch.modules():  # a compiled graph samples other random numbers
                if hasattr(part, "drop_path"):
                    part.drop_path = 0.0
            calls = []
            model.branch.compile = lambda calls=calls, branch=model.branch: (
                calls.append(1) or type(branch).compile(branch)
            )
            result = train(model, clips, None, config, progress=False, accelerator=device)
            assert bool(calls) is compiled
            assert model.branch._compiled_call_impl is None
            losses.append([epoch["loss"] for epoch in result.history])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=1e-3)


if __name__ == "__main__":
    assert sys.argv[1:], "name the cases to check"
    for case in sys.argv[1:]:
        if case == "whole":
            check_model()
        elif case == "gpu":
            check_branch("attention", device="cuda", backend="inductor", rtol=1e-3)
            check_training("cuda")
        elif case == "training":
            check_training("cpu")
        else:
            check_branch(case)
        torch.compiler.reset()
