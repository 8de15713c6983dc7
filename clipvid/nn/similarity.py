"""Token-wise similarity: each word of a caption is matched to the frames, and each frame to the words.

Contract: token features (..., L, E), frame embeddings (..., T, E) and their masks (True for valid entries) in, one
similarity (...) out. Leading axes broadcast: text[:, None] with video[None] gives all pairs (M, B); equal leading axes
give one similarity per pair (P,). Features are L2-normalised here, and cosines are float32 or wider, even under
autocast. Knows nothing of tokenizers, towers, temperatures or losses.
Papers: Wang et al. 2022, Disentangled Representation Learning for Text-Video Retrieval, arXiv 2203.07111 (WTI);
Liu et al. 2023, Mug-STAN, arXiv 2311.15075 (Mug). Constants and forms are those of their released code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

FORMS = ("frame_token", "frame_token_simple", "frame_token_release")


class WTI(nn.Module):
    """Weighted token-wise interaction: the mean of  sum_l w_l max_t cos(l, t)  and  sum_t u_t max_l cos(l, t).

    The weights w and u are softmaxes over the valid tokens and frames. Their logits come from a network of `layers`
    linear layers that reads each feature before normalisation: 2 is DRL's default, 1 is Mug-STAN's version. The
    released code sets masked cosines to 0, so a masked entry is the maximum when all others are negative; here a masked
    entry is never the maximum.
    """

    def __init__(self, embed_dim: int, *, layers: int = 2) -> None:
        super().__init__()
        if layers not in (1, 2, 3):
            raise ValueError(f"layers must be 1, 2 or 3, as in the released code, got {layers}; DRL uses 2")
        self.text_weight: nn.Sequential = _scorer(embed_dim, layers=layers)
        self.video_weight: nn.Sequential = _scorer(embed_dim, layers=layers)

    def forward(
        self,
        text: Float[Tensor, "*#a l e"],
        video: Float[Tensor, "*#a t e"],
        *,
        text_mask: Bool[Tensor, "*#a l"],
        video_mask: Bool[Tensor, "*#a t"] | None = None,
    ) -> Float[Tensor, "*a"]:
        text, text_mask = _zero_masked(text, text_mask, name="text")
        video, video_mask = _zero_masked(video, video_mask, name="video")
        cosines = _cosines(text, video)  # (..., L, T)
        words = cosines.masked_fill(~video_mask[..., None, :], -torch.inf).amax(dim=-1)  # (..., L)
        frames = cosines.masked_fill(~text_mask[..., :, None], -torch.inf).amax(dim=-2)  # (..., T)
        word_weights = _softmax(_scores(self.text_weight, text).to(cosines.dtype), text_mask)
        frame_weights = _softmax(_scores(self.video_weight, video).to(cosines.dtype), video_mask)
        return ((word_weights * words).sum(dim=-1) + (frame_weights * frames).sum(dim=-1)) / 2


class Mug(nn.Module):
    """Mutual guidance: tokens are weighted by their agreement with the frames, and frames by theirs with the tokens.

    Each token attends to the mean of the frames weighted by softmax(sharpness · cosine). Its cosine with that mean,
    a_l, is the logit of a softmax over tokens that gives its weight w_l. Frames have b_t and u_t likewise.
    "frame_token" compares the caption sum_l w_l l with the clip sum_t u_t t; "frame_token_simple" is the mean of
    sum_l w_l a_l and sum_t u_t b_t. There are no trained parameters, and no tensor is larger than the cosines.

    "frame_token_release" is "frame_token" with an error of the released code, to reproduce its results: the cosines of
    padding tokens are zeroed but their features are not, so padding tokens attend to the plain mean of the frames and
    take part in w. Only in this form do the features of masked tokens matter. "frame_token_simple" has no such error.
    """

    def __init__(self, *, form: str = "frame_token", sharpness: float = 100.0) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
        if sharpness <= 0:
            raise ValueError(f"sharpness must be above 0, got {sharpness}; the paper uses 100")
        self.form = form
        self.sharpness = sharpness

    def forward(
        self,
        text: Float[Tensor, "*#a l e"],
        video: Float[Tensor, "*#a t e"],
        *,
        text_mask: Bool[Tensor, "*#a l"],
        video_mask: Bool[Tensor, "*#a t"] | None = None,
    ) -> Float[Tensor, "*a"]:
        unpadded_text, text_mask = _zero_masked(text, text_mask, name="text")
        video, video_mask = _zero_masked(video, video_mask, name="video")
        release = self.form == "frame_token_release"
        cosines = _cosines(text if release else unpadded_text, video)  # (..., L, T)
        tokens, frames = text_mask[..., :, None], video_mask[..., None, :]
        sharp = self.sharpness * cosines.masked_fill(~tokens, 0)
        # Similarity to a weighted mean of frames is the weighted mean of the cosines; features are not read again.
        word_agreement = (_softmax(sharp, frames) * cosines).sum(dim=-1)  # (..., L)
        frame_agreement = (_softmax(sharp, tokens, dim=-2) * cosines).sum(dim=-2)  # (..., T)
        weighted_tokens = torch.ones_like(text_mask) if release else text_mask
        word_weights = _softmax(self.sharpness * word_agreement, weighted_tokens)
        frame_weights = _softmax(self.sharpness * frame_agreement, video_mask)
        if self.form == "frame_token_simple":
            return ((word_weights * word_agreement).sum(dim=-1) + (frame_weights * frame_agreement).sum(dim=-1)) / 2
        return (word_weights * (cosines * frame_weights[..., None, :]).sum(dim=-1)).sum(dim=-1)

    def extra_repr(self) -> str:
        return f"form={self.form!r}, sharpness={self.sharpness:g}"


SIMILARITIES: dict[str, Callable[[int], nn.Module]] = {
    "wti": WTI,
    "mug": lambda embed_dim: Mug(form="frame_token"),
    "mug_simple": lambda embed_dim: Mug(form="frame_token_simple"),
}
"""Constructors by name; each takes the width E of the joint space."""


def _scorer(width: int, *, layers: int) -> nn.Sequential:
    """Return a network with one output per feature, initialised N(0, 0.02) as in DRL: weights start nearly equal."""
    linears = [nn.Linear(width, width) for _ in range(layers - 1)]
    linears.append(nn.Linear(width, 1, bias=False))  # a softmax ignores a constant bias
    for linear in linears:
        nn.init.normal_(linear.weight, std=0.02)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    hidden = [module for linear in linears[:-1] for module in (linear, nn.ReLU())]
    return nn.Sequential(*hidden, linears[-1])


def _scores(network: nn.Sequential, x: Float[Tensor, "*#a l e"]) -> Float[Tensor, "*a l"]:
    """Return the network's score for each feature, computed in the precision of the network's parameters."""
    with torch.autocast(x.device.type, enabled=False):
        return network(x.to(next(network.parameters()).dtype)).squeeze(-1)


def _zero_masked(
    x: Float[Tensor, "*#a l e"], mask: Bool[Tensor, "*#a l"] | None, *, name: str
) -> tuple[Float[Tensor, "*a l e"], Bool[Tensor, "*#a l"]]:
    """Return features zeroed where the mask is False, and the mask; raise ValueError if an item is fully masked."""
    if mask is None:
        return x, torch.ones_like(x[..., 0], dtype=torch.bool)
    empty = ~mask.any(dim=-1)
    if bool(empty.any()):
        index = [i for i, n in zip(empty.nonzero()[0].tolist(), empty.shape, strict=True) if n > 1] or [0]
        row, unit = ", ".join(map(str, index)), "token" if name == "text" else "frame"
        raise ValueError(f"{name} row {row} has no valid {unit}: its mask is all False; leave it out, or mask fewer")
    return x.masked_fill(~mask[..., None], 0), mask


def _cosines(text: Float[Tensor, "*#a l e"], video: Float[Tensor, "*#a t e"]) -> Float[Tensor, "*a l t"]:
    """Return the cosine of every token with every frame, in float32 or wider; 0 for a zero vector."""
    with torch.autocast(text.device.type, enabled=False):  # bf16 errors times 100 would change the softmax
        text, video = (F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1) for x in (text, video))
        return torch.einsum("...le,...te->...lt", text, video)  # unlike matmul, it copies neither operand for all pairs


def _softmax(x: Float[Tensor, "*#a"], mask: Bool[Tensor, "*#a"], *, dim: int = -1) -> Float[Tensor, "*a"]:
    """Return the softmax over the entries where the mask is True; 0 elsewhere."""
    return x.masked_fill(~mask, -torch.inf).softmax(dim=dim)
