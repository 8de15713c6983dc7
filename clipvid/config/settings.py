"""Settings as dataclasses: how clips are read and how a branch is trained.

The command line derives its options from them: a field's docstring is its help.

Contract: plain data that checks itself; importing this file loads nothing heavy. Does not know how settings are used.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from clipvid.config import checks
from clipvid.config.data_config import DataConfig, checked_data_config
from clipvid.config.selfsup import SelfSupervision

VIDEO_TEMPLATES = ("a video of {}.", "a photo of {}.", "a clip of {}.")
"""Prompts around a class name for the text classifier; their embeddings are averaged (Radford et al. 2021, 3.1.4)."""

PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "video": VIDEO_TEMPLATES,
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "person": ("a video of a person {}.",),
}
"""Named prompt sets: clipvid's own, the class name alone (X-CLIP), that of CLIP and ViFi-CLIP, and that of Text4Vis."""

CHECKPOINT = "checkpoint.pt"
"""File name of the checkpoint in the folder of a training run, from which the run resumes."""
INDEX = "index.json"
"""File name of the description in the folder of a search index."""
SCORES = {"retrieval": "R@1", "recognition": "top-1", "selfsup": "negative loss"}
"""Metric that selects the best epoch, by task; higher is better, so a loss is negated."""


_ALIASES = {
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_epochs": "epochs",
    "warmup_ratio": "warmup",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "max_grad_norm": "clip_norm",
    **dict.fromkeys(("frames", "num_frames", "workers", "num_workers", "precision"), "data_config"),
}
"""Names that other libraries give to fields of a TrainConfig."""


