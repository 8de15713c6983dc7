"""The baselines of the benchmarks compute the published results, so timings compare the same work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from plain_stan import PlainSTAN, Size


@pytest.fixture
def case(shared_data):
    folder = shared_data / "fixtures" / "stan_release"
    reference = json.loads((folder / "case.json").read_text())
    config, tower = reference["open_clip_config"], reference["open_clip_config"]["vision_cfg"]
    state = torch.load(folder / "official_stan.pth", weights_only=True)["state_dict"]
    size = Size(
        width=tower["width"],
        heads=tower["width"] // tower["head_width"],
        layers=tower["layers"],
        patch=tower["patch_size"],
        image=tower["image_size"],
        embed=config["embed_dim"],
        depth=reference["stan_depth"],
        times=next(len(value) for name, value in state.items() if name.endswith("STAN_time_embed.weight")),
    )
    plain = PlainSTAN(size).eval()
    vision = {name: value for name, value in state.items() if name.startswith("backbone.")}
    vision["visual_projection.weight"] = vision.pop("backbone.visual_projection.weight")
    plain.load_state_dict(vision)
    return plain, reference, load_file(folder / "io.safetensors")


def test_the_plain_stan_gives_the_embeddings_of_the_released_code(case):
    plain, _, io = case
    with torch.no_grad():
        torch.testing.assert_close(plain(io["frames"]), io["video_embedding"], atol=1e-6, rtol=0)


def test_the_plain_stan_freezes_the_tower_and_gives_the_gradients_of_the_released_code(case):
    plain, reference, io = case
    plain.freeze_tower()
    loss = plain(io["frames"]).square().sum(dim=-1).mean()
    assert loss.item() == pytest.approx(reference["loss_value"], rel=1e-5)
    loss.backward()
    gradients = {name.removeprefix("backbone."): p.grad for name, p in plain.named_parameters() if p.requires_grad}
    assert set(gradients) == set(reference["stan_grad_norms"])
    for name, norm in reference["stan_grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name
