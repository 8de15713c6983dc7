"""A tokenizer for the tiny CLIPs of the tests, whose vocabulary has 99 entries and whose texts have 12 tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from clipvid.models.backbone.backbone import Backbone


class Tokenizer:
    """Tokenizer with open_clip's conventions: the end token has the highest id, and zeros pad."""

    eot_token_id = 98

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = [[*(1 + len(word) % 90 for word in text.split()[:10]), 98] for text in texts]
        return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


def backbone() -> Backbone:
    """Return a seeded tower for tests of training: 3 blocks of width 32 and 5 tokens a frame, and a text block."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vision = CLIPVisionCfg(layers=3, width=32, head_width=16, patch_size=16, image_size=32)
        text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=2, layers=1)
        return Backbone(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval(), tokenizer=Tokenizer())