@checks.known_fields(_ALIASES)
@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; saved with the trained model."""

    task: str = "retrieval"
    """Training task, or the name of a registered objective. retrieval: contrastive loss between clips and captions.
    recognition: cross entropy over the data's classes. selfsup: ConST-CL between two clips of each video, without
    captions or labels."""
    epochs: int = 10
    """Passes over the training data. Resuming with another number reschedules the remaining learning rates."""
    batch_size: int = 32
    """Clips per step; the contrastive loss takes its negatives from the batch, so larger is better there."""
    micro_batch_size: int = 0
    """Gradient caching (Gao et al. 2021): clips per pass of the branch, and captions per pass of a trained text tower.
    The gradient is that of the full batch, the memory that of one micro_batch_size; each clip is computed twice. 0:
    the batch in one pass. Retrieval only."""
    activation_checkpointing: bool = field(default=False, metadata=checks.FREE)
    """Recompute the layers of the branch, and the transformer blocks of towers that train, in the backward pass instead
    of storing their activations: less memory, more time, the same gradient."""
    compile: bool = False
    """Compile the branch with torch.compile: shorter steps, after a minute or more of compiling on two cores for each
    batch size and for validation; needs a C++ compiler. A resumed run equals an uninterrupted one within rounding. Not
    with micro_batch_size or activation_checkpointing, whose second pass would draw different random numbers."""
    accumulate_grad_batches: int = 1
    """Batches whose gradients are summed before each optimizer step."""
    lr: float = 3e-4
    """Peak learning rate of the branch (the STAN paper trains its branch at 2e-5 together with CLIP)."""
    pretrained_lr_scale: float = 0.1
    """Learning rate of the intra-frame blocks, relative to `lr`. They start as copies of CLIP's blocks and would forget
    them at a high rate."""
    train_clip: str = "none"
    """Part of the base model that is trained with the branch: none; text (the text tower); last:N (the last N blocks of
    both towers); all (as in the STAN paper). Recognition never trains the text tower."""
    clip_lr: float = 2e-6
    """Peak learning rate of the trained weights of the base model (the STAN paper's; a tenth of its branch's)."""
    text_lora: int = 0
    """Rank of LoRA adapters on the text tower, trained at `lr`; 0 for none. Needs the extra lora."""
    head_lr: float = 1e-3
    """Peak learning rate of a linear classifier, which has no pretrained weights."""
    weight_decay: float = 0.05
    """AdamW weight decay of matrices; norms, biases and position embeddings have none."""
    warmup: float = 0.1
    """Fraction of all steps over which the learning rate rises linearly; it then follows a cosine to zero."""
    clip_norm: float = 5.0
    """Maximum gradient norm; 0 disables clipping."""
    temperature: float | None = None
    """Temperature of the contrastive loss; None uses the base model's."""
    learn_temperature: bool = False
    """Train the temperature too, starting from its initial value."""
    multi_positive: bool = True
    """Count equal captions of a batch as one, which is right for the videos of all of them, not as negatives."""
    label_smoothing: float = 0.0
    """Label smoothing s: targets are (1 - s) y + s / C."""
    classifier: Literal["linear", "text"] = "linear"
    """Classifier of recognition. linear: a trained linear layer. text: cosine similarity to fixed embeddings of the
    class names."""
    templates: tuple[str, ...] = VIDEO_TEMPLATES
    """Prompts of the text classifier."""
    captions_per_video: int = 1
    """Captions sampled per clip and epoch; 0 uses all of them."""
    keep_together: int = 1
    """Consecutive clips of the data that share a batch; with 2, the clips of each pair are hard negatives of each
    other."""
    cache_taps: bool = False
    """Encode every clip once and train from taps in memory; the frames of a clip are then the same in every epoch, or
    those of cache_views."""
    cache_views: int = 0
    """Augmented views per training clip whose taps are cached, in memory or in --cache: sampled with random frames and
    the augmentations below, and used in turn, one per epoch. 0: one fixed view."""
    crop_scale: tuple[float, float] | None = None
    """Random resized crop, one per clip: smallest and largest fraction of the frame. With cached taps: only for
    cache_views."""
    flip: float = 0.0
    """Probability of mirroring a clip. Harmful for data where left and right differ in meaning. With cached taps: only
    for cache_views."""
    rand_augment: int = 0
    """RandAugment operations, the same for all frames of a clip (ViViT: 2); 0 for none. With cached taps: only for
    cache_views."""
    rand_magnitude: int = 10
    """Magnitude of the RandAugment operations, 0 to 30."""
    mixup: float = 0.0
    """Mixup: two clips and their labels are blended with a weight from Beta(mixup, mixup) (Zhang et al. 2018; ViViT
    takes 0.1 for Epic Kitchens, 0.3 for Something-Something); 0 for none. Not with cache_taps."""
    selfsup: SelfSupervision = field(default_factory=SelfSupervision)
    """Settings of task selfsup: weights, temperatures, regions, Y split."""
    data_config: DataConfig = field(default_factory=DataConfig)
    """Settings for reading clips: frames, sampler, decoder, workers, precision."""
    seed: int = 0
    """Seed of everything random in training. The branch's weights are initialised when the model is created: on the
    command line with this seed too, in Python with torch.manual_seed before create_model."""
    validate_every: int = 1
    """Epochs between validations."""
    patience: int | None = field(default=None, metadata=checks.FREE)
    """Validations without a better score after which training stops; None never stops early."""
    checkpoint_every: int = field(default=200, metadata=checks.FREE)
    """Steps between checkpoints, in addition to the one at the end of each epoch."""

    def __post_init__(self) -> None:
        self._check_types()
        checks.choices(self, {"classifier": ("linear", "text")})
        self._check_selfsup()
        check_train_clip("train_clip", self.train_clip)
        self._check_rates()
        if self.task == "retrieval" and self.batch_size < 2:
            raise ValueError(
                f"retrieval takes its negatives from the batch, got batch_size={self.batch_size}; take 2 or more"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a fraction in [0, 1), got {self.warmup}; 0.1 is a tenth of all steps")
        if self.batch_size % self.keep_together:
            raise ValueError(
                f"batch_size must be a multiple of keep_together, got {self.batch_size} and {self.keep_together}; "
                "change one of them"
            )
        if not 0 <= self.rand_magnitude <= 30:
            raise ValueError(f"rand_magnitude must be within 0 to 30, got {self.rand_magnitude}; the default is 10")
        if not 0 <= self.mixup < math.inf:
            raise ValueError(
                f"mixup must be >= 0 and finite, got {self.mixup}; it is the parameter of a Beta distribution"
            )
        if self.cache_taps and self.mixup:
            raise ValueError("mixup blends the pixels of two clips, and taps have none; leave out mixup, or the cache")
        if self.cache_taps and self.augmentations() and not self.cache_views:
            raise ValueError(
                f"cache_taps stores one fixed view per clip; leave out {', '.join(self.augmentations())} or the cache, "
                "or cache augmented views: cache_views, such as 4"
            )
        if self.cache_taps and self.train_clip not in ("none", "text"):
            raise ValueError(
                f"train_clip {self.train_clip!r} trains the visual tower, whose taps cannot be cached; drop one"
            )
        if self.cache_taps and self.data_config.views > 1:
            raise ValueError(
                "cached taps hold one clip per video, got "
                f"data_config.temporal_views={self.data_config.temporal_views} and "
                f"data_config.spatial_views={self.data_config.spatial_views}; leave them at 1, or leave out the cache"
            )
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature must be above 0 and finite, got {self.temperature}; None takes the base model's"
            )
        self._check_micro_batches()
        self._check_compile()
        self._check_unused()

    def _check_types(self) -> None:
        """Raise ValueError for fields of another type and for counts below their bounds, before values are compared."""
        checks.text("task", self.task, advice="choose one of retrieval, recognition, selfsup")
        checked_data_config(self.data_config)
        checks.any_integer(self, "seed", advice="equal seeds give equal runs")
        numbers = ("warmup", "mixup", "rand_magnitude", *_RATES)
        for name in (*numbers, *(() if self.temperature is None else ("temperature",))):
            checks.number(name, getattr(self, name))
        checks.least(self, **{name: bound for name, bound in _COUNTS.items() if name not in _LONG})
        checks.least(self, most=10**9, **{name: _COUNTS[name] for name in _LONG})
        check_templates(self.templates)
        if self.patience is not None:
            checks.least(self, patience=1)
        checks.least(self, "it is a rank, 0 for none", text_lora=0)
        advice = "build it by clipvid.config.selfsup.SelfSupervision(split=1)"
        checks.of_type("selfsup", self.selfsup, SelfSupervision, must="a SelfSupervision", advice=advice)

    def _check_micro_batches(self) -> None:
        if self.micro_batch_size and self.task != "retrieval":
            other = "is not known to allow it; lower batch_size"
            advice = {
                "recognition": "is a mean over clips: lower batch_size and raise accumulate_grad_batches instead",
                "selfsup": "compares regions across the batch, which micro-batches would split; lower batch_size",
            }
            raise ValueError(
                f"micro_batch_size is for task 'retrieval'; the loss of {self.task!r} {advice.get(self.task, other)}"
            )
        if self.micro_batch_size >= self.batch_size:
            raise ValueError(
                f"micro_batch_size must be below batch_size {self.batch_size}, got {self.micro_batch_size}; lower it, "
                "or give 0 for the batch in one pass"
            )

    def _check_compile(self) -> None:
        if self.compile and (self.micro_batch_size or self.activation_checkpointing):
            other = "micro_batch_size" if self.micro_batch_size else "activation_checkpointing"
            raise ValueError(
                f"compile and {other} do not go together: a compiled second pass draws other random numbers; drop one"
            )
        if self.compile and self.task == "selfsup":
            raise ValueError("selfsup runs the branch in parts, which compile does not fuse; leave out compile")

    def _check_rates(self) -> None:
        """Raise ValueError for rates and probabilities outside their allowed range."""
        for name in _RATES:
            value = getattr(self, name)
            if not 0 <= value < math.inf or (name == "lr" and value == 0):
                constraint = "above 0" if name == "lr" else ">= 0"
                raise ValueError(
                    f"{name} must be {constraint} and finite, got {value}; the default is {getattr(TrainConfig, name)}"
                )
        checks.probability(self, "label_smoothing", certain=False)
        if self.crop_scale is not None:
            checks.shares(self, "crop_scale")
        checks.probability(self, "flip")

    def plain(self) -> dict[str, Any]:
        """Return the settings as a dictionary of JSON types."""
        return json.loads(json.dumps(asdict(self), default=float))  # NumPy has other numbers than JSON

    def augmentations(self) -> list[str]:
        """Return the names of the enabled settings that change pixels at random."""
        return [name for name in ("crop_scale", "flip", "rand_augment", "mixup") if getattr(self, name)]

    def _check_unused(self) -> None:
        """Raise ValueError for settings that are switched on but have no effect with this task or classifier."""
        task_settings = {"recognition": ("mixup", "label_smoothing"), "retrieval": ("temperature", "learn_temperature")}
        if self.classifier == "text" and self.task != "recognition":
            raise ValueError(f"classifier 'text' is for task 'recognition', this one is {self.task!r}; leave it out")
        for task, names in task_settings.items():
            unused = [name for name in names if getattr(self, name)] if self.task != task else []
            if unused:
                raise ValueError(f"{', '.join(unused)} is for task {task!r}, this one is {self.task!r}; leave it out")
        if self.selfsup != SelfSupervision() and self.task != "selfsup":
            raise ValueError(f"selfsup's settings are for task 'selfsup', this one is {self.task!r}; leave them out")
        if self.clip_lr != TrainConfig.clip_lr and self.train_clip == "none":
            raise ValueError(
                "clip_lr is the learning rate of CLIP, but train_clip 'none' trains no part of it; drop it"
            )
        if self.templates != VIDEO_TEMPLATES and self.classifier != "text":
            raise ValueError(f"templates are for classifier 'text', this one is {self.classifier!r}; leave them out")

    def _check_selfsup(self) -> None:
        if self.task != "selfsup":
            return
        if self.batch_size < 2:
            raise ValueError(
                f"selfsup takes its negatives from the other videos of the batch, got batch_size={self.batch_size}; "
                "take 2 or more, as many as memory holds"
            )
        for name in ("cache_taps", "cache_views"):
            if getattr(self, name):
                raise ValueError(
                    f"selfsup samples two random clips per video and epoch, which cannot be cached; leave out {name}"
                )
        if self.augmentations():
            raise ValueError(
                "selfsup augments its two clips as ConST-CL does; leave out "
                f"{', '.join(self.augmentations())} (its own mirroring: selfsup.flip)"
            )


