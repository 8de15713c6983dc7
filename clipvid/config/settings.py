"""Settings as dataclasses: how clips are read, how a branch is trained. The command line derives its options from them.

Contract: plain data that checks itself; importing this file loads nothing heavy. Knows nothing of what the settings do.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from clipvid.config import checks

VIDEO_TEMPLATES = ("a video of {}.", "a photo of {}.", "a clip of {}.")
"""Prompts around a class name for the text classifier; their embeddings are averaged (Radford et al. 2021, 3.1.4)."""

PROMPT_SETS = {
    "video": VIDEO_TEMPLATES,
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "person": ("a video of a person {}.",),
}
"""Prompts by name: clipvid's own, the class name alone (X-CLIP), CLIP's and ViFi-CLIP's, and Text4Vis's."""

CHECKPOINT = "checkpoint.pt"
"""In the folder of a training run: what it goes on from."""
INDEX = "index.json"
"""In the folder of a search index: what it holds."""
_FREE = {"decides_result": False}
"""Metadata of a setting that changes no step of training and no score: a run is resumed with any value of it."""
PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true")
SCORES = {"retrieval": "R@1", "recognition": "top-1", "selfsup": "negative loss"}
"""Tasks, and the figure that picks the best epoch of each: the higher the better, so a loss counts with a minus."""
AVERAGES = ("logits", "probabilities")
"""What recognition may average over the views of a clip."""


@dataclass(frozen=True)
class DataConfig:
    """How clips are read for the tower: everything that decides pixels, and how many workers decode."""

    frames: int = 12
    """T: frames a clip."""
    sampler: str = "uniform"
    """Which frames: uniform (middle of T equal segments, as STAN), linspace (as CLIP4Clip; pads and masks short
    videos), dense."""
    temporal_views: int = 1
    """Clips of a video that evaluation averages over, spread evenly; not with linspace. Training draws one clip."""
    spatial_views: int = 1
    """Crops of each clip that evaluation averages over: 1, the base model's own, or 3, from both ends and the middle
    of the long side (as TimeSformer)."""
    average: str = "logits"
    """Of several views in recognition: logits (as ViViT and TimeSformer's release) or probabilities, after the softmax
    (as STAN and TimeSformer's paper). Retrieval averages normalised embeddings."""
    tokens: int | None = None
    """Longest caption in tokens, its end token kept when it is cut; None for all that the text tower takes."""
    backend: str = "pyav"
    """Decoder: pyav, decord or torchcodec."""
    time_limit: float = field(default=600.0, metadata=_FREE)
    """Seconds that a video may take to decode; one that takes longer is unreadable. 0 for no limit."""
    unreadable: str = field(default="raise", metadata=_FREE)
    """raise: stop at a video that cannot be read. skip: leave it out and report it."""
    batch_size: int = 16
    """Clips a pass of the tower; every view counts as one."""
    workers: int = field(default=0, metadata=_FREE)
    """Processes that decode; 0 decodes in threads of this one, beside the tower."""
    precision: str = "auto"
    """auto, bf16-mixed, 16-mixed or 32-true; auto is bf16 where the hardware has it."""

    def __post_init__(self) -> None:
        checks.least(self, frames=1, batch_size=1, workers=0)
        if not 0 <= self.time_limit < math.inf:
            raise ValueError(f"time_limit is in seconds, 0 for none, got {self.time_limit}")
        if self.tokens is not None:
            checks.least(self, tokens=3)  # a word between start and end
        if self.temporal_views < 1 or self.spatial_views not in (1, 3):
            raise ValueError(
                f"temporal_views starts at 1 and spatial_views is 1 or 3, got {self.temporal_views} and "
                f"{self.spatial_views}"
            )
        if self.temporal_views > 1 and self.sampler == "linspace":
            raise ValueError(
                f"linspace goes from the first frame to the last and has one temporal view, got {self.temporal_views}; "
                "take sampler uniform or dense"
            )
        checks.choices(self, {"average": AVERAGES})

    @property
    def views(self) -> int:
        """V: clips of a video that evaluation averages over."""
        return self.temporal_views * self.spatial_views


@dataclass(frozen=True)
class SelfSupervision:
    """Everything that decides ConST-CL, the objective that needs neither captions nor labels (Yuan et al. 2022)."""

    global_weight: float = 1.0
    """Of the loss between whole clips."""
    local_weight: float = 0.001
    """Of the loss between regions: 0.001 as released; 1 is the plain sum, as descriptions of the paper have it."""
    temperature_global: float = 0.1
    temperature_local: float = 0.2
    regions: int = 8
    """Boxes in the middle frame of each clip."""
    generator: Literal["random", "lowlevel"] = "random"
    """Where boxes come from: chance, which is enough, or segments of like colour in each clip (SLIC; some 24 ms a clip
    on a core of a CPU). Boxes of one's own: `clipvid.training.selfsup.objective.SelfSupervised.parts`."""
    context: int = 5
    """Frames of the other clip, odd, in which a region is looked for; all of them in a clip that has fewer."""
    split: int = 1
    """Last layers of the branch that each loss has to itself (the Y split); 0 shares them all."""
    target: Literal["grad", "stopgrad"] = "grad"
    """grad: both sides of a pair of regions learn (released). stopgrad: only the one that is predicted."""
    norm: Literal["layer", "batch"] = "layer"
    """Of the projection head: layer does with any batch, batch (released) wants a large one."""
    hidden: int = 2048
    """Width of the projection head."""
    out: int = 128
    """Width of what it puts out."""
    stride: int = 2
    """Frames of the video from one of a clip to the next; the reading's sampler does not apply."""
    flip: float = 0.5
    """Probability of mirroring each of the two clips, as released. 0 where left and right mean something."""

    def __post_init__(self) -> None:
        checks.choices(self, _SELFSUP_CHOICES)
        checks.least(self, regions=1, context=1, hidden=1, out=1, stride=1)
        if self.context % 2 == 0:
            raise ValueError(f"context is odd, the middle frame and as many on either side, got {self.context}")
        if self.split < 0:
            raise ValueError(f"split is a number of layers, 0 for none, got {self.split}")
        checks.probability(self, "flip")
        for name in ("temperature_global", "temperature_local"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        weights = self.global_weight, self.local_weight
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise ValueError(f"global_weight and local_weight are 0 or more, and not both 0, got {weights}")


_SELFSUP_CHOICES = {"generator": ("random", "lowlevel"), "target": ("grad", "stopgrad"), "norm": ("layer", "batch")}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run; saved with the model it made."""

    task: Literal["retrieval", "recognition", "selfsup"] = "retrieval"
    """retrieval: contrastive loss between clips and captions. recognition: cross entropy over the data's classes.
    selfsup: ConST-CL between two clips of each video, which needs neither captions nor labels."""
    epochs: int = 10
    """Passes over the training data. A run resumed with another number plans the rest of its learning rates anew."""
    batch_size: int = 32
    """Clips a step; the contrastive loss takes its negatives from the batch, so larger is better there."""
    chunk: int = 0
    """Clips a pass of the branch, and captions a pass of a text tower that trains: the gradient is that of the whole
    batch, memory that of a chunk, each clip passes twice (Gao et al. 2021). 0: the batch in one pass. Retrieval
    only."""
    activation_checkpointing: bool = field(default=False, metadata=_FREE)
    """Keep nothing of the branch's layers for the backward pass, and run them again there: less memory, more time."""
    compile: bool = False
    """Let torch.compile fuse the branch: shorter steps, after a minute or more of compiling on two cores for each size
    of batch and for validation; needs a C++ compiler. A run that was resumed equals one that was not within rounding.
    Not with chunk or recompute, whose second pass would draw other chances."""
    accumulate_grad_batches: int = 1
    """Steps whose gradients are added up before the weights move."""
    lr: float = 3e-4
    """Peak learning rate of the branch (the STAN paper trains its branch at 2e-5 beside an unfrozen CLIP)."""
    pretrained_lr_scale: float = 0.1
    """Learning rate, relative to `lr`, of the intra-frame blocks: copies of CLIP's, which a high rate would unlearn."""
    train_clip: str = "none"
    """The part of the base model that trains beside the branch: none; text (the text tower); last:N (the last N blocks
    of both towers); all (the STAN paper's own mode). Recognition never trains the text tower."""
    clip_lr: float = 2e-6
    """Peak learning rate of the base model's weights that train (the STAN paper's; a tenth of its branch's)."""
    text_lora: int = 0
    """Rank of LoRA adapters on the text tower, trained at `lr`; 0 for none. Needs the extra lora."""
    head_lr: float = 1e-3
    """Peak learning rate of a linear classifier, which starts from nothing."""
    weight_decay: float = 0.05
    """AdamW decay of matrices; norms, biases and position tables have none."""
    warmup: float = 0.1
    """Fraction of all steps over which the learning rate rises linearly; cosine from there to zero."""
    clip_norm: float = 5.0
    """Largest norm of the gradient; 0 switches clipping off."""
    temperature: float | None = None
    """Temperature of the contrastive loss; None takes the base model's own."""
    learn_temperature: bool = False
    """Train the temperature too, from that start."""
    label_smoothing: float = 0.0
    """s in (1 - s) y + s / C."""
    classifier: Literal["linear", "text"] = "linear"
    """linear: a trained linear layer. text: cosine to the embeddings of the class names, which stay fixed."""
    templates: tuple[str, ...] = VIDEO_TEMPLATES
    """Prompts of the text classifier."""
    captions_per_video: int = 1
    """Captions drawn for a clip at each visit; 0 takes all of them."""
    keep_together: int = 1
    """Clips that stand side by side in the data and share a batch: 2 makes each pair the other's hard negative."""
    cache_taps: bool = False
    """Encode every clip once and train from taps in memory; frames are then the same at every visit,
    or those of cache_views."""
    cache_views: int = 0
    """Views of each training clip that taps are kept of, in memory or in --cache: drawn with random frames and the
    augmentations below, and read in turn, one an epoch. 0: one fixed view."""
    crop_scale: tuple[float, float] | None = None
    """Random resized crop: smallest and largest share of the frame; one crop a clip. With cached taps: only of
    cache_views."""
    flip: float = 0.0
    """Probability of mirroring a clip. Harmful where left and right mean something. With cached taps: only
    of cache_views."""
    rand_augment: int = 0
    """Operations of RandAugment, alike for all frames of a clip (ViViT: 2); 0 none. With cached taps: only of
    cache_views."""
    rand_magnitude: int = 10
    """How strong those are, 0 to 30."""
    mixup: float = 0.0
    """Beta(mixup, mixup) gives the share of one clip and its label in a blend of two (Zhang et al. 2018; ViViT takes
    0.1 for Epic Kitchens, 0.3 for Something-Something); 0 never blends. Not with cache_taps."""
    selfsup: SelfSupervision = field(default_factory=SelfSupervision)
    """Of task selfsup: weights, temperatures, regions, Y split."""
    data_config: DataConfig = field(default_factory=DataConfig)
    """How clips are read: frames, sampler, decoder, workers, precision."""
    seed: int = 0
    """Of everything random in training. The branch's first weights are drawn where the model is made: on the command
    line by this seed too, in Python by torch.manual_seed before create_model."""
    validate_every: int = 1
    """Epochs between two validations."""
    patience: int | None = field(default=None, metadata=_FREE)
    """Validations without a better score before training stops; None never stops early."""
    checkpoint_every: int = field(default=200, metadata=_FREE)
    """Steps between two checkpoints, beside the one at each epoch's end."""

    def __post_init__(self) -> None:
        checks.choices(self, {"task": tuple(SCORES), "classifier": ("linear", "text")})
        self._check_selfsup()
        check_train_clip("train_clip", self.train_clip)
        if self.text_lora < 0:
            raise ValueError(f"text_lora is a rank, 0 for none, got {self.text_lora}")
        checks.least(
            self,
            epochs=1,
            batch_size=1,
            accumulate_grad_batches=1,
            keep_together=1,
            validate_every=1,
            checkpoint_every=1,
        )
        self._check_rates()
        if self.task == "retrieval" and self.batch_size < 2:
            raise ValueError(
                f"retrieval takes its negatives from the batch, got batch_size={self.batch_size}; take 2 or more"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction in [0, 1), got {self.warmup}")
        if self.batch_size % self.keep_together:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of keep_together {self.keep_together}")
        if self.rand_augment < 0 or not 0 <= self.rand_magnitude <= 30:
            raise ValueError(
                f"rand_augment starts at 0 and rand_magnitude is 0 to 30, got {self.rand_augment} and "
                f"{self.rand_magnitude}"
            )
        if not 0 <= self.mixup < math.inf:
            raise ValueError(f"mixup is the parameter of a Beta distribution, 0 or more, got {self.mixup}")
        checks.least(self, cache_views=0)
        if self.cache_taps and self.mixup:
            raise ValueError("mixup blends the pixels of two clips, and taps have none; leave out mixup, or the cache")
        if self.cache_taps and self.augmentations() and not self.cache_views:
            raise ValueError(
                f"cache_taps keeps one fixed view of each clip; leave out {', '.join(self.augmentations())} or the "
                "cache, or draw views to keep: cache_views, such as 4"
            )
        if self.cache_taps and self.train_clip not in ("none", "text"):
            raise ValueError(
                f"train_clip {self.train_clip!r} trains the visual tower, whose taps cannot be cached; drop one"
            )
        if self.cache_taps and self.data_config.views > 1:
            raise ValueError(
                f"cached taps are of one clip a video, got "
                f"data_config.temporal_views={self.data_config.temporal_views} and "
                f"data_config.spatial_views={self.data_config.spatial_views}; leave them at 1, or the cache out"
            )
        if self.patience is not None:
            checks.least(self, patience=1)
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature}")
        self._check_chunk()
        self._check_compile()
        self._check_unused()

    def _check_chunk(self) -> None:
        checks.least(self, chunk=0)
        if self.chunk and self.task != "retrieval":
            others = {
                "recognition": "is a mean over clips, so accumulate adds up smaller batches to the same gradient",
                "selfsup": "compares regions across the batch, which chunk does not keep; lower batch_size",
            }
            raise ValueError(f"chunk is for task 'retrieval'; the loss of {self.task!r} {others[self.task]}")
        if self.chunk >= self.batch_size:
            raise ValueError(
                f"chunk is a part of the batch, got chunk={self.chunk} and batch_size={self.batch_size}; take a "
                "smaller chunk, or 0 for the batch in one pass"
            )

    def _check_compile(self) -> None:
        if self.compile and (self.chunk or self.activation_checkpointing):
            other = "chunk" if self.chunk else "activation_checkpointing"
            raise ValueError(f"compile and {other} do not go together: a compiled pass draws other chances; drop one")
        if self.compile and self.task == "selfsup":
            raise ValueError("selfsup runs the branch in parts, which compile does not fuse; leave out compile")

    def _check_rates(self) -> None:
        """Refuse rates and sizes that would train backwards, or nothing."""
        for name in (
            "lr",
            "pretrained_lr_scale",
            "clip_lr",
            "head_lr",
            "weight_decay",
            "clip_norm",
            "captions_per_video",
        ):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (name == "lr" and value == 0):
                least = "above 0" if name == "lr" else "0 or more"
                raise ValueError(f"{name} is {least} and finite, got {value}")
        checks.probability(self, "label_smoothing", certain=False)
        if self.crop_scale is not None:
            checks.shares(self, "crop_scale")
        checks.probability(self, "flip")

    def plain(self) -> dict[str, Any]:
        """The settings as JSON would give them back."""
        return json.loads(json.dumps(asdict(self)))

    def augmentations(self) -> list[str]:
        """Names of the settings that change pixels at random."""
        return [name for name in ("crop_scale", "flip", "rand_augment", "mixup") if getattr(self, name)]

    def _check_unused(self) -> None:
        """Refuse what is switched on and would change nothing, because another task alone looks at it."""
        own = {"recognition": ("mixup", "label_smoothing"), "retrieval": ("temperature", "learn_temperature")}
        if self.classifier == "text" and self.task != "recognition":
            raise ValueError(f"classifier 'text' is for task 'recognition', this one is {self.task!r}; leave it out")
        for task, names in own.items():
            asked = [name for name in names if getattr(self, name)] if self.task != task else []
            if asked:
                raise ValueError(f"{', '.join(asked)} is for task {task!r}, this one is {self.task!r}; leave it out")
        if self.selfsup != SelfSupervision() and self.task != "selfsup":
            raise ValueError(f"selfsup's settings are for task 'selfsup', this one is {self.task!r}; leave them out")
        if self.clip_lr != TrainConfig.clip_lr and self.train_clip == "none":
            raise ValueError("clip_lr is the learning rate of CLIP, of which train_clip 'none' trains nothing; drop it")
        if self.templates != VIDEO_TEMPLATES and self.classifier != "text":
            raise ValueError(f"templates are for classifier 'text', this one is {self.classifier!r}; leave them out")

    def _check_selfsup(self) -> None:
        if self.task != "selfsup":
            return
        if self.batch_size < 2:
            raise ValueError(
                f"selfsup takes its negatives from the other videos of a batch, got batch_size={self.batch_size}; take "
                "2 or more, as many as memory holds"
            )
        for name in ("cache_taps", "cache_views"):
            if getattr(self, name):
                raise ValueError(
                    f"selfsup cuts two random clips of a video at each visit, which cannot be cached; leave out {name}"
                )
        if self.augmentations():
            raise ValueError(
                "selfsup augments its two clips by ConST-CL's own recipes; leave out "
                f"{', '.join(self.augmentations())} (its own mirroring: selfsup.flip)"
            )


def check_train_clip(name: str, value: str) -> None:
    """Raise ValueError for a `value` of the setting `name` that names no part of the base model to train."""
    if not re.fullmatch(r"none|text|all|last:[1-9]\d*", value):
        raise ValueError(
            f"{name} must be none, text, all, or last:N with N >= 1, got {value!r}; it names the part of CLIP that "
            "trains beside the branch"
        )
