"""Ranks of LoRA on the text tower: absurd ones, and those that the saved adapters do not have, are refused."""

from __future__ import annotations

import json

import pytest
import tiny

from clipvid.errors import CheckpointError
from clipvid.models.factory import attach, load
from clipvid.runtime.storage.manifest import seal

pytest.importorskip("peft")


@pytest.fixture
def model():
    return attach(tiny.backbone(), branch_kwargs={"depth": 1})


@pytest.mark.parametrize("rank", [65, 2**31])
def test_a_rank_above_the_width_of_the_text_tower_is_refused_before_memory_is_taken(model, rank):
    with pytest.raises(ValueError, match=f"rank must be at most [0-9]+, the width of the text tower, got {rank}"):
        model.set_trainable(text_lora=rank)
    assert not any("lora_" in name for name, _ in model.backbone.named_parameters())
    assert model.backbone.lora_rank == 0


@pytest.mark.parametrize("rank", [3, 5, 2**31])
def test_a_saved_rank_that_the_adapters_do_not_have_is_refused(model, tmp_path, rank):
    model.set_trainable(text_lora=4)
    model.set_trainable()
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    content = json.loads(file.read_text())
    content["clip"]["text_lora"] = rank
    file.write_text(json.dumps(content))
    seal(tmp_path / "model")
    with pytest.raises(CheckpointError, match=f"text_lora is {rank}, but the saved adapters have ranks"):
        load(tmp_path / "model", base=tiny.backbone())
