"""clipvid-mini: an ordinary open_clip folder that loads offline without output, and understands MotionShapes."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipvid.data.motion_shapes import (
    BACKGROUNDS,
    COLOURS,
    LOOK,
    MOTIONS,
    SHAPES,
    SIZES,
    Scene,
    draw_scene,
    render_still,
)

ROOT = Path(__file__).parents[1]
MINI = ROOT / "assets" / "clipvid-mini"
LONGEST = "a video of a large purple triangle that turns counter-clockwise over a checkered background"


@pytest.fixture(scope="module")
def mini():
    """Model, preprocessing and tokenizer, loaded the way users load open_clip checkpoints."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{MINI}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{MINI}")


def caption_without_motion(scene: Scene) -> str:
    """Return the caption without its motion, which no single frame can show."""
    return scene.caption.replace(f" {scene.motion} ", " ")


@pytest.fixture(scope="module")
def stills(mini):
    """Scenes whose captions all differ, and their preprocessed middle frames."""
    _, preprocess, _ = mini
    scenes = [scene for i in range(0, 1200, 2) if (scene := draw_scene(123, "test", i)).motion != "appears"]
    scenes = list({caption_without_motion(scene): scene for scene in scenes}.values())[:200]
    images = torch.stack([preprocess(Image.fromarray(render_still(scene, at=0.5))) for scene in scenes])
    return scenes, images


@torch.no_grad()
def answers(mini, images, prompts: list[str]) -> list[int]:
    model, _, tokenizer = mini
    text = model.encode_text(tokenizer(prompts), normalize=True)
    return (model.encode_image(images, normalize=True) @ text.T).argmax(1).tolist()


@pytest.fixture(scope="module")
def training():
    """Module made from scripts/train_mini.py."""
    spec = importlib.util.spec_from_file_location("train_mini", ROOT / "scripts" / "train_mini.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def test_it_loads_without_network_and_without_output(monkeypatch, caplog, capfd):
    import socket

    import open_clip

    def refused(*_args):
        raise AssertionError("the network was accessed")

    monkeypatch.setattr(socket.socket, "connect", refused)
    with caplog.at_level(logging.WARNING):
        open_clip.create_model_and_transforms(f"local-dir:{MINI}")
        open_clip.get_tokenizer(f"local-dir:{MINI}")(["a red circle"])
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_it_is_small_and_its_log_has_its_size_and_look(mini):
    model, _, _ = mini
    log = json.loads((MINI / "train_log.json").read_text())
    parameters = sum(weight.numel() for weight in model.parameters())
    assert log["parameters"] == parameters < 4_000_000
    assert sum(file.stat().st_size for file in MINI.iterdir()) < 10_000_000
    assert log["look"] == LOOK, "MotionShapes is drawn differently from what this model was trained on: train it again"
    assert f"{parameters:,}" in (MINI / "README.md").read_text()


def test_weights_are_stored_in_half_precision_and_loaded_in_single(mini):
    from safetensors.torch import load_file

    stored = load_file(MINI / "open_clip_model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    loaded = mini[0].state_dict()
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name], stored[name].float()) for name in stored)


def test_every_word_of_motion_shapes_is_in_the_vocabulary(mini):
    tokenizer = mini[2]
    unknown = tokenizer.tokenizer.unk_token_id
    captions = [
        Scene(colour, shape, size, background, motion).caption
        for motion in MOTIONS
        for colour, shape, size, background in zip(COLOURS, SHAPES, [*SIZES] * 4, [*BACKGROUNDS] * 2, strict=True)
    ]
    prompts = [f"a video of a shape that {motion}" for motion in MOTIONS]
    tokens = tokenizer([*captions, *prompts, LONGEST, "A red circle, over THE striped background."])
    assert not (tokens == unknown).any()
    assert (tokenizer(["a heffalump"]) == unknown).sum() == 1


