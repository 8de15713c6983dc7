"""Token-wise similarity: every word of a caption looks for its frame, every frame for its word.

Contract: token features (..., L, E), frame embeddings (..., T, E) and masks that are True for what counts in, one
similarity (...) out. Leading axes broadcast: text[:, None] with video[None] gives all pairs (M, B), equal ones give
pairs side by side (P,). Features are L2-normalised here, cosines are float32 or wider, also under autocast. Knows
nothing of tokenizers, towers, temperatures or losses.
Papers: Wang et al. 2022, Disentangled Representation Learning for Text-Video Retrieval, arXiv 2203.07111 (WTI);
Liu et al. 2023, Mug-STAN, arXiv 2311.15075 (Mug). Numbers and forms from the released code of both.
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

    The weights w and u are softmaxes over the tokens and the frames that count, of what a network of `layers` linear
    layers says of each feature as it comes, with its norm: 2 are DRL's default, 1 is Mug-STAN's version. The released
    code sets masked cosines to 0, which win where all others are negative; here what is masked never wins.
    """

    def __init__(self, embed_dim: int, *, layers: int = 2) -> None:
        super().__init__()
        if layers not in (1, 2, 3):
            raise ValueError(f"layers must be 1, 2 or 3, as in the released code, got {layers}")
        self.text_weight = _scorer(embed_dim, layers=layers)
        self.video_weight = _scorer(embed_dim, layers=layers)

    def forward(
        self,
        text: Float[Tensor, "*#a l e"],
        video: Float[Tensor, "*#a t e"],
        *,
        text_mask: Bool[Tensor, "*#a l"],
        video_mask: Bool[Tensor, "*#a t"] | None = None,
    ) -> Float[Tensor, "*a"]:
        text, text_mask = _only(text, text_mask, of="text")
        video, video_mask = _only(video, video_mask, of="video")
        cosines = _cosines(text, video)  # (..., L, T)
        words = cosines.masked_fill(~video_mask[..., None, :], -torch.inf).amax(dim=-1)  # (..., L)
        frames = cosines.masked_fill(~text_mask[..., :, None], -torch.inf).amax(dim=-2)  # (..., T)
        of_words = _softmax(_said(self.text_weight, text).to(cosines.dtype), text_mask)
        of_frames = _softmax(_said(self.video_weight, video).to(cosines.dtype), video_mask)
        return ((of_words * words).sum(dim=-1) + (of_frames * frames).sum(dim=-1)) / 2


class Mug(nn.Module):
    """Mutual guidance: what a token is told by the frames decides how much it counts, and the other way round.

    Each token sees the clip as the mean of the frames, weighted by softmax(sharpness · cosine); its cosine with that
    mean, a_l, is again a softmax's logit among tokens and gives its weight w_l. Frames have b_t and u_t likewise.
    "frame_token" compares the caption sum_l w_l l with the clip sum_t u_t t; "frame_token_simple" is the mean of
    sum_l w_l a_l and sum_t u_t b_t. Nothing is trained, and nothing is larger than the cosines.

    "frame_token_release" is "frame_token" with the released code's slip, for its own numbers: there padding tokens,
    whose cosines are zeroed but not their features, see the plain mean of the frames and take part in w. In this form
    alone, what stands at masked tokens matters. "frame_token_simple" has no such slip.
    """

    def __init__(self, *, form: str = "frame_token", sharpness: float = 100.0) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
        if sharpness <= 0:
            raise ValueError(f"sharpness multiplies cosines and must be above 0, got {sharpness}; the paper's is 100")
        self.form, self.sharpness = form, sharpness

    def forward(
        self,
        text: Float[Tensor, "*#a l e"],
        video: Float[Tensor, "*#a t e"],
        *,
        text_mask: Bool[Tensor, "*#a l"],
        video_mask: Bool[Tensor, "*#a t"] | None = None,
    ) -> Float[Tensor, "*a"]:
        words_only, text_mask = _only(text, text_mask, of="text")
        video, video_mask = _only(video, video_mask, of="video")
        release = self.form == "frame_token_release"
        cosines = _cosines(text if release else words_only, video)  # (..., L, T)
        tokens, frames = text_mask[..., :, None], video_mask[..., None, :]
        sharp = self.sharpness * cosines.masked_fill(~tokens, 0)
        # the cosine with a weighted mean of frames is the weighted mean of the cosines: no feature is needed again
        told_words = (_softmax(sharp, frames) * cosines).sum(dim=-1)  # (..., L)
        told_frames = (_softmax(sharp, tokens, dim=-2) * cosines).sum(dim=-2)  # (..., T)
        pluralize = torch.ones_like(text_mask) if release else text_mask
        of_words = _softmax(self.sharpness * told_words, pluralize)
        of_frames = _softmax(self.sharpness * told_frames, video_mask)
        if self.form == "frame_token_simple":
            return ((of_words * told_words).sum(dim=-1) + (of_frames * told_frames).sum(dim=-1)) / 2
        return (of_words * (cosines * of_frames[..., None, :]).sum(dim=-1)).sum(dim=-1)

    def extra_repr(self) -> str:
        return f"form={self.form!r}, sharpness={self.sharpness:g}"


