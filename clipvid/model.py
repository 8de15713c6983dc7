"""VideoCLIP: a frozen image-text model with a branch, and how to make, save and load one.

Contract: clips and texts in, embeddings of one space out. Saved models hold the branch (and head) only; the base model
is named and fingerprinted. Knows nothing of optimisers, data sets or indices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipvid import branches, cost
from clipvid._files import whole_folder
from clipvid.backbone import Backbone, Base, Tokenizer, load_clip, preprocess_fields
from clipvid.branches import Branch, BranchOptions
from clipvid.config import VIDEO_TEMPLATES
from clipvid.errors import CheckpointError
from clipvid.heads import Classifier, LinearClassifier, TextClassifier, prompts
from clipvid.nn.frames import mean_over_frames
from clipvid.taps import Pixels, Taps
from clipvid.video.transforms import VideoTransform

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "branch.safetensors"


class VideoCLIP(nn.Module):
    """A video model made of a frozen base model and a branch that trains.

    `head` is an optional classifier for recognition. Build one with `attach`, `create_model` or `load`.
    """

    def __init__(self, backbone: Backbone, branch: Branch, *, head: Classifier | None = None) -> None:
        super().__init__()
        self.backbone, self.branch = backbone, branch
        self.head: Classifier | None = head
        self.training_record: dict[str, Any] | None = None
        self._branch_on = True
        self.transform = VideoTransform.from_config(backbone.preprocess_config)
        if branch.image_size is not None:
            self.transform = replace(self.transform, size=branch.image_size)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def preprocess(self):
        """The base model's own transform of a PIL image."""
        return self.backbone.preprocess

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The base model's own tokenizer: texts to token ids."""
        return self.backbone.tokenizer

    @property
    def embed_dim(self) -> int:
        return self.backbone.embed_dim

    def taps(self, video: Tensor, *, mask: Bool[Tensor, "b t"] | None = None) -> Taps:
        """What the tower says about `video` (B, T, 3, H, W): uint8 of any size, or preprocessed float."""
        video, mask = self._prepared(video, mask)
        return self.backbone(video, levels=self.branch.levels, mask=mask)

    def reads(self, video: Tensor, *, mask: Bool[Tensor, "b t"] | None = None) -> Taps | Pixels:
        """What the branch reads of `video`, and no more: taps, or pixels for a branch with a stem of its own."""
        if not self._branch_on:
            return self.taps(video, mask=mask)
        video, mask = self._prepared(video, mask)
        if self.branch.reads_pixels:
            return Pixels(video, mask)
        return self.backbone(video, levels=self.branch.levels, mask=mask, embed=self.branch.reads_frames)

    def _prepared(self, video: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Checked, on the model's device, as the tower takes it."""
        if video.ndim != 5 or video.shape[2] != 3:
            hint = "; add a batch axis with video[None]" if video.ndim == 4 else ""
            raise ValueError(f"video must be (B, T, 3, S, S), got {tuple(video.shape)}{hint}")
        if mask is not None and (mask.shape != video.shape[:2] or not bool(mask.any(dim=1).all())):
            raise ValueError(f"mask must be {tuple(video.shape[:2])} with a True in every row, got {tuple(mask.shape)}")
        video = video.to(self.device)
        if not video.is_floating_point():
            video = self.transform(video)
        return video, None if mask is None else mask.to(self.device)

    def encode_frames(
        self, video: Tensor | Taps | Pixels, *, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t e"]:
        """Frame embeddings (B, T, E), not normalised, with what the branch adds to them."""
        source = self.reads(video, mask=mask) if isinstance(video, Tensor) else video
        needs_frames = self.branch.reads_frames or not self._branch_on
        if needs_frames and isinstance(source, Taps) and not source.frames.shape[-1]:
            raise ValueError(
                "these taps were read for a branch that needs no frame embeddings of CLIP's; read them with model.taps"
            )
        if self._branch_on:
            return self.branch(source)
        if isinstance(source, Pixels):
            source = self.backbone(source.video, levels=(), mask=source.mask)
        return source.frames

    def encode_video(
        self, video: Tensor | Taps | Pixels, *, normalize: bool = True, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b e"]:
        """Embed clips: the mean over frames of their embeddings, L2-normalised unless `normalize` is False.

        `video` is (B, T, 3, H, W), uint8 of any size or float preprocessed to the base model's, or what `reads` gives
        of it. `mask` (B, T) is False for frames that only pad a shorter clip. Raises ValueError for other shapes.
        """
        source = self.reads(video, mask=mask) if isinstance(video, Tensor) else video
        embedding = mean_over_frames(self.encode_frames(source), source.mask)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def encode_text(self, texts: str | Sequence[str] | Tensor, *, normalize: bool = True) -> Float[Tensor, "m e"]:
        """Embed strings or token ids (M, ctx) with the frozen text tower; long texts are cut, the end token kept."""
        if isinstance(texts, str):
            texts = [texts]
        tokens = texts if isinstance(texts, Tensor) else self.backbone.tokenize(texts)
        embedding = self.backbone.encode_text(tokens.to(self.device))
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def classify(
        self, video: Tensor | Taps | Pixels, *, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b c"]:
        """Logits of the head; ValueError for a model without one."""
        if self.head is None:
            raise ValueError("this model has no classifier; train one with task='recognition', or use zero_shot")
        return self.head(self.encode_video(video, normalize=False, mask=mask))

    @torch.no_grad()
    def text_classifier(self, classes: Sequence[str], *, templates: Sequence[str] = VIDEO_TEMPLATES) -> TextClassifier:
        """A zero-shot classifier from class names: the normalised mean of each class's prompt embeddings."""
        means = [self.encode_text(texts).mean(dim=0) for texts in prompts(classes, templates)]
        return TextClassifier(torch.stack(means), classes, scale=self.backbone.logit_scale)

    @contextmanager
    def branch_disabled(self) -> Iterator[None]:
        """Within the block the model is CLIP's own frame-mean baseline, exactly."""
        before, self._branch_on = self._branch_on, False
        try:
            yield
        finally:
            self._branch_on = before

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of all that trains: branch and head, never the base model."""
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad and not n.startswith("backbone.")]

    def trainable_summary(self, frames: int = 8) -> cost.Summary:
        """What trains and what it costs for clips of `frames` frames; printing it gives a table."""
        if frames < 1:
            raise ValueError(f"frames starts at 1, got {frames}")
        return cost.summarize(self.backbone, self.branch, head=self.head, frames=frames)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of base and branch: embeddings of two models can be compared when these are equal."""
        digest = hashlib.sha256(self.backbone.fingerprint.encode())
        digest.update(json.dumps(branches.to_config(self.branch.options), sort_keys=True).encode())
        for name, value in sorted(self.branch.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write config.json and branch.safetensors to `folder`, whole or not at all; the base model is only named."""
        from safetensors.torch import save_file

        strangers = sorted({p.name for p in Path(folder).glob("*")} - {CONFIG, WEIGHTS})
        if strangers:
            raise FileExistsError(
                f"{folder} holds other things ({', '.join(strangers[:3])}); save to a folder of its own"
            )
        state = {f"branch.{k}": v for k, v in self.branch.state_dict().items()}
        if self.head is not None:
            state |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        with whole_folder(folder) as beside:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, beside / WEIGHTS)
            (beside / CONFIG).write_text(json.dumps(self._config(), indent=2) + "\n", encoding="utf-8")
        return Path(folder)

    def _config(self) -> dict[str, Any]:
        head = None
        if self.head is not None:
            head = {
                "kind": "text" if isinstance(self.head, TextClassifier) else "linear",
                "classes": list(self.head.classes),
            }
            if isinstance(self.head, TextClassifier):
                head["scale"] = self.head.scale
        base = self.backbone.base
        return {
            "format": FORMAT,
            "base": {"name": base.name, "pretrained": base.pretrained, "fingerprint": self.backbone.fingerprint},
            "preprocess": preprocess_fields(self.backbone.preprocess_config),
            "branch": branches.to_config(self.branch.options),
            "head": head,
            "training": self.training_record,
        }


def attach(
    clip: nn.Module | Backbone,
    branch: str | BranchOptions = "stan",
    *,
    tokenizer: Tokenizer | None = None,
    depth: int | None = None,
    mixer: str | None = None,
    options: Mapping[str, Any] | None = None,
    base: Base | None = None,
) -> VideoCLIP:
    """Turn an open_clip model that you hold into a video model.

    The model is taken over: frozen and set to eval. `branch` is a preset (mean, stan, stan-release, stan-paper) or an
    options object; `depth`, `mixer` and `options` change single fields of it. `tokenizer` is needed to embed strings.

    Raises ValueError for names that do not exist, BackboneError for a model whose tower cannot be tapped.
    """
    backbone = clip if isinstance(clip, Backbone) else Backbone(clip, tokenizer=tokenizer, base=base)
    asked = dict(options or {})
    asked |= {name: value for name, value in (("depth", depth), ("mixer", mixer)) if value is not None}
    return VideoCLIP(backbone, branches.build(backbone, branches.choose(branch, asked)))


def create_model(
    name: str,
    pretrained: str | None = None,
    *,
    branch: str | BranchOptions = "stan",
    depth: int | None = None,
    mixer: str | None = None,
    options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> VideoCLIP:
    """Load any open_clip model and attach a branch to it.

    `name` is a model of open_clip ("ViT-B-32", with `pretrained` a tag or the path of a checkpoint), an `hf-hub:` tag,
    a `local-dir:` folder, or "clipvid-mini", the small model that comes with the package.
    """
    clip, tokenizer, base = load_clip(name, pretrained, device=device)
    return attach(clip, branch, tokenizer=tokenizer, depth=depth, mixer=mixer, options=options, base=base)


def load(
    folder: str | Path,
    *,
    base: nn.Module | Backbone | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str = "cpu",
) -> VideoCLIP:
    """Load a model saved by `VideoCLIP.save`, from a folder or a hub repository ("org/name").

    The base model is loaded by its saved name, or given as `base` where it was an object of the caller's. Raises
    CheckpointError when the base is not the one that the branch was trained on, or the files do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _fetch(folder)
    config = _read_config(folder / CONFIG)
    backbone = _load_base(config["base"], base=base, tokenizer=tokenizer, device=device)
    if backbone.fingerprint != config["base"]["fingerprint"]:
        raise CheckpointError(
            f"{folder} was trained on {_name(config['base'])} with fingerprint {config['base']['fingerprint'][:12]}, "
            f"the base model at hand is {backbone.fingerprint[:12]}; load the very weights it was trained on (same "
            "name, tag and precision), or train the branch again on these"
        )
    if config["preprocess"] != json.loads(json.dumps(preprocess_fields(backbone.preprocess_config))):
        raise CheckpointError(
            f"{folder} was trained with other preprocessing ({config['preprocess']}) than this base model has; give it "
            "the same size, mean, std, interpolation and resize mode"
        )
    try:
        model = VideoCLIP(backbone, branches.build(backbone, branches.from_config(config["branch"])))
        model.head = _empty_head(config["head"], model.embed_dim)
        state = load_file(folder / WEIGHTS)
        parts = {"branch": model.branch, "head": model.head}
        for name, part in parts.items():
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            if part is not None:
                part.load_state_dict(own)
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} does not hold a complete clipvid model: {error}") from error
    model.training_record = config["training"]
    return model.to(device).eval()


def _fetch(folder: str | Path) -> Path:
    if Path(folder).is_dir():
        return Path(folder)
    name = str(folder).removeprefix("hf-hub:")
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"{folder} is not a folder; give the folder of VideoCLIP.save, or a hub repository org/name"
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}, so it is not a saved clipvid model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config["format"]
        missing = {"base", "preprocess", "branch", "head", "training"} - set(config)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not the config of a clipvid model: {error!r}") from error
    if found != FORMAT or missing:
        raise CheckpointError(
            f"{path} has format {found} and lacks {sorted(missing)}; this version reads format {FORMAT}"
        )
    return config


def _load_base(saved: Mapping[str, Any], *, base, tokenizer: Tokenizer | None, device) -> Backbone:
    if isinstance(base, Backbone):
        return base
    if base is not None:
        return Backbone(base, tokenizer=tokenizer, base=Base(saved["name"], saved["pretrained"]))
    if saved["name"] is None:
        raise CheckpointError(
            "this model was trained on a CLIP object that its owner built, which has no name to load it by; "
            "pass that model as base= and its tokenizer as tokenizer="
        )
    clip, own, where = load_clip(saved["name"], saved["pretrained"], device=device)
    return Backbone(clip, tokenizer=tokenizer or own, base=where)


def _empty_head(head: Mapping[str, Any] | None, embed_dim: int) -> Classifier | None:
    if head is None:
        return None
    if head["kind"] == "linear":
        return LinearClassifier(embed_dim, head["classes"])
    return TextClassifier(torch.zeros(len(head["classes"]), embed_dim), head["classes"], scale=head["scale"])


def _name(base: Mapping[str, Any]) -> str:
    return f"{base['name']} ({base['pretrained']})" if base["pretrained"] else str(base["name"] or "an unnamed CLIP")
