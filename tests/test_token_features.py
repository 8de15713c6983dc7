"""Token features compared with each tower's text embedding, and token masks for open_clip's tokenizers."""

from __future__ import annotations

import json
from typing import Any

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa, MultimodalCfg
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, M2M100Config, MT5Config, PreTrainedTokenizerFast, RobertaConfig

from clipvid.errors import BackboneError
from clipvid.models.backbone.open_clip import load_clip
from clipvid.models.backbone.text import special_tokens, token_features, token_mask
from clipvid.models.factory import attach

VISION: dict[str, Any] = {"layers": 1, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 16}
TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
EMBED, END = 24, 98
OPEN_CLIP_TOWERS: dict[str, Any] = {  # open_clip's text towers, each with the position that it pools
    "CLIP": (CLIP, {}, "end"),
    "CLIP, end by id": (CLIP, {"pool_type": "eos", "eos_id": END}, "end"),
    "CLIP, linear projection": (CLIP, {"proj_bias": True}, "end"),
    "CLIP, no projection": (CLIP, {"proj_type": "none", "width": EMBED}, "end"),
    "separate text tower": (CustomTextCLIP, {}, "end"),
    "separate text tower, first token": (CustomTextCLIP, {"pool_type": "first", "no_causal_mask": True}, "first"),
    "SigLIP": (
        CustomTextCLIP,
        {"pool_type": "last", "no_causal_mask": True, "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
        "last",
    ),
    "CLIPA": (CLIP, {"pool_type": "last", "no_causal_mask": True}, "last"),
}
SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
NLLB: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
}
HUGGING_FACE_TOWERS: dict[str, Any] = {  # Hugging Face text towers: configuration, pooler, projection
    "BERT": (BertConfig(**SMALL), "cls_pooler", "mlp"),
    "BERT without its pooler": (BertConfig(**SMALL), "cls_last_hidden_state_pooler", "linear"),
    "NLLB": (M2M100Config(**NLLB, pad_token_id=1), "cls_pooler", "linear"),
    "RoBERTa": (RobertaConfig(**SMALL, pad_token_id=1), "mean_pooler", "linear"),
    "mT5": (MT5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4), "mean_pooler", "linear"),
    "RoBERTa, MLP": (RobertaConfig(**SMALL, pad_token_id=1), "mean_pooler", "mlp"),
}


def open_clip_model(kind: type, **changes) -> Any:
    torch.manual_seed(0)
    return kind(EMBED, CLIPVisionCfg(**VISION), CLIPTextCfg(**(TEXT | changes))).eval()


def coca() -> Any:
    torch.manual_seed(0)
    return CoCa(
        EMBED,
        MultimodalCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1),
        CLIPTextCfg(**TEXT, embed_cls=True, output_tokens=True),
        CLIPVisionCfg(**VISION, attentional_pool=True, output_tokens=True),
    ).eval()


def hugging_face_clip(name: str, folder) -> Any:
    """Return the model as open_clip builds it from a hub name; the folder takes the place of the hub."""
    config, pooler, projection = HUGGING_FACE_TOWERS[name]
    config.save_pretrained(folder)
    text = CLIPTextCfg(
        hf_model_name=str(folder), hf_model_pretrained=False, hf_pooler_type=pooler, hf_proj_type=projection
    )
    torch.manual_seed(0)
    return CustomTextCLIP(EMBED, CLIPVisionCfg(**VISION), text).eval()


def captions(*, pad: int = 0) -> torch.Tensor:
    """Return five rows of 12 ids: start, words, end, padding; the last row has no padding."""
    tokens = torch.randint(3, END, (5, 12))
    tokens[:, 0] = 2
    for row, length in enumerate((3, 4, 7, 11, 12)):
        tokens[row, length - 1] = END
        tokens[row, length:] = pad
    return tokens


