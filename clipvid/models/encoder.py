"""Embeddings of a video model: its frozen base model and branch, from files, arrays or text to vectors of one space.

Contract: clips, images and texts in, embeddings out; not normalised unless asked. `VideoCLIP` adds heads, training and
files. Knows nothing of classes, losses or data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.config.data_config import DataConfig
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.fused import FusedCopies
from clipvid.models.backbone.open_clip import Tokenizer
from clipvid.models.backbone.taps import Pixels, Taps, check_clips, rounded_for_autocast
from clipvid.models.backbone.weight_cache import forget_after_load
from clipvid.models.branches.base import Branch
from clipvid.models.inputs import VideoInput, features, images_as_clips, trained_data_config
from clipvid.models.sliding_window import Windows, encode_windows
from clipvid.nn.pooling import mean_over_frames
from clipvid.runtime.profiling import stage
from clipvid.video.decode import stream
from clipvid.video.transforms import VideoTransform

_DISABLED: ContextVar[tuple[nn.Module, ...]] = ContextVar("clipvid_disabled", default=())
"""Models whose branch is disabled in this thread or task."""


class Encoder(nn.Module):
    """Base class of VideoCLIP: a frozen base model and a branch, which together embed videos, images and texts."""

    def __init__(self, backbone: Backbone, branch: Branch) -> None:
        super().__init__()
        self.backbone = backbone
        self.branch = branch
        self.training_record: dict[str, Any] | None = None
        self._fused_branch = FusedCopies()
        self.register_load_state_dict_post_hook(forget_after_load)
        self._tower_transform = VideoTransform.from_config(backbone.preprocess_config)
        size = {} if branch.image_size is None else {"size": branch.image_size}
        self.transform: VideoTransform = replace(self._tower_transform, **size)

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
    def preprocess(self) -> Callable[[Any], Tensor]:
        """The base model's transform of a PIL image."""
        return self.backbone.preprocess

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The base model's tokenizer, from texts to token ids; None if none was given."""
        return self.backbone.tokenizer

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the base model's inverse temperature, as open_clip stores it: logits use `logit_scale.exp()`."""
        scale = getattr(self.backbone.clip, "logit_scale", None)
        return scale if isinstance(scale, Tensor) else torch.tensor(self.backbone.logit_scale).log()

    @property
    def data_config(self) -> DataConfig:
        """Settings by which files are read: those of the model's training, else the defaults."""
        return trained_data_config(self.training_record)

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
        self,
        video: VideoInput,
        *,
        normalize: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
        data_config: DataConfig | None = None,
    ) -> Float[Tensor, "b e"]:
        """Embed videos: the mean over frames of their embeddings; with `normalize` of length 1, as in open_clip.

        Args:
            video: a path or file:// URL, the bytes of a file, an open binary file, or a list of these; or a NumPy or
                torch array, (T, H, W, 3) or (T, 3, H, W) for one clip, with B in front for several: uint8 of any frame
                size, or floats preprocessed for the model; or the result of `taps` or `reads`.
            mask: False for padding frames of arrays.
            data_config: frames, sampler, decoder and time limit for files, and how many are decoded at a time; by
                default `data_config` of the model.

        Raises ValueError for an array of unclear layout or unnormalised floats, VideoError for an unreadable file.
        """
        if isinstance(video, Taps | Pixels) or (isinstance(video, Tensor) and torch.compiler.is_compiling()):
            sources = [self._source(video, mask)]
        else:
            sources = features(self, video, mask=mask, data_config=data_config)
        parts = [mean_over_frames(self.encode_frames(source), source.mask) for source in sources]
        embedding = parts[0] if len(parts) == 1 else torch.cat(parts)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def encode_image(self, images: Any, *, normalize: bool = False) -> Float[Tensor, "b e"]:
        """Embed still images by the base model alone, without the branch, as open_clip's `encode_image` does.

        `images` is a Pillow image, the path of a picture, an array (H, W, 3) or (3, H, W), uint8 of any size or
        preprocessed float, an array of several with B in front, or a list of these. Raises ValueError for others.
        """
        clips = images_as_clips(images, self._tower_transform, self.preprocess)
        video, _ = self._prepared(clips, None, self._tower_transform)
        embedding = self.backbone(video, levels=()).frames[:, 0]
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def forward(self, video: VideoInput, *, mask: Bool[Tensor, "b t"] | None = None) -> Float[Tensor, "b e"]:
        """Return `encode_video(video, mask=mask)`."""
        return self.encode_video(video, mask=mask)

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

    def encode_text(self, texts: str | Sequence[str] | Tensor, *, normalize: bool = False) -> Float[Tensor, "m e"]:
        """Embed strings or token ids (M, ctx) with the text tower; long texts are cut but keep their end token."""
        embedding = self.backbone.encode_text(self._tokens(texts))
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def _tokens(self, texts: str | Sequence[str] | Tensor) -> Tensor:
        """Return token ids on the model's device; strings are tokenized."""
        if isinstance(texts, Tensor):
            if texts.is_floating_point() or texts.ndim != 2:
                raise ValueError(
                    f"token ids must be integers (M, ctx), got {texts.dtype} {tuple(texts.shape)}; give the output of "
                    "the tokenizer, or strings"
                )
            return texts.to(self.device)
        advice = "give one string, a list of strings, or token ids"
        strings = [texts] if isinstance(texts, str) else checks.texts("texts", texts, advice=advice)
        if not strings:
            raise ValueError(f"texts must hold at least one text, got {texts!r}; {advice}")
        return self.backbone.tokenize(strings).to(self.device)

    @contextmanager
    def branch_disabled(self) -> Iterator[None]:
        """Turn the branch off within the block: exactly CLIP's frame-mean baseline, in this thread only."""
        token = _DISABLED.set((*_DISABLED.get(), self))
        try:
            yield
        finally:
            _DISABLED.reset(token)
