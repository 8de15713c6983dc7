"""Fingerprints of towers: kept as long as nothing changes, and another one as soon as anything does."""

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
    """Every time that all weights are hashed."""
    done: list[None] = []
    monkeypatch.setattr(
        "clipvid.models.backbone.backbone.hash_of", lambda weights: done.append(None) or hash_of(weights)
    )
    return done


def told(backbone: Backbone) -> list[str]:
    """Of the image tower and of the text tower."""
    return [backbone.tower_fingerprint, backbone.text_fingerprint]


def change_activation(block: Any) -> None:
    block.mlp.gelu = nn.GELU(approximate="tanh")


def write_in_place(block: Any) -> None:
    with torch.no_grad():
        block.mlp.c_fc.bias[-1] += 1


def step_of_a_fused_optimizer(block: Any) -> None:
    """torch does not count these writes."""
    weight = block.mlp.c_fc.weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], fused=True).step()


def put_another_weight(block: Any) -> None:
    block.mlp.c_fc.weight = nn.Parameter(block.mlp.c_fc.weight.detach().clone().roll(1), requires_grad=False)


CHANGES = [change_activation, write_in_place, step_of_a_fused_optimizer, put_another_weight]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("tower", [0, 1], ids=["image", "text"])
def test_a_change_after_the_first_look_gives_that_tower_another_one(backbone, tower, change: Callable[[Any], None]):
    before = told(backbone)
    change((backbone.visual, backbone.clip)[tower].transformer.resblocks[-1])
    after = told(backbone)
    assert after[tower] != before[tower]
    assert after[1 - tower] == before[1 - tower]


def test_unchanged_weights_are_hashed_once(backbone, hashings):
    first = told(backbone)
    assert told(backbone) == first
    assert len(hashings) == 2


def test_weights_that_are_written_back_have_the_first_one_again(backbone):
    before = backbone.tower_fingerprint
    weight = backbone.visual.transformer.resblocks[0].mlp.c_fc.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(2)
        assert backbone.tower_fingerprint != before
        weight.copy_(kept)
    assert backbone.tower_fingerprint == before
