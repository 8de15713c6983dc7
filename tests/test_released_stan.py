"""The released STAN checkpoint gives the embeddings and gradients that the authors' code computed with it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file

from clipvid.errors import CheckpointError
from clipvid.models.convert_stan import load_stan_checkpoint

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from released import released_names


@pytest.fixture(scope="module")
def case(shared_data):
    folder = shared_data / "fixtures" / "stan_release"
    reference = json.loads((folder / "case.json").read_text())
    return folder, reference, load_file(folder / "io.safetensors")


def blank_clip(reference, **changes):
    config = reference["open_clip_config"]
    vision, text = CLIPVisionCfg(**{**config["vision_cfg"], **changes}), CLIPTextCfg(**config["text_cfg"])
    return CLIP(config["embed_dim"], vision, text, quick_gelu=config["quick_gelu"]).eval()


def test_embeddings_equal_those_of_the_released_code(case):
    folder, reference, io = case
    model = load_stan_checkpoint(blank_clip(reference), folder / "official_stan.pth")
    assert not any(part.training for part in model.modules())
    assert len(model.branch.levels) == reference["stan_depth"]
    with torch.no_grad():
        taps = model.taps(io["frames"])
        torch.testing.assert_close(model.encode_frames(taps), io["frame_embeddings"], atol=1e-5, rtol=0)
        torch.testing.assert_close(model.encode_video(taps, normalize=False), io["video_embedding"], atol=1e-5, rtol=0)
        text = model.encode_text(io["token_ids"], normalize=False)
    torch.testing.assert_close(text, io["text_embedding"], atol=1e-5, rtol=0)


def test_gradients_of_every_branch_parameter_equal_those_of_the_released_code(case):
    folder, reference, io = case
    model = load_stan_checkpoint(blank_clip(reference), folder / "official_stan.pth")
    loss = model.encode_video(io["frames"], normalize=False).square().sum(dim=-1).mean()
    assert loss.item() == pytest.approx(reference["loss_value"], rel=1e-5)
    loss.backward()
    names, ours = released_names(model), {n: p for n, p in model.branch.named_parameters() if p.requires_grad}
    assert set(names) == set(reference["stan_grad_norms"])
    assert {name for name, _ in names.values()} == set(ours)
    for released, norm in reference["stan_grad_norms"].items():
        name, part = names[released]
        grad = ours[name].grad if part is None else ours[name].grad.chunk(3)[part]
        # The key bias changes no softmax, so its gradient is zero up to rounding.
        assert grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), released


def test_the_clip_weights_of_the_checkpoint_are_loaded(case):
    folder, reference, _ = case
    model = load_stan_checkpoint(blank_clip(reference), folder / "official_stan.pth")
    expected = load_file(folder / "open_clip.safetensors")
    weights = model.backbone.clip.state_dict()
    for name in set(expected) - {"logit_scale"}:
        assert torch.equal(weights[name], expected[name]), name


def test_a_clip_of_another_shape_is_refused_and_the_parameter_named(case):
    folder, reference, _ = case
    with pytest.raises(CheckpointError, match=r"visual.*\(32, 3, 8, 8\) for \(32, 3, 16, 16\)"):
        load_stan_checkpoint(blank_clip(reference, patch_size=16), folder / "official_stan.pth")


def test_a_file_that_is_not_a_stan_checkpoint_is_refused(case, tmp_path):
    _, reference, _ = case
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no branch"):
        load_stan_checkpoint(blank_clip(reference), tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_stan_checkpoint(blank_clip(reference), tmp_path / "text.pth")
