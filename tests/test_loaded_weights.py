"""Weights of CLIP that change after loading: each is saved and changes the fingerprint, or saving refuses the model."""

from __future__ import annotations

import copy

import pytest
import torch

from clipvid.errors import CheckpointError
from clipvid.models.factory import create_model, load


@pytest.fixture
def model():
    return create_model("clipvid-mini", branch_kwargs={"depth": 1})


def _loaded_alike(model, folder) -> bool:
    """Return True if the model saved to `folder` and loaded again has the same towers and fingerprint."""
    again = load(model.save(folder))
    same_towers = again.backbone.tower_fingerprint == model.backbone.tower_fingerprint
    return same_towers and again.backbone.text_fingerprint == model.backbone.text_fingerprint


@pytest.mark.parametrize("fingerprint_first", [True, False])
def test_load_state_dict_of_the_inner_clip_is_noticed_like_that_of_the_model(model, tmp_path, fingerprint_first):
    original = model.fingerprint if fingerprint_first else copy.deepcopy(model).fingerprint
    changed = {name: value + 0.01 for name, value in model.backbone.clip.state_dict().items() if "ln_final" in name}
    model.backbone.clip.load_state_dict(changed, strict=False)
    assert model.backbone.trained == set(changed)
    assert model.fingerprint != original
    assert _loaded_alike(model, tmp_path / "m")


def test_weights_of_clip_written_in_place_are_saved_once_the_fingerprint_is_known(model, tmp_path):
    original = model.fingerprint
    with torch.no_grad():
        model.backbone.clip.visual.proj.mul_(1.5)
    assert model.fingerprint != original
    assert copy.deepcopy(model).fingerprint == model.fingerprint
    assert _loaded_alike(model, tmp_path / "m")


def test_a_base_changed_inside_before_its_fingerprint_is_refused_by_save(model, tmp_path):
    with torch.no_grad():
        model.backbone.clip.visual.proj.mul_(1.5)
    with pytest.raises(CheckpointError, match=r"must be clipvid-mini as loaded .* in visual\.proj; convert and load"):
        model.save(tmp_path / "m")
    halved = create_model("clipvid-mini", branch_kwargs={"depth": 1})
    halved.backbone.clip.half()
    with pytest.raises(CheckpointError, match="another precision"):
        halved.save(tmp_path / "m")


def test_a_model_in_half_precision_is_saved_with_the_base_that_it_was_loaded_from(model, tmp_path):
    base = model.backbone.fingerprint
    half = create_model("clipvid-mini", branch_kwargs={"depth": 1}).half()
    again = load(half.save(tmp_path / "m"))
    assert again.backbone.fingerprint == half.backbone.fingerprint == base
    assert not again.backbone.trained
    assert next(again.parameters()).dtype == torch.float32
    assert half.fingerprint != model.fingerprint, "its branch has rounded weights"


def test_moving_and_copying_a_model_changes_no_weight(model):
    for moved in (copy.deepcopy(model).to("cpu").double().float(), copy.deepcopy(model)):
        moved.set_trainable("last:1")
        moved.set_trainable("none")
        assert moved.fingerprint == model.fingerprint
        assert not moved.backbone.trained
    model.backbone.clip.to("cpu")
    assert not model.backbone.trained
