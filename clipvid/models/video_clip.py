"""VideoCLIP: a frozen image-text model with a trainable branch.

Contract: clips and texts in, embeddings of one space out. Knows nothing of optimizers, data sets or indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid.config.settings import VIDEO_TEMPLATES
from clipvid.models import checkpoint, heads, summary
from clipvid.models.backbone import trainable
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.fused import FusedCopies
from clipvid.models.backbone.open_clip import Tokenizer, preprocess_fields
from clipvid.models.backbone.taps import Pixels, Taps, check_clips, rounded_for_autocast
from clipvid.models.backbone.text import TextTokens
from clipvid.models.backbone.weight_cache import forget_after_load
from clipvid.models.branches.base import Branch
from clipvid.models.heads import Classifier, TextClassifier, prompts, similarity_head
from clipvid.models.sliding_window import Windows, encode_windows
from clipvid.nn.pooling import mean_over_frames
from clipvid.runtime.profiling import stage
from clipvid.video.decode import stream
from clipvid.video.transforms import VideoTransform

_DISABLED: ContextVar[tuple[VideoCLIP, ...]] = ContextVar("clipvid_disabled", default=())
"""Models whose branch is disabled in this thread or task."""


class VideoCLIP(nn.Module):
    """A video model made of a frozen base model and a branch that trains.

    `head` is an optional classifier. `similarity` is the one used for retrieval: "mean" (cosine of the mean over
    frames), "wti", "mug" or "mug_simple" (token-wise heads). Build one with `attach`, `create_model` or `load`.
    """

    def __init__(
        self, backbone: Backbone, branch: Branch, *, head: Classifier | None = None, similarity: str = "mean"
    ) -> None:
        super().__init__()
        self.backbone, self.branch, self.similarity = backbone, branch, similarity
        self.head: Classifier | None = head
        preset, one_token = branch.options.preset(), branch.one_token
        matcher = similarity_head(similarity, backbone.embed_dim, branch=preset, one_token=one_token)
        self.matcher = None if matcher is None else matcher.to(backbone.device)
        self.training_record: dict[str, Any] | None = None
        self._fused_branch = FusedCopies()
        self.register_load_state_dict_post_hook(forget_after_load)
        self._tower_transform = VideoTransform.from_config(backbone.preprocess_config)
        size = {} if branch.image_size is None else {"size": branch.image_size}
        self.transform = replace(self._tower_transform, **size)

    def forget_copies(self) -> None:
        """Drop the copies of weights used for inference and autocast; they are rebuilt on the next use.

        Call this after writing to weights in ways torch does not record: through `.data`, through NumPy, or in a
        replayed CUDA graph. All other changes are detected: in-place operations, optimizer steps, `load_state_dict`,
        `to`, new tensors.
        """
        self._fused_branch.forget()
        self.backbone.forget_copies()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._fused_branch.forget()
        return super()._apply(fn, recurse)

    @property
    def branch_is_on(self) -> bool:
        """False inside `branch_disabled`, in the thread or task that entered it; True otherwise."""
        return all(model is not self for model in _DISABLED.get())

    @property
    def device(self) -> torch.device:
        """Device of the base model, to which inputs are moved."""
        return self.backbone.device

    @property
    def preprocess(self):
        """The base model's transform of a PIL image."""
        return self.backbone.preprocess

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The base model's tokenizer, from texts to token ids; None if none was given."""
        return self.backbone.tokenizer

    @property
    def embed_dim(self) -> int:
        """Width E of the embeddings."""
        return self.backbone.embed_dim

    def taps(self, video: Tensor, *, mask: Bool[Tensor, "b t"] | None = None) -> Taps:
        """Return the tower's taps of `video` (B, T, 3, H, W): uint8 of any size, or preprocessed float."""
        video, mask = self._prepared(video, mask, self._tower_transform)
        with stage("tower"):
            return self._for_branch(self.backbone(video, levels=self.branch.levels, mask=mask))

    def reads(self, video: Tensor, *, mask: Bool[Tensor, "b t"] | None = None) -> Taps | Pixels:
        """Return the branch's input for `video`: taps, or pixels for a branch with a custom stem."""
        if not self.branch_is_on:
            return self.taps(video, mask=mask)
        video, mask = self._prepared(video, mask, self.transform)
        if self.branch.reads_pixels:
            return Pixels(video, mask)
        with stage("tower"):
            taps = self.backbone(video, levels=self.branch.levels, mask=mask, embed=self.branch.reads_frames)
            return self._for_branch(taps)

    def _for_branch(self, taps: Taps) -> Taps:
        """Cast to the branch's dtype if the tower has another (half precision) and autocast is off."""
        dtype = next((p.dtype for p in self.branch.parameters()), torch.float32)
        if self.backbone.dtype == dtype or torch.is_autocast_enabled(self.device.type):
            return taps
        return taps.to(dtype=dtype)

    def _source(self, video: Tensor | Taps | Pixels, mask: Tensor | None) -> Taps | Pixels:
        """Return the branch's input; raise ValueError for a mask in addition to taps or pixels."""
        if isinstance(video, Tensor):
            return self.reads(video, mask=mask)
        if mask is not None:
            raise ValueError(f"{type(video).__name__} bring their own mask; set it there, or pass the video itself")
        return video

    def _prepared(self, video: Tensor, mask: Tensor | None, transform: VideoTransform) -> tuple[Tensor, Tensor | None]:
        """Check `video`, move it to the model's device and preprocess it if it is uint8."""
        check_clips(video, mask)
        video = video.to(self.device)
        if not video.is_floating_point():
            with stage("normalise"):
                video = transform(video)
        return video, None if mask is None else mask.to(self.device)

    def encode_frames(
        self, video: Tensor | Taps | Pixels, *, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t e"]:
        """Embed each frame: (B, T, E), not normalised, including the branch's contribution."""
        source = rounded_for_autocast(self._source(video, mask))
        needs_frames = self.branch.reads_frames or not self.branch_is_on
        if needs_frames and isinstance(source, Taps) and not source.frames.shape[-1]:
            raise ValueError(
                "these taps were read for a branch that needs no frame embeddings of CLIP; read them with model.taps"
            )
        if self.branch_is_on:
            if self.branch.reads_pixels and not isinstance(source, Pixels):
                name = self.branch.options.preset()
                raise ValueError(f"branch {name} has a custom stem and reads pixels, not taps; pass the video itself")
            with stage("branch"):
                return self._running_branch()(source)
        if isinstance(source, Pixels):
            with stage("tower"):
                source = self.backbone(source.video, levels=(), mask=source.mask)
        return source.frames

    def _running_branch(self) -> Any:
        """Return the branch, or its inference copy when neither gradients nor training mode are on."""
        learns = torch.is_grad_enabled() or self.branch.training
        return self.branch if learns else self._fused_branch.of(self.branch, grad=False)

    def encode_video(
        self, video: Tensor | Taps | Pixels, *, normalize: bool = True, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b e"]:
        """Embed clips: the mean over frames of their embeddings, L2-normalised unless `normalize` is False.

        `video` is (B, T, 3, H, W), uint8 of any size or preprocessed float, or the result of `reads`. `mask` (B, T) is
        False for padding frames. Raises ValueError for other shapes.
        """
        source = self._source(video, mask)
        embedding = mean_over_frames(self.encode_frames(source), source.mask)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def forward(
        self, video: Tensor | Taps | Pixels, *, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b e"]:
        """Return `encode_video(video, mask=mask)`."""
        return self.encode_video(video, mask=mask)

    def encode_clip(
        self, video: Tensor | Taps | Pixels, *, mask: Bool[Tensor, "b t"] | None = None
    ) -> tuple[Float[Tensor, "b t e"], Bool[Tensor, "b t"] | None]:
        """Return the frame embeddings and frame mask that `match` compares with texts."""
        source = self._source(video, mask)
        return self.encode_frames(source), source.mask

    def encode_windows(
        self,
        path: str | Path,
        *,
        window: int = 12,
        stride: int = 1,
        every: int = 1,
        fps: int | float | None = None,
        **batches: Any,
    ) -> Iterator[Windows]:
        """Embed all windows of `window` frames of a video of any length, `stride` frames apart, in constant memory.

        The tower encodes each frame once. `every` and `fps` select frames: every n-th, or that many per second
        (`video.decode.stream`). `batches` are the batch sizes, precision and normalisation of
        `sliding_window.encode_windows`.
        """
        frames = stream(path, every=every, fps=fps, fit=self.transform.fit)
        return encode_windows(self, frames, window=window, stride=stride, **batches)

    def encode_text(self, texts: str | Sequence[str] | Tensor, *, normalize: bool = True) -> Float[Tensor, "m e"]:
        """Embed strings or token ids (M, ctx) with the text tower; long texts are cut but keep their end token."""
        embedding = self.backbone.encode_text(self._tokens(texts))
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def text_features(self, texts: str | Sequence[str] | Tensor) -> Float[Tensor, "m e"] | TextTokens:
        """Return the text input of this model's similarity: normalised embeddings, or features of every token."""
        mean = self.matcher is None
        return self.encode_text(texts) if mean else self.backbone.encode_tokens(self._tokens(texts)).shortened()

    def match(
        self,
        text: Float[Tensor, "m e"] | TextTokens,
        frames: Float[Tensor, "b t e"],
        *,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "m b"]:
        """Compute the similarity of all texts with all clips from `text_features` and `encode_clip`; float32."""
        if isinstance(text, Tensor):
            with torch.autocast(frames.device.type, enabled=False):  # avoids another rounding by the matrix product
                return text.float() @ F.normalize(mean_over_frames(frames.float(), mask), dim=-1).T
        if self.matcher is None:
            raise ValueError("similarity 'mean' compares embeddings of whole texts; pass those of encode_text")
        masks = {"text_mask": text.mask[:, None], "video_mask": None if mask is None else mask[None]}
        return self.matcher(text.features[:, None], frames[None], **masks)

    def _tokens(self, texts: str | Sequence[str] | Tensor) -> Tensor:
        """Return token ids on the model's device; strings are tokenized."""
        strings = [texts] if isinstance(texts, str) else texts
        return (strings if isinstance(strings, Tensor) else self.backbone.tokenize(strings)).to(self.device)

    def classify(
        self, video: Tensor | Taps | Pixels, *, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b c"]:
        """Return the logits of the head; raise ValueError for a model without one."""
        if self.head is None:
            raise ValueError("this model has no classifier; train one (task recognition), or use evaluate_zero_shot")
        return self.head(self.encode_video(video, normalize=False, mask=mask))

    @torch.no_grad()
    def text_classifier(self, classes: Sequence[str], *, templates: Sequence[str] = VIDEO_TEMPLATES) -> TextClassifier:
        """Build a zero-shot classifier from class names: the normalised mean of each class's prompt embeddings."""
        means = [self.encode_text(texts).mean(dim=0) for texts in prompts(classes, templates)]
        return TextClassifier(torch.stack(means), classes, scale=self.backbone.logit_scale)

    @contextmanager
    def branch_disabled(self) -> Iterator[None]:
        """Turn the branch off within the block: exactly CLIP's frame-mean baseline, in this thread only."""
        token = _DISABLED.set((*_DISABLED.get(), self))
        try:
            yield
        finally:
            _DISABLED.reset(token)

    def set_trainable(self, mode: str = "none", *, text: bool = True, text_lora: int = 0) -> trainable.Trainable:
        """Set the part of the base model that trains with the branch; return all parts that train.

        none: nothing. text: the text tower. last:N: the last N blocks of both towers and the layers after them. all:
        both towers, as in the STAN paper. With `text` False the text tower trains in no mode. Blocks of the visual
        tower that this branch does not run never train; the branch trains copies of them. `text_lora` adds low-rank
        adapters of that rank to the text tower, which train in every mode. `train` calls this with its config.
        """
        if text_lora:
            trainable.add_text_lora(self.backbone, text_lora)
        upto = None if self.branch.reads_frames else max(self.branch.levels, default=-1)
        clip = trainable.set_trainable(self.backbone, mode, text=text, lora=text_lora > 0, upto=upto)
        parts = self._parts().items()
        counts = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts}
        return trainable.Trainable(mode, {name: count for name, count in counts.items() if count} | dict(clip.parts))

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return names and values of all trainable parameters: branch, heads, the base model's part of `set_trainable`.

        Raises ValueError for weights of the base model that require gradients without `set_trainable`.
        """
        trainable.check_trainable(self.backbone)
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]

    def trainable_summary(self, frames: int = 12) -> summary.Summary:
        """Return trainable parts and cost of the model for clips of `frames` frames; printing it gives a table.

        Raises ValueError as `trainable_parameters` does.
        """
        if frames < 1:
            raise ValueError(f"frames must be an integer >= 1, got {frames}")
        trainable.check_trainable(self.backbone)
        heads = [part for part in (self.head, self.matcher) if part is not None]
        return summary.summarize(self.backbone, self.branch, heads=heads, frames=frames)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of base and branch; embeddings of models with equal fingerprints are comparable."""
        weights = {name: value for name, value in self._state().items() if name.startswith(("branch.", "clip."))}
        return checkpoint.fingerprint(self.backbone.fingerprint, self.branch.options.to_config(), weights)

    def describe(self) -> dict[str, Any]:
        """Return the model's description as plain data for results."""
        base = self.backbone.base
        return {
            "base": base.name or "an object given by the caller",
            "pretrained": base.pretrained,
            "base_fingerprint": self.backbone.fingerprint,
            "fingerprint": self.fingerprint,
            "branch": self.branch.options.preset(),
            "options": self.branch.options.to_config(),
            "similarity": self.similarity,
            "branch_on": self.branch_is_on,
        }

    def _parts(self) -> dict[str, nn.Module]:
        """Return the model's own modules by name: everything but the base model."""
        parts: dict[str, nn.Module | None] = {"branch": self.branch, "similarity": self.matcher, "head": self.head}
        return {name: part for name, part in parts.items() if part is not None}

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors to save: branch, heads, and the weights of the base model that were trained."""
        state = {f"{name}.{k}": v for name, part in self._parts().items() for k, v in part.state_dict().items()}
        changed = {n: p for n, p in self.backbone.clip.named_parameters() if n in self.backbone.trained}
        return state | {f"clip.{name}": p for name, p in changed.items()}

    def save(self, folder: str | Path) -> Path:
        """Write config.json and branch.safetensors to `folder` atomically and return its path.

        Of the base model only its name and the weights that were trained are saved. Raises FileExistsError for a folder
        that holds other files.
        """
        base = self.backbone.base
        config = {
            "base": {"name": base.name, "pretrained": base.pretrained, "fingerprint": self.backbone.fingerprint},
            "preprocess": preprocess_fields(self.backbone.preprocess_config),
            "clip": {"text_lora": self.backbone.lora_rank},
            "branch": self.branch.options.to_config(),
            "similarity": self.similarity,
            "head": heads.to_config(self.head),
            "training": self.training_record,
        }
        return checkpoint.write_model(folder, config, self._state())