@pytest.mark.parametrize("name", list(OPEN_CLIP_TOWERS))
@torch.no_grad()
def test_the_feature_at_the_pooled_position_is_the_text_embedding(name):
    kind, changes, position = OPEN_CLIP_TOWERS[name]
    clip, tokens = open_clip_model(kind, **changes), captions()
    features = token_features(clip, tokens)
    assert features.shape == (5, 12, EMBED)
    at = {"first": torch.zeros(5).long(), "last": torch.full((5,), 11), "end": (tokens == END).long().argmax(dim=1)}
    torch.testing.assert_close(features[range(5), at[position]], clip.encode_text(tokens), atol=1e-6, rtol=0)
    others = (features - clip.encode_text(tokens)[:, None]).abs().amax(dim=-1)  # (M, ctx)
    assert ((others > 1e-3).sum(dim=1) == 11).all()


@torch.no_grad()
def test_coca_token_features_use_the_projection_of_its_class_embedding_and_exclude_it():
    clip, tokens = coca(), captions()
    features = token_features(clip, tokens)
    pooled, before_norm = clip.text(tokens)
    torch.testing.assert_close(features, clip.text.ln_final(before_norm) @ clip.text.text_projection)
    assert features.shape == (5, 12, EMBED)
    torch.testing.assert_close(pooled, clip.encode_text(tokens, normalize=False))
    assert (features - pooled[:, None]).abs().amax(dim=-1).min() > 1e-3
    clip.text.transformer.resblocks = torch.nn.ModuleList([Identity()])  # every token keeps its input embedding
    clip.text.positional_embedding.zero_()
    clip.text.token_embedding.weight[5] = clip.text.cls_emb
    pooled = clip.encode_text(tokens, normalize=False)
    torch.testing.assert_close(token_features(clip, torch.full_like(tokens, 5))[:, 0], pooled, atol=1e-6, rtol=0)


class Identity(torch.nn.Module):
    """A transformer block that returns its input."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        return x

    def get_weight_dtype(self) -> torch.dtype:
        return torch.float32


@pytest.mark.parametrize("name", ["BERT", "BERT without its pooler", "NLLB"])
@torch.no_grad()
def test_first_token_feature_is_the_text_embedding_if_the_tower_pools_it(name, tmp_path):
    clip = hugging_face_clip(name, tmp_path)
    tokens = captions(pad=clip.text.config.pad_token_id)
    features = token_features(clip, tokens)
    torch.testing.assert_close(features[:, 0], clip.encode_text(tokens), atol=1e-6, rtol=0)
    assert (features[:, 1:] - features[:, :1]).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("name", ["RoBERTa", "mT5"])
@torch.no_grad()
def test_mean_of_token_features_is_the_text_embedding_if_the_projection_is_linear(name, tmp_path):
    clip = hugging_face_clip(name, tmp_path)
    pad = clip.text.config.pad_token_id
    tokens = captions(pad=pad)
    mask = token_mask(tokens, pad=pad, end=END)[..., None]
    features = token_features(clip, tokens)
    mean = (features * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(mean, clip.encode_text(tokens), atol=1e-6, rtol=0)


@torch.no_grad()
def test_with_an_mlp_projection_token_feature_and_embedding_agree_for_one_token(tmp_path):
    """An MLP projection, as in open_clip's RoBERTa, does not commute with averaging."""
    clip = hugging_face_clip("RoBERTa, MLP", tmp_path)
    tokens = torch.full((2, 12), 1)
    tokens[:, 0] = torch.tensor([7, 8])
    torch.testing.assert_close(token_features(clip, tokens)[:, 0], clip.encode_text(tokens), atol=1e-6, rtol=0)


