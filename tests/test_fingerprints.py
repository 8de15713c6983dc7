"""Fingerprints of towers: constant while nothing changes, different as soon as anything does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.fingerprint import hash_of


@pytest.fixture
def backbone(tiny_clip) -> Backbone:
    return Backbone(tiny_clip)


@pytest.fixture
def hashings(monkeypatch) -> list[None]:
    """Return a list that grows by one entry whenever all weights are hashed."""
    calls: list[None] = []
    monkeypatch.setattr(
        "clipvid.models.backbone.backbone.hash_of", lambda weights: calls.append(None) or hash_of(weights)
    )
    return calls


def tower_fingerprints(backbone: Backbone) -> list[str]:
    """Return the fingerprints of the image tower and of the text tower."""
    return [backbone.tower_fingerprint, backbone.text_fingerprint]


def change_activation(block: Any) -> None:
    block.mlp.gelu = nn.GELU(approximate="tanh")


def write_in_place(block: Any) -> None:
    with torch.no_grad():
        block.mlp.c_fc.bias[-1] += 1


def step_of_a_fused_optimizer(block: Any) -> None:
    """Write to a weight in a way that torch does not count."""
    weight = block.mlp.c_fc.weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], fused=True).step()


def put_another_weight(block: Any) -> None:
    block.mlp.c_fc.weight = nn.Parameter(block.mlp.c_fc.weight.detach().clone().roll(1), requires_grad=False)


CHANGES = [change_activation, write_in_place, step_of_a_fused_optimizer, put_another_weight]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("tower", [0, 1], ids=["image", "text"])
def test_a_change_gives_that_tower_another_fingerprint(backbone, tower, change: Callable[[Any], None]):
    before = tower_fingerprints(backbone)
    change((backbone.visual, backbone.clip)[tower].transformer.resblocks[-1])
    after = tower_fingerprints(backbone)
    assert after[tower] != before[tower]
    assert after[1 - tower] == before[1 - tower]


def test_unchanged_weights_are_hashed_once(backbone, hashings):
    first = tower_fingerprints(backbone)
    assert tower_fingerprints(backbone) == first
    assert len(hashings) == 2


def test_restored_weights_have_their_first_fingerprint_again(backbone):
    before = backbone.tower_fingerprint
    weight = backbone.visual.transformer.resblocks[0].mlp.c_fc.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(2)
        assert backbone.tower_fingerprint != before
        weight.copy_(original)
    assert backbone.tower_fingerprint == before
