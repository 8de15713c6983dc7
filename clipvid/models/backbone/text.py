"""Token-level text features in the joint space, and masks of the tokens that belong to a caption.

Contract: an open_clip model and token ids (M, ctx) in, features (M, ctx, E) out. Each token passes the tower's final
norm and projection, so the feature at the position that the tower pools equals the text embedding. Reads
attributes only, so it imports neither open_clip nor transformers. Knows nothing about images, frames or similarities.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clipvid.errors import BackboneError


@dataclass(frozen=True, eq=False)
class TextTokens:
    """Token features of captions, (M, ctx, E), not normalised, and a mask that is True for tokens that count."""

    features: Float[Tensor, "m ctx e"]
    mask: Bool[Tensor, "m ctx"]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> TextTokens:
        return TextTokens(self.features[rows], self.mask[rows])

    def shortened(self) -> TextTokens:
        """Return these captions without the trailing columns in which no token counts."""
        length = int(self.mask.any(dim=0).nonzero().max()) + 1
        return TextTokens(self.features[:, :length], self.mask[:, :length])

    @staticmethod
    def joined(parts: Sequence[TextTokens]) -> TextTokens:
        """Concatenate captions; shorter ones are padded with tokens that do not count."""
        length = max(part.mask.shape[1] for part in parts)
        features = [F.pad(part.features, (0, 0, 0, length - part.mask.shape[1])) for part in parts]
        return TextTokens(
            torch.cat(features), torch.cat([F.pad(part.mask, (0, length - part.mask.shape[1])) for part in parts])
        )


def token_features(clip: Any, tokens: Int[Tensor, "m ctx"]) -> Float[Tensor, "m ctx e"]:
    """Return features of all tokens, padding included, projected and not normalised.

    CoCa pools a class token appended to the caption; its feature is not included. In Hugging Face towers with a mean
    pooler and a linear projection, the text embedding is the average of these features. Raises
    BackboneError for a text tower that is neither open_clip's own nor a Hugging Face one.
    """
    text = getattr(clip, "text", clip)  # open_clip's CLIP class holds the parts of its text tower itself
    if hasattr(text, "pooler") and hasattr(text, "proj"):
        return _hugging_face_features(text, tokens)
    if not hasattr(text, "text_projection") or not hasattr(clip, "forward_intermediates"):
        raise BackboneError(
            f"{type(text).__name__} lacks text_projection or forward_intermediates, so its tokens cannot be read; give "
            "an open_clip model (3.3 or newer), or use a similarity of pooled embeddings"
        )
    out = clip.forward_intermediates(text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True)
    x = out["text_intermediates"][-1]  # (M, ctx, width of the tower), after its final norm
    projection = text.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


def token_mask(tokens: Int[Tensor, "m ctx"], *, pad: int, end: int | None) -> Bool[Tensor, "m ctx"]:
    """Return True for the tokens of a caption: all up to and including its first end token.

    In rows without an end token, or if `end` is None, it is True for ids other than `pad`. The end token decides
    where it can, because `pad` may also be the id of a word ("!" in CLIP's BPE) or of the end token (Hugging Face CLIP,
    SigLIP).
    """
    words = tokens != pad
    if end is None:
        return words
    ends = tokens == end
    after = ends.cumsum(dim=-1) - ends.long() > 0  # True after the first end token
    return torch.where(ends.any(dim=-1, keepdim=True), ~after, words)


def cut(tokens: Int[Tensor, "m ctx"], longest: int, *, pad: int, end: int | None) -> Int[Tensor, "m ctx"]:
    """Cut captions to at most `longest` tokens and end each cut one with the end token, if there is one.

    Slicing the ids, as STAN's release does, loses the end token, and CLIP then pools an ordinary word.
    """
    long = token_mask(tokens, pad=pad, end=end).sum(dim=-1) > longest
    if not bool(long.any()):
        return tokens
    tokens = tokens.clone()
    tokens[long, longest:] = pad
    if end is not None:
        tokens[long, longest - 1] = end
    return tokens


def special_tokens(tokenizer: Any) -> tuple[int, int | None]:
    """Return (pad, end) ids of an open_clip tokenizer for `token_mask`; end is None if it has none.

    SigLIP pads with its end token and pools the last position. `token_mask` is True for the first end token only, so
    the pooled position counts only in captions that fill the context. Raises ValueError for a tokenizer without a pad
    id.
    """
    if hasattr(tokenizer, "eot_token_id"):
        return 0, int(tokenizer.eot_token_id)  # SimpleTokenizer pads with zeros and has no attribute for it
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # HFTokenizer and SigLipTokenizer wrap one of transformers
    pad, end = getattr(inner, "pad_token_id", None), getattr(inner, "eos_token_id", None)
    if pad is None:
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} has neither eot_token_id nor pad_token_id, so words and padding "
            "cannot be told apart; call token_mask with pad= the id that fills up a row and end= the id that ends a "
            "caption, or None"
        )
    return int(pad), None if end is None else int(end)


def _hugging_face_features(text: Any, tokens: Int[Tensor, "m ctx"]) -> Float[Tensor, "m ctx e"]:
    """Return projected features of all tokens.

    The tower's own `output_tokens` are not projected and, with a class pooler, lack the class token.
    """
    attended = (tokens != text.config.pad_token_id).long()
    x = text.transformer(input_ids=tokens, attention_mask=attended).last_hidden_state  # (M, ctx, width of the tower)
    dense = getattr(text.transformer, "pooler", None)
    if getattr(text.pooler, "use_pooler_output", False) and dense is not None:
        # BERT's pooler reads the first token of a sequence, so each token is passed as a sequence of one
        x = dense(x.flatten(0, 1)[:, None]).unflatten(0, tokens.shape)
    return text.proj(x)


def without_visual(clip: Any) -> Any:
    """Return the model without its image tower and caption decoder."""
    rest = copy.copy(clip)
    rest._modules = {name: part for name, part in clip._modules.items() if name not in ("visual", "text_decoder")}
    return rest


def text_weights(clip: Any) -> dict[str, Tensor]:
    """Return the weights that determine a text's embedding."""
    excluded = ("visual.", "text_decoder.", "logit_")
    return {name: value for name, value in clip.state_dict().items() if not name.startswith(excluded)}