SIMILARITIES: dict[str, Callable[[int], nn.Module]] = {
    "wti": WTI,
    "mug": lambda embed_dim: Mug(form="frame_token"),
    "mug_simple": lambda embed_dim: Mug(form="frame_token_simple"),
}
"""By name, a maker that takes the width E of the joint space."""


def _scorer(width: int, *, layers: int) -> nn.Sequential:
    """One number for each feature; starts as DRL does, N(0, 0.02), so that all weigh about the same."""
    linears = [nn.Linear(width, width) for _ in range(layers - 1)]
    linears.append(nn.Linear(width, 1, bias=False))  # a bias would move no softmax
    for linear in linears:
        nn.init.normal_(linear.weight, std=0.02)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    hidden = [part for linear in linears[:-1] for part in (linear, nn.ReLU())]
    return nn.Sequential(*hidden, linears[-1])


def _said(network: nn.Sequential, x: Float[Tensor, "*#a l e"]) -> Float[Tensor, "*a l"]:
    """The network's one number for each feature, in the network's own precision whatever the features come in."""
    with torch.autocast(x.device.type, enabled=False):
        return network(x.to(next(network.parameters()).dtype)).squeeze(-1)


def _only(
    x: Float[Tensor, "*#a l e"], mask: Bool[Tensor, "*#a l"] | None, *, of: str
) -> tuple[Float[Tensor, "*a l e"], Bool[Tensor, "*#a l"]]:
    """The features with zeros where the mask is False, and the mask; ValueError for an item of which nothing counts."""
    if mask is None:
        return x, torch.ones_like(x[..., 0], dtype=torch.bool)
    empty = ~mask.any(dim=-1)
    if bool(empty.any()):
        where = [i for i, n in zip(empty.nonzero()[0].tolist(), empty.shape, strict=True) if n > 1] or [0]
        row, part = ", ".join(map(str, where)), "token" if of == "text" else "frame"
        raise ValueError(f"{of} row {row} has no valid {part}: its mask is all False; leave it out, or mask fewer")
    return x.masked_fill(~mask[..., None], 0), mask


def _cosines(text: Float[Tensor, "*#a l e"], video: Float[Tensor, "*#a t e"]) -> Float[Tensor, "*a l t"]:
    """Cosine of every token with every frame, in float32 or wider; of a zero with anything, 0."""
    with torch.autocast(text.device.type, enabled=False):  # bf16's error, times 100, would move softmax weights
        text, video = (F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1) for x in (text, video))
        return torch.einsum("...le,...te->...lt", text, video)  # all pairs without copies of either, unlike matmul


def _softmax(x: Float[Tensor, "*#a"], mask: Bool[Tensor, "*#a"], *, dim: int = -1) -> Float[Tensor, "*a"]:
    """Softmax over what the mask keeps; 0 elsewhere."""
    return x.masked_fill(~mask, -torch.inf).softmax(dim=dim)