_COUNTS = {
    "epochs": 1,
    "batch_size": 1,
    "micro_batch_size": 0,
    "accumulate_grad_batches": 1,
    "captions_per_video": 0,
    "keep_together": 1,
    "cache_views": 0,
    "rand_augment": 0,
    "validate_every": 1,
    "checkpoint_every": 1,
}
"""Fields that are integers, each with its smallest value."""
_LONG = ("epochs", "validate_every", "checkpoint_every")
"""Counts whose upper bound is that of epochs and steps, not that of sizes."""
_RATES = ("lr", "pretrained_lr_scale", "clip_lr", "head_lr", "weight_decay", "clip_norm")
"""Fields that are numbers >= 0; `lr` is above 0."""


def check_train_clip(name: str, value: object) -> None:
    """Raise ValueError for a `value` of the setting `name` that names no part of the base model to train."""
    if not isinstance(value, str) or not re.fullmatch(r"none|text|all|last:[1-9]\d*", value):
        raise ValueError(
            f"{name} must be none, text, all, or last:N with N >= 1, got {value!r}; it names the part of CLIP that "
            "trains with the branch"
        )


def check_templates(templates: object) -> list[str]:
    """Return prompts around a class name as a list; raise ValueError for none, and for braces other than {}."""
    advice = "give prompts with {} for the class name"
    listed = checks.texts("templates", templates, advice=advice)
    if not listed:
        raise ValueError(f"templates must hold at least one prompt, got none; {advice}, or leave them out")
    for template in listed:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the class name; write it like 'a video of {{}}.'")
        if set("{}") & set(template.replace("{}", "")):
            raise ValueError(f"template {template!r} must have no braces but {{}}, the class name; leave them out")
    return listed
