"""VideoCLIP: a frozen image-text model with a trainable branch.

Contract: `Encoder` embeds clips and texts; this class adds heads, similarities, predictions, the choice of weights that
train, and files. Knows nothing of optimizers, data sets or indices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import VIDEO_TEMPLATES
from clipvid.models import saving, summary
from clipvid.models.backbone import trainable
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.open_clip import Tokenizer
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.models.backbone.text import TextTokens
from clipvid.models.branches.base import Branch
from clipvid.models.display import ShortRepr
from clipvid.models.encoder import Encoder
from clipvid.models.heads import Classifier, TextClassifier, class_names, prompts, similarity_head
from clipvid.models.inputs import VideoInput, require_finite
from clipvid.models.predictions import Predictions, predict
from clipvid.nn.pooling import mean_over_frames


class VideoCLIP(ShortRepr, Encoder):
    """A video model made of a frozen base model and a branch that trains.

    `head` is an optional classifier. `similarity_name` is the similarity used for retrieval: "mean" (cosine of the mean
    over frames), "wti", "mug" or "mug_simple" (token-wise heads). Build one with `attach`, `create_model` or `load`.
    """

    def __init__(
        self, backbone: Backbone, branch: Branch, *, head: Classifier | None = None, similarity: str = "mean"
    ) -> None:
        super().__init__(backbone, branch)
        self.similarity_name = similarity
        self.head: Classifier | None = head
        preset, one_token = branch.options.preset(), branch.one_token
        matcher = similarity_head(similarity, backbone.embed_dim, branch=preset, one_token=one_token)
        self.matcher: nn.Module | None = None if matcher is None else matcher.to(backbone.device)

    def encode_clip(
        self, video: Tensor | Taps | Pixels, *, mask: Bool[Tensor, "b t"] | None = None
    ) -> tuple[Float[Tensor, "b t e"], Bool[Tensor, "b t"] | None]:
        """Return the frame embeddings and frame mask that `match` compares with texts."""
        source = self._source(video, mask)
        return self.encode_frames(source), source.mask

    def text_features(self, texts: str | Sequence[str] | Tensor) -> Float[Tensor, "m e"] | TextTokens:
        """Return the text input of this model's similarity: normalised embeddings, or features of every token."""
        if self.matcher is None:
            return self.encode_text(texts, normalize=True)
        return self.backbone.encode_tokens(self._tokens(texts)).shortened()

    def similarity(self, video: Float[Tensor, "b e"], text: Float[Tensor, "m e"]) -> Float[Tensor, "b m"]:
        """Return the cosine of every video embedding with every text embedding, in float32.

        Embeddings need not be normalised. Raises ValueError for embeddings of wrong shapes or not finite.
        """
        for name, embeddings in (("video", video), ("text", text)):
            advice = "give what encode_video and encode_text return"
            checks.of_type(name, embeddings, Tensor, must="embeddings (N, E) in a tensor", advice=advice)
        if video.ndim != 2 or text.ndim != 2 or video.shape[1] != text.shape[1]:
            raise ValueError(
                f"video and text must be embeddings (B, E) and (M, E) of one model, got {tuple(video.shape)} and "
                f"{tuple(text.shape)}; add an axis to a single embedding with [None]"
            )
        cosines = F.normalize(video.float(), dim=-1) @ F.normalize(text.float().to(video.device), dim=-1).T
        require_finite(cosines)
        return cosines

    def predict(
        self,
        video: VideoInput,
        classes: Iterable[str] | None = None,
        *,
        top: int = 5,
        templates: Sequence[str] = VIDEO_TEMPLATES,
        data_config: DataConfig | None = None,
    ) -> Predictions:
        """Return the `top` most probable classes of each video.

        Args:
            video: as in `encode_video`.
            classes: names to choose from, put into `templates` and compared as text, as `evaluate_zero_shot` does; by
                default the classes of the model's head.
            data_config: as in `encode_video`; its precision is used for arrays, too.

        Raises ValueError without a head and `classes`, and as `encode_video`.
        """
        return predict(self, video, classes, top=top, templates=templates, data_config=data_config)

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
            raise ValueError("similarity 'mean' compares embeddings of whole texts; pass those of text_features")
        masks = {"text_mask": text.mask[:, None], "video_mask": None if mask is None else mask[None]}
        return self.matcher(text.features[:, None], frames[None], **masks)

    def classify(self, video: VideoInput, *, mask: Bool[Tensor, "b t"] | None = None) -> Float[Tensor, "b c"]:
        """Return the logits of the head; raise ValueError for a model without one."""
        if self.head is None:
            raise ValueError("this model has no classifier; train one (task recognition), or use evaluate_zero_shot")
        return self.head(self.encode_video(video, mask=mask))

    @torch.no_grad()
    def text_classifier(self, classes: Iterable[str], *, templates: Sequence[str] = VIDEO_TEMPLATES) -> TextClassifier:
        """Build a zero-shot classifier from class names: the normalised mean of each class's prompt embeddings."""
        classes = class_names(classes)
        means = [
            F.normalize(self.encode_text(texts).float(), dim=-1).mean(dim=0) for texts in prompts(classes, templates)
        ]
        return TextClassifier(torch.stack(means), classes, scale=self.backbone.logit_scale)

    def set_trainable(self, mode: str = "none", *, text: bool = True, text_lora: int = 0) -> trainable.Trainable:
        """Set the part of the base model that trains with the branch; return all parts that train.

        none: nothing. text: the text tower. last:N: the last N blocks of both towers and the layers after them. all:
        both towers, as in the STAN paper. With `text` False the text tower trains in no mode. Blocks of the visual
        tower that this branch does not run never train; the branch trains copies of them. `text_lora` adds low-rank
        adapters of that rank to the text tower, which train in every mode. `train` calls this with its config.
        """
        if checks.integer("text_lora", text_lora, 0, advice="it is the rank of the adapters, 0 for none"):
            trainable.add_text_lora(self.backbone, text_lora)
        upto = None if self.branch.reads_frames else max(self.branch.levels, default=-1)
        clip = trainable.set_trainable(self.backbone, mode, text=text, lora=text_lora > 0, upto=upto)
        parts = saving.parts_of(self).items()
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
        checks.integer("frames", frames, 1, advice="it is the number of frames per clip")
        trainable.check_trainable(self.backbone)
        heads = [part for part in (self.head, self.matcher) if part is not None]
        return summary.summarize(self.backbone, self.branch, heads=heads, frames=frames)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of base and branch; embeddings of models with equal fingerprints are comparable."""
        return saving.fingerprint(self)

    def describe(self) -> dict[str, Any]:
        """Return the model's description as plain data for results."""
        return {
            "base": self.backbone.base.name or "an object given by the caller",
            "pretrained": self.backbone.base.pretrained,
            "base_fingerprint": self.backbone.fingerprint,
            "fingerprint": self.fingerprint,
            "branch": self.branch.options.preset(),
            "options": self.branch.options.to_config(),
            "similarity": self.similarity_name,
            "branch_on": self.branch_is_on,
        }

    def save(self, folder: str | Path) -> Path:
        """Write config.json and branch.safetensors to `folder` atomically and return its path.

        Of the base model only its name and the weights that were trained are saved. Raises FileExistsError for a folder
        that holds other files.
        """
        return saving.save(self, folder)

    save_pretrained = save

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        base: nn.Module | Backbone | None = None,
        tokenizer: Tokenizer | None = None,
        device: torch.device | str | None = None,
    ) -> VideoCLIP:
        """Load a saved model, from a folder or a hub repository ("org/name"), in eval mode; `clipvid.load` is the same.

        `base` is the base model itself, for one that has no name; see `clipvid.load` for it and for the errors.
        """
        return saving.load(cls, folder, base=base, tokenizer=tokenizer, device=device)


def require_video_clip(model: object) -> None:
    """Raise ValueError for an argument `model` that is no VideoCLIP."""
    if not (hasattr(model, "backbone") and hasattr(model, "branch")):  # what torch.compile wraps has both
        advice = "create one by clipvid.create_model, attach or load"
        checks.of_type("model", model, VideoCLIP, must="a VideoCLIP", advice=advice)