@torch.no_grad()
def test_token_features_equal_those_of_the_released_code(shared_data):
    folder = shared_data / "fixtures" / "stan_release"
    config, io = (
        json.loads((folder / "case.json").read_text())["open_clip_config"],
        load_file(folder / "io.safetensors"),
    )
    parts = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    clip = CLIP(config["embed_dim"], *parts, quick_gelu=config["quick_gelu"]).eval()
    clip.load_state_dict(load_file(folder / "open_clip.safetensors"))
    got = token_features(clip, io["token_ids"])
    torch.testing.assert_close(got, io["text_token_embeddings"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_end_token_of_clipvid_mini_is_its_embedding_and_the_last_unmasked():
    mini: Any = load_clip("clipvid-mini")
    clip, tokenizer, _ = mini
    tokens = tokenizer(["a red circle", "", "a blue star moves left over a plain background " * 3])
    pad, end = special_tokens(tokenizer)
    assert (pad, end) == (tokenizer.tokenizer.pad_token_id, tokenizer.tokenizer.eos_token_id) == (0, 94)
    mask = token_mask(tokens, pad=pad, end=end)
    assert mask.sum(dim=1).tolist() == [5, 2, 16]
    features = token_features(clip, tokens)
    ends = features[range(3), mask.sum(dim=1) - 1]
    torch.testing.assert_close(ends, clip.encode_text(tokens), atol=1e-6, rtol=0)


def test_token_features_pass_gradients_to_the_tower():
    clip = open_clip_model(CLIP)
    token_features(clip, captions()).square().sum().backward()
    assert clip.token_embedding.weight.grad.any()


def test_an_unsupported_text_tower_is_refused_by_name():
    clip = torch.nn.Module()
    clip.text = torch.nn.Linear(2, 2)
    with pytest.raises(BackboneError, match="Linear lacks text_projection or forward_intermediates"):
        token_features(clip, captions())


def naive_mask(row: list[int], *, pad: int, end: int | None) -> list[bool]:
    if end in row:
        return [i <= row.index(end) for i in range(len(row))]
    return [token != pad for token in row]


@pytest.mark.parametrize(("pad", "end"), [(0, 4), (4, 4), (1, 1), (1, 2), (0, None), (3, 0)])
def test_masks_equal_a_loop(pad, end):
    tokens = torch.randint(0, 6, (200, 7))
    got = token_mask(tokens, pad=pad, end=end)
    assert got.tolist() == [naive_mask(row, pad=pad, end=end) for row in tokens.tolist()]


def test_a_word_with_the_padding_id_is_unmasked_before_the_end():
    tokenizer: Any = open_clip.get_tokenizer("ViT-B-32")
    assert tokenizer.encode("!(") == [0, 263]
    pad, end = special_tokens(tokenizer)
    assert (pad, end) == (0, 49407)
    tokens = tokenizer(["no !( dog", "no dog", "dog " * 100])
    assert (tokens[0] == 0).sum() == 77 - 5  # padding and one word
    assert token_mask(tokens, pad=pad, end=end).sum(dim=1).tolist() == [6, 4, 77]


def test_a_caption_without_end_token_masks_only_padding():
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a dog runs on the grass", "dog"])[:, :5]
    assert token_mask(tokens, pad=0, end=49407).tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def small_tokenizer(specials: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the words a, dog, runs after the specials (ids from 0); an end token closes captions."""
    ids = {word: i for i, word in enumerate([*specials, "<unk>", "a", "dog", "runs"])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    end = named.get("eos_token")
    if end:
        inner.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, ids[end])])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **named)


@pytest.mark.parametrize(
    ("specials", "named", "expected"),
    [
        (["<s>", "<pad>", "</s>"], {"pad_token": "<pad>", "eos_token": "</s>"}, (1, 2)),  # RoBERTa, NLLB
        (["<pad>", "</s>"], {"pad_token": "<pad>", "eos_token": "</s>"}, (0, 1)),  # mT5, SigLIP 2
        (["<s>", "</s>"], {"pad_token": "</s>", "eos_token": "</s>"}, (1, 1)),  # CLIP of transformers, SigLIP
        (["<s>", "<pad>"], {"pad_token": "<pad>"}, (1, None)),  # BERT
    ],
)
def test_padding_and_end_ids_of_transformers_tokenizers(tmp_path, specials, named, expected):
    small_tokenizer(specials, **named).save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path), context_length=6)
    pad, end = special_tokens(tokenizer)
    assert (pad, end) == expected
    tokens = tokenizer(["a dog runs", "dog", "dog a dog runs a dog a dog"])
    closing = 0 if end is None else 1
    assert tokens[1, 1 + closing :].eq(pad).all()
    assert token_mask(tokens, pad=pad, end=end).sum(dim=1).tolist() == [3 + closing, 1 + closing, 6]


def test_padding_and_end_ids_of_the_siglip_tokenizer():
    """Use a small vocabulary without the constructor of SigLipTokenizer, which downloads one."""
    tokenizer = SigLipTokenizer.__new__(SigLipTokenizer)
    tokenizer.context_length = 6
    tokenizer.tokenizer = small_tokenizer(["<pad>", "</s>"], pad_token="<pad>", eos_token="</s>")
    tokenizer.tokenizer.pad_token_id = tokenizer.tokenizer.eos_token_id = 1
    assert special_tokens(tokenizer) == (1, 1)
    tokens = tokenizer(["A dog!", "dog"])
    assert token_mask(tokens, pad=1, end=1).sum(dim=1).tolist() == [3, 2]


def test_a_tokenizer_without_padding_or_end_id_is_refused_by_name():
    with pytest.raises(ValueError, match=r"tokenizer function has neither eot_token_id nor pad_token_id.*pad= the id"):
        special_tokens(open_clip.tokenize)
    unpadded = small_tokenizer(["</s>"], eos_token="</s>")
    with pytest.raises(ValueError, match=f"tokenizer {type(unpadded).__name__} has neither"):
        special_tokens(unpadded)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["CoCa", "BERT"])
def test_lora_works_on_text_towers_of_other_families(kind, tmp_path):
    """CoCa's attention has a mask per caption and head; Hugging Face's towers have other linears."""
    pytest.importorskip("peft")
    clip = coca() if kind == "CoCa" else hugging_face_clip("BERT", tmp_path)
    model, tokens = attach(clip, "mean"), captions()
    before = model.encode_text(tokens)
    model.set_trainable(text_lora=2)
    torch.testing.assert_close(model.encode_text(tokens), before, atol=1e-6, rtol=0)
    for name, parameter in model.backbone.clip.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert not torch.allclose(model.encode_text(tokens), before, atol=1e-3)


@pytest.mark.parametrize("similarity", ["wti", "mug", "mug_simple"])
def test_similarity_does_not_depend_on_padding(similarity):
    """Compare similarities from texts with those of the matcher on the unpadded features of one caption."""

    class Tokens:
        eos_token_id = END

        def __init__(self, pad: int) -> None:
            self.pad_token_id = pad

        def __call__(self, texts: list[str]) -> torch.Tensor:
            rows = [[2, *(3 + ord(word[0]) % 90 for word in text.split()), END] for text in texts]
            return torch.tensor([row + [self.pad_token_id] * (12 - len(row)) for row in rows])

    texts, frames = ["a dog runs", "a cat"], torch.randn(3, 4, EMBED)
    for pad in (0, 1, END):
        torch.manual_seed(1)
        model = attach(open_clip_model(CLIP), "mean", tokenizer=Tokens(pad), similarity=similarity)
        with torch.no_grad():
            token_features = model.text_features(texts)
            similarity_matrix = model.match(token_features, frames)
            assert token_features.mask.sum(dim=1).tolist() == [5, 4]
            for row, length in enumerate((5, 4)):
                unpadded = token_features.features[row, None, None, :length]
                expected = model.matcher(unpadded, frames[None], text_mask=torch.ones(1, 1, length, dtype=torch.bool))
                torch.testing.assert_close(similarity_matrix[row], expected[0], atol=1e-6, rtol=0)