def test_tokens_decode_to_the_caption(mini):
    tokenizer = mini[2]
    tokens = tokenizer([LONGEST, "grows"])
    assert tokenizer.tokenizer.decode(tokens[0], skip_special_tokens=True) == LONGEST
    assert tokens.shape == (2, mini[0].context_length)
    start, end, pad = (getattr(tokenizer.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
    assert tokens[1].tolist()[:4] == [start, tokens[1, 1].item(), end, pad]
    assert pad == 0


def test_the_text_embedding_is_read_at_the_end_token(mini):
    model, _, tokenizer = mini
    tokens = tokenizer([LONGEST, "grows", "word " * 40])
    assert (tokens.argmax(1) == (tokens == tokenizer.tokenizer.eos_token_id).int().argmax(1)).all()
    assert tokens.max() == tokenizer.tokenizer.eos_token_id == model.vocab_size - 1


@pytest.mark.parametrize(
    ("attribute", "words", "prompt", "least"),
    [
        ("colour", COLOURS, "a {} shape", 0.9),
        ("shape", SHAPES, "a {}", 0.55),
        ("size", SIZES, "a {} shape", 0.85),
        ("background", BACKGROUNDS, "a shape over a {} background", 0.9),
    ],
)
def test_it_recognises_each_attribute_of_a_caption_in_stills(mini, stills, attribute, words, prompt, least):
    scenes, images = stills
    names = list(words)
    guesses = answers(mini, images, [prompt.format(word) for word in names])
    accuracy = np.mean(
        [names[guess] == getattr(scene, attribute) for guess, scene in zip(guesses, scenes, strict=True)]
    )
    assert accuracy > least


def test_it_finds_a_still_among_two_hundred_by_its_caption(mini, stills):
    scenes, images = stills
    guesses = answers(mini, images, [caption_without_motion(scene) for scene in scenes])
    assert np.mean([guess == i for i, guess in enumerate(guesses)]) > 0.5  # chance: 0.005


def test_motion_words_change_the_text_embedding_but_no_still_tells_them_apart(mini, stills):
    model, _, tokenizer = mini
    scenes, images = stills
    with torch.no_grad():
        forward, backward, image = (
            model.encode_text(tokenizer([scene.caption for scene in scenes]), normalize=True),
            model.encode_text(tokenizer([scene.reversed().caption for scene in scenes]), normalize=True),
            model.encode_image(images, normalize=True),
        )
    assert (forward * backward).sum(1).mean() < 0.97
    moving = [k for k, scene in enumerate(scenes) if scene.motion in ("moves left", "moves right", "moves up")]
    accuracy = ((image * forward).sum(1) > (image * backward).sum(1))[moving].float().mean()
    assert 0.2 < accuracy < 0.8


def test_training_captions_of_stills_name_no_motion_and_are_true_of_their_still(training):
    rng = np.random.default_rng(0)
    captions, true = training.still_captions(list(range(0, 512, 4)), rng)
    assert not any(motion in caption for caption in captions for motion in MOTIONS)
    assert (true.diagonal() == 1).all()
    partial = [k for k, caption in enumerate(captions) if "background" not in caption]
    assert true[partial].sum(1).max() > 1, "a partial caption must be true of several objects"


def test_captions_with_motion_are_false_of_the_reversed_clip(training):
    captions, full, true = training.motion_captions(48, np.random.default_rng(0))
    for k, caption in enumerate(captions):
        assert true[k, k] == 1
        assert true[k, k ^ 1] == (0 if any(motion in caption for motion in MOTIONS) else 1)
    assert all(any(motion in caption for motion in MOTIONS) for caption in full)


def test_the_soft_loss_equals_cross_entropy_when_every_caption_has_one_image(training):
    logits = torch.randn(6, 6)
    target = torch.arange(6)
    plain = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    assert torch.allclose(training.soft_nce(logits, torch.eye(6)), plain)
