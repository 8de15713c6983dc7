"""The frozen base model: any open_clip image-text model, and the multi-layer features (taps) that branches read.

Contract: float frames (B, T, 3, S, S) in, Taps out; under no_grad unless trainable.py makes it train, always in eval
mode. Knows nothing about where models come from, branches, losses or video files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clipvid.errors import BackboneError
from clipvid.models.backbone import open_clip, text, vit
from clipvid.models.backbone.fingerprint import hash_of
from clipvid.models.backbone.fused import FusedCopies
from clipvid.models.backbone.loaded_weights import LoadedWeights
from clipvid.models.backbone.open_clip import Base, Tokenizer
from clipvid.models.backbone.taps import Geometry, Taps, grid_of, pooled_tokens
from clipvid.models.backbone.weight_cache import WeightCache, forget_after_load, plain_parts
from clipvid.nn.attention import Block


class Backbone(nn.Module):
    """A frozen open_clip model that returns taps and text embeddings.

    Modifies the given model object: its parameters no longer require gradients, and it stays in eval mode even when a
    surrounding module is set to train.
    """

    def __init__(self, clip: nn.Module, *, tokenizer: Tokenizer | None = None, base: Base | None = None) -> None:
        super().__init__()
        visual = getattr(clip, "visual", None)
        if not isinstance(visual, nn.Module):
            raise BackboneError(
                f"{type(clip).__name__} has no image tower `visual`; give an open_clip image-text model"
            )
        if not hasattr(visual, "forward_intermediates") or not hasattr(visual, "image_size"):
            raise BackboneError(
                f"tower {type(visual).__name__} lacks forward_intermediates or image_size, so its inner levels cannot "
                "be read; give an open_clip model (3.3 or newer)"
            )
        self.clip: Any = clip.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.base: Base = base or Base()
        self._class_token = vit.has_class_token(visual)
        self.loaded: LoadedWeights = LoadedWeights(clip)
        # Names of parameters of `clip`, managed by clipvid.models.backbone.trainable
        self.unfrozen: dict[str, str] = {}  # parameters unfrozen but perhaps unchanged, with a hash of their values
        self.trainable: frozenset[str] = frozenset()  # parameters that train now
        self.visual_trains = self.text_trains = False
        self.activation_checkpointing = False  # blocks that train run again in the backward pass
        self.lora_rank = 0
        self._hashes = WeightCache()
        self._fused_visual, self._fused_text = FusedCopies(), FusedCopies()
        self.register_load_state_dict_post_hook(forget_after_load)

    def forget_copies(self) -> None:
        """Drop everything computed from the weights (fused copies, fingerprints); it is computed again on demand."""
        for computed in (self._hashes, self._fused_visual, self._fused_text):
            computed.forget()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.forget_copies()  # freed first, so that copies and converted weights are not in memory together
        weight = next(self.clip.parameters())
        if not weight.is_meta and fn(weight.new_empty(0)).dtype != weight.dtype:
            _ = self.fingerprint  # of the weights as loaded, which a saved model names as its base
        self.loaded.note_changes(self.clip)
        applied = super()._apply(fn, recurse)
        self.loaded.refresh(self.clip)
        return applied

    def __getstate__(self) -> dict[str, Any]:
        self.loaded.note_changes(self.clip)
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.loaded.refresh(self.clip)  # a copy has other tensors

    @property
    def trained(self) -> set[str]:
        """Names of weights of `clip` that may differ from the loaded ones; a saved model holds them."""
        return self.loaded.trained

    @trained.setter
    def trained(self, names: set[str]) -> None:
        self.loaded.trained = names

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: batch norm and dropout of a frozen tower never run in training mode."""
        self.training = mode
        self.clip.eval()
        return self

    @property
    def visual(self) -> Any:
        return self.clip.visual

    @property
    def device(self) -> torch.device:
        return next(self.clip.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Input dtype of the tower: that of its first kernel (half-precision towers keep some weights in float32)."""
        first = next(self.visual.parameters())
        return next((p.dtype for p in self.visual.parameters() if p.ndim == 4), first.dtype)

    @property
    def image_size(self) -> tuple[int, int]:
        size = self.visual.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @cached_property
    def preprocess_config(self) -> dict[str, Any]:
        """open_clip's preprocessing config: how this model's images are resized and normalised."""
        return open_clip.preprocess_config(self.clip)

    @cached_property
    def preprocess(self) -> Any:
        """The base model's transform from one PIL image to a float tensor (3, S, S)."""
        return open_clip.image_transform(self.preprocess_config)

    @property
    def logit_scale(self) -> float:
        """Inverse temperature of the base model's image-text similarity."""
        scale = getattr(self.clip, "logit_scale", None)
        return float(scale.detach().exp()) if isinstance(scale, Tensor) and not scale.is_meta else 100.0

    @property
    def levels(self) -> int:
        """Number of levels: blocks of a ViT, stages of a convolutional tower."""
        return len(self._shapes[0]) - 1

    @property
    def has_blocks(self) -> bool:
        """True for a ViT: a stack of transformer blocks, with a level 0 before the first."""
        return self._shapes[0][0] is not None

    def last_levels(self, depth: int) -> tuple[int, ...]:
        """Return the last `depth` levels; raise BackboneError if the tower has fewer."""
        if not 0 <= depth <= self.levels:
            raise BackboneError(
                f"{type(self.visual).__name__} has {self.levels} levels to tap, depth {depth} was requested; "
                f"choose a depth from 1 to {self.levels}"
            )
        return tuple(range(self.levels - depth + 1, self.levels + 1))

    @property
    def embed_dim(self) -> int:
        return self._shapes[1]

    def geometry(self, levels: Sequence[int]) -> Geometry:
        """Return the shapes of these levels without running the tower."""
        shapes = [self._shapes[0][level] for level in self._checked(levels)]
        axis = -1 if vit.speaks_tokens(self.visual) else 1
        widths = tuple(s[axis] for s in shapes if s is not None)
        last = self._shapes[0][-1]
        assert last is not None
        return Geometry(tuple(levels), widths, grid_of(last, self.image_size), self.embed_dim, self._class_token)

    def _checked(self, levels: Sequence[int]) -> Sequence[int]:
        first = 0 if self._shapes[0][0] is not None else 1
        if wrong := [level for level in levels if not first <= level <= self.levels]:
            raise BackboneError(
                f"{type(self.visual).__name__} has no level {wrong[0]}; its levels run from {first} to {self.levels}"
            )
        return levels

    @cached_property
    def _shapes(self) -> tuple[list[tuple[int, ...] | None], int]:
        """Shapes of all levels for one image, the stem's first (None unless it is a sequence), and the embedding width.

        Computed by one pass on the meta device; ViT blocks and norms are skipped, as their outputs have the shape of
        their inputs, which torch infers slowly.
        """
        image = torch.empty(1, 3, *self.image_size, device="meta", dtype=self.dtype)
        visual = vit.meta_copy(self.visual, alike=vit.vit_blocks(self.visual))
        skipped: list[Any] = [part for part in visual.modules() if isinstance(part, nn.LayerNorm)]
        for part in (*skipped, *vit.vit_blocks(visual)):
            part.forward = lambda tokens, *_, **__: tokens
        with torch.no_grad():
            out = visual.forward_intermediates(image, **self._format())
        levels = [tuple(level.shape) for level in out["image_intermediates"]]
        return [levels[0] if vit.vit_blocks(visual) else None, *levels], out["image_features"].shape[-1]

    def forward(
        self,
        video: Float[Tensor, "b t 3 h w"],
        *,
        levels: Sequence[int],
        mask: Bool[Tensor, "b t"] | None = None,
        embed: bool = True,
    ) -> Taps:
        """Run the tower once over all frames; return these levels, their class tokens and the frame embeddings.

        Without `embed` a ViT stops after the highest of these levels, and `frames` is (B, T, 0). Raises ValueError for
        frames whose size differs from the base model's.
        """
        if tuple(video.shape[-2:]) != self.image_size:
            raise ValueError(
                f"frames are {tuple(video.shape[-2:])}, this base model takes {self.image_size}; "
                "use model.transform, or pass uint8 frames of any size"
            )
        levels = self._checked(levels)  # checked first: this may run the tower, and the hook below must not see it
        video, sizes = video.to(self.dtype), tuple(video.shape[:2])
        grad = self.visual_trains and torch.is_grad_enabled()
        visual = self.tower_to_run(grad=grad)
        with torch.set_grad_enabled(grad), vit.watched_stem(visual if 0 in levels else None) as stem:
            out = self.run(visual, video.flatten(0, 1), levels=levels, embed=embed)
            tokens = self._tokens(out, levels, stem)
            patches = tuple(tokens[level][0].unflatten(0, sizes) for level in levels)
            cls = tuple(tokens[level][1].unflatten(0, sizes) for level in levels) if self._class_token else ()
            features = out.get("image_features")
            frames = video.new_zeros(*sizes, 0) if features is None else features.unflatten(0, sizes)
        return Taps(tuple(levels), patches, cls, frames, mask)

    def tower_to_run(self, *, grad: bool) -> Any:
        """Return the module that a pass runs: the tower's fused copy under autocast, else the tower."""
        return self._fused_visual.of(self.visual, grad=grad)

    def run(
        self, visual: Any, images: Float[Tensor, "b 3 h w"], *, levels: Sequence[int], embed: bool = True
    ) -> dict[str, Any]:
        """Return open_clip's intermediates of `visual` (this tower or a copy), and its features if `embed`."""
        blocks = {level - 1 for level in self._checked(levels) if level}
        early = {} if embed or not self.has_blocks else {"intermediates_only": True, "stop_early": True}
        if not early:
            blocks.add(self.levels - 1)  # some towers stop at the last requested level and then give no features
        return visual.forward_intermediates(images, indices=sorted(blocks or {0}), **early, **self._format())

    def _tokens(
        self, out: Mapping[str, Any], levels: Sequence[int], stem: list[Tensor]
    ) -> dict[int, tuple[Tensor, ...]]:
        """Return per level its patches (B·T, N, D) on the last level's grid, and its class token if there is one."""
        shape = self._shapes[0][-1]
        assert shape is not None
        grid = grid_of(shape, self.image_size)
        prefix = out.get("image_intermediates_prefix") if self._class_token else None
        tokens: dict[int, tuple[Tensor, ...]] = {}
        requested = sorted({level for level in levels if level})
        for index, (number, level) in enumerate(zip(requested, out["image_intermediates"], strict=False)):
            tokens[number] = (pooled_tokens(level, grid), *([prefix[index][:, 0]] if prefix else []))
        if stem:
            n_prefix = vit.prefix_tokens(self.visual)
            tokens[0] = (stem[0][:, n_prefix:], *([stem[0][:, 0]] if self._class_token else []))
        return tokens

    def tokenize(self, texts: Sequence[str], *, longest: int | None = None) -> Int[Tensor, "m ctx"]:
        """Return token ids, cut to the context length or to `longest` tokens; the end token stays."""
        if self.tokenizer is None:
            raise ValueError(
                "this model was attached without a tokenizer; pass tokenizer=open_clip.get_tokenizer(name), "
                "or give token ids"
            )
        tokens = self.tokenizer(list(texts))
        if longest is None:
            return tokens
        pad, end = text.special_tokens(self.tokenizer)
        return text.cut(tokens, longest, pad=pad, end=end)

    def encode_text(self, tokens: Int[Tensor, "m ctx"]) -> Float[Tensor, "m e"]:
        """Return CLIP's text embeddings, projected, not normalised."""
        grad = self.text_trains and torch.is_grad_enabled()
        with torch.set_grad_enabled(grad):
            return self._text(grad=grad).encode_text(tokens)

    def encode_tokens(self, tokens: Int[Tensor, "m ctx"]) -> text.TextTokens:
        """Return the projected features of every token, and a mask of the tokens that belong to the caption."""
        if self.tokenizer is None:
            raise ValueError(
                "words and padding cannot be told apart without the tokenizer; pass tokenizer= when attaching"
            )
        pad, end = text.special_tokens(self.tokenizer)
        grad = self.text_trains and torch.is_grad_enabled()
        with torch.set_grad_enabled(grad):
            features = text.token_features(self._text(grad=grad), tokens)
        return text.TextTokens(features, text.token_mask(tokens, pad=pad, end=end))

    def copy_blocks(self, depth: int, *, class_token: bool = True) -> list[nn.Module]:
        """Return trainable copies of the tower's last `depth` blocks; empty for a tower without ViT blocks."""
        return vit.copy_blocks(self.visual, depth, class_token=class_token)

    def copy_tail(self) -> vit.Tail:
        """Return a trainable copy of the layers after the last block, up to the embedding."""
        return vit.Tail(self.visual)

    def stem_parts(self) -> vit.StemParts:
        """Return the weights before the first block."""
        return vit.stem_parts(self.visual)

    @property
    def n_text_blocks(self) -> int:
        """Number of blocks that `copy_text_blocks` can copy; 0 for a text tower of another kind."""
        return len(vit.text_tower_and_blocks(self.clip)[1])

    def copy_text_blocks(self, depth: int) -> tuple[list[Block], Float[Tensor, "positions d"]]:
        """Return trainable copies of the text tower's first `depth` blocks, and its position embeddings."""
        return vit.copy_text_blocks(self.clip, depth)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every weight as loaded, computed once; equal for equal base models."""
        if self.loaded.fingerprint is None:
            self.loaded.note_changes(self.clip)
            self.loaded.fingerprint = hash_of(self.clip.state_dict())
        return self.loaded.fingerprint

    @property
    def tower_fingerprint(self) -> str:
        """SHA-256 of the visual tower as it is now; models with equal values can exchange taps."""
        return self._hashed("visual", self.visual, self.visual.state_dict)

    @property
    def text_fingerprint(self) -> str:
        """SHA-256 of the text tower as it is now; equal values give equal embeddings for equal token ids."""
        return self._hashed("text", text.without_visual(self.clip), partial(text.text_weights, self.clip))

    def _hashed(self, name: str, module: nn.Module, weights: Callable[[], Mapping[str, Tensor]]) -> str:
        """Return a hash of the weights and of weightless parts such as activations, cached until one changes."""

        def compute() -> str:
            return hashlib.sha256(f"{sorted({*plain_parts(module)})}{hash_of(weights())}".encode()).hexdigest()

        return self._hashes.get(name, module, compute)

    def _text(self, *, grad: bool) -> Any:
        """Return the model that embeds texts; with LoRA it is not fused, so that peft's layers stay as they are."""
        rest = text.without_visual(self.clip)
        return rest if self.lora_rank else self._fused_text.of(rest, grad=grad)

    def _format(self) -> dict[str, Any]:
        tokens = vit.speaks_tokens(self.visual)
        return {"output_fmt": "NLC" if tokens else "NCHW", "output_extra_tokens": vit.prefix_tokens(self.visual) > 0}
