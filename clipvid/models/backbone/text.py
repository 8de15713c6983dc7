"""Text, token by token: what a text tower says of every token in the joint space, and which tokens count.

Contract: an open_clip model and token ids (M, ctx) in, features (M, ctx, E) out; each goes through the same norm and
projection as the tower's own embedding, so at the position that the tower pools the feature is that embedding. Reads
attributes only, so it imports neither open_clip nor transformers. Knows nothing of images, frames or similarities.
"""

from __future__ import annotations

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
    """Captions token by token: features (M, ctx, E), not normalised, and True for the tokens that count."""

    features: Float[Tensor, "m ctx e"]
    mask: Bool[Tensor, "m ctx"]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> TextTokens:
        return TextTokens(self.features[rows], self.mask[rows])

    def shortened(self) -> TextTokens:
        """Without the columns in which no token counts."""
        length = int(self.mask.any(dim=0).nonzero().max()) + 1
        return TextTokens(self.features[:, :length], self.mask[:, :length])

    @staticmethod
    def joined(parts: Sequence[TextTokens]) -> TextTokens:
        """One behind the other; shorter ones are filled up with tokens that do not count."""
        length = max(part.mask.shape[1] for part in parts)
        features = [F.pad(part.features, (0, 0, 0, length - part.mask.shape[1])) for part in parts]
        return TextTokens(
            torch.cat(features), torch.cat([F.pad(part.mask, (0, length - part.mask.shape[1])) for part in parts])
        )


def token_features(clip: Any, tokens: Int[Tensor, "m ctx"]) -> Float[Tensor, "m ctx e"]:
    """Features of all tokens, padding included, projected and not normalised.

    CoCa pools a class embedding of its own behind the tokens; that one is not among these. Where a tower averages
    (mean poolers of Hugging Face towers), its embedding is the average of these, if its projection is linear. Raises
    BackboneError for a text tower that is neither open_clip's own nor a Hugging Face one.
    """
    text = getattr(clip, "text", clip)  # open_clip's CLIP class holds the parts of its text tower itself
    if hasattr(text, "pooler") and hasattr(text, "proj"):
        return _of_hugging_face(text, tokens)
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
    """True for the tokens of a caption: up to and including its first end token, whatever their ids.

    In a row without end token, and everywhere when `end` is None, True where the id is not `pad`. The end token comes
    first because padding may share its id with it (Hugging Face's CLIP, SigLIP) or with a word ("!" in CLIP's own BPE).
    """
    words = tokens != pad
    if end is None:
        return words
    ends = tokens == end
    after = ends.cumsum(dim=-1) - ends.long() > 0  # an end token stands before
    return torch.where(ends.any(dim=-1, keepdim=True), ~after, words)


def cut(tokens: Int[Tensor, "m ctx"], longest: int, *, pad: int, end: int | None) -> Int[Tensor, "m ctx"]:
    """Captions of more than `longest` tokens cut to so many, the last of them the end token where there is one.

    Slicing the ids instead, as STAN's release does, loses the end token, and CLIP then pools an ordinary word.
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
    """(pad, end) of one of open_clip's tokenizers, as `token_mask` takes them; end is None where there is none.

    SigLIP's pad and end are one id, so `token_mask` keeps the first only, and the last position, which SigLIP pools,
    counts in captions alone that fill the context.
    """
    if hasattr(tokenizer, "eot_token_id"):
        return 0, int(tokenizer.eot_token_id)  # SimpleTokenizer fills up with zeros and has no name for it
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # HFTokenizer and SigLipTokenizer wrap one of transformers
    pad, end = getattr(inner, "pad_token_id", None), getattr(inner, "eos_token_id", None)
    if pad is None:
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} has neither eot_token_id nor pad_token_id, so words and padding "
            "cannot be told apart; call token_mask with pad= the id that fills up a row and end= the id that ends a "
            "caption, or None"
        )
    return int(pad), None if end is None else int(end)


def _of_hugging_face(text: Any, tokens: Int[Tensor, "m ctx"]) -> Float[Tensor, "m ctx e"]:
    """`output_tokens` of this tower gives tokens before the projection and drops the first: so it is run here."""
    attended = (tokens != text.config.pad_token_id).long()
    x = text.transformer(input_ids=tokens, attention_mask=attended).last_hidden_state  # (M, ctx, width of the tower)
    dense = getattr(text.transformer, "pooler", None)
    if getattr(text.pooler, "use_pooler_output", False) and dense is not None:
        # BERT's pooler, a layer and tanh, takes a sequence's first token: let every token be a sequence
        x = dense(x.flatten(0, 1)[:, None]).unflatten(0, tokens.shape)
    return text.proj(x)
