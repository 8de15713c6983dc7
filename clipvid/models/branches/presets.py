"""Options of the package's own branches, and the names under which users choose them.

Contract: plain data, and no torch, so that wrong names and values are refused at once. Each class of options names the
branch that is built from it. Where papers and released code differ, an option names the choice, and presets hold the
published combinations.
Papers: Liu et al., STAN (CVPR 2023), section 3; Bertasius et al., TimeSformer (ICML 2021), section 3; Arnab et al.,
ViViT (ICCV 2021), sections 3.2 and 3.3; Luo et al., CLIP4Clip (2021), section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from clipvid.config import checks
from clipvid.models.branches.mixers import check_mixer
from clipvid.models.branches.options import BranchOptions
from clipvid.nn.schemes import SCHEMES
from clipvid.registry import register_branch

LARGEST = 65_536
"""Largest size that an option of a branch can have."""


@dataclass(frozen=True)
class MeanOptions(BranchOptions):
    """Options of a mean branch, saved with it."""

    branch = "clipvid.models.branches.mean:Mean"
    hidden: int = 0
    """Hidden width of an MLP that refines the frame-mean; 0 trains nothing and is zero-shot CLIP."""

    def __post_init__(self) -> None:
        checks.least(self, most=LARGEST, hidden=0)


@dataclass(frozen=True)
class PosteriorOptions(BranchOptions):
    """Options of a posterior branch, saved with it."""

    branch = "clipvid.models.branches.posterior:Posterior"
    depth: int | None = None
    """Number of transformer blocks over the frames of a clip; None for 4, or with init=text for all blocks of a text
    tower that has fewer."""
    init: Literal["random", "text"] = "random"
    """Initial weights: random, or those of the first blocks and positions of CLIP's text tower (text, CLIP4Clip)."""
    fusion: Literal["gated", "release"] = "gated"
    """gated: frame + a zero-initialised linear of the transformer's output, so step 0 is zero-shot CLIP. release:
    frame + transformer, as in CLIP4Clip."""
    token: bool = False
    """Read a class token, the same for all frames (ViViT's model 2), in place of each frame's own vector."""
    time_size: int = 64
    """Rows of the position table; longer clips interpolate it. With init=text it is CLIP's table."""

    def __post_init__(self) -> None:
        checks.choices(self, {"init": ("random", "text"), "fusion": ("gated", "release")})
        checks.least(self, most=LARGEST, time_size=1, **({} if self.depth is None else {"depth": 1}))


@dataclass(frozen=True)
class StanOptions(BranchOptions):
    """Options of a STAN branch, saved with it."""

    branch = "clipvid.models.branches.stan:STAN"
    depth: int = 4
    """K, the number of the tower's last levels that are tapped; one branch layer reads each."""
    mixer: str = "attention"
    """Cross-frame module: attention, conv (paper, eq. 9), conv_full (first released code) or rsa."""
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the cross-frame module by name, such as kernel and bottleneck of rsa."""
    fusion: Literal["gated", "release", "balanced"] = "gated"
    """gated: added to CLIP's frame embeddings through a zero-initialised linear, so step 0 is zero-shot CLIP on every
    tower. release: added to the class token before CLIP's final norm and projection, as published. balanced: as
    release, but w CLIP + (1 - w) branch, with a trained sigmoid w per channel that starts at one half (BT-Adapter)."""
    order: Literal["cross_first", "intra_first"] = "cross_first"
    """The first module of a layer: the cross-frame one (cross_first, as released) or the intra-frame one (intra_first,
    as in the paper's text)."""
    merge: Literal["add", "project", "balanced"] = "add"
    """Merge of a level into the branch. add: a plain sum (released code). project: added through a DxD projection
    (paper, eq. 5-6). balanced: w level + (1 - w) branch, with a trained sigmoid w per channel (BT-Adapter)."""
    position: Literal["clip", "learned"] = "learned"
    """Spatial positions: CLIP's table added a second time (released code), or a table that the branch trains."""
    class_start: Literal["mean", "release", "own"] = "mean"
    """Initial class token: the mean over frames (paper), or the average of that mean and CLIP's class embedding
    (released code) or a trained token (BT-Adapter)."""
    time_init: Literal["sinusoid", "normal"] = "sinusoid"
    """Initial time embedding: sinusoids, which tell early frames from late ones (our choice), or noise (released
    code)."""
    time_std: float = 1.0
    """Root mean square of the initial time embedding. One that is small relative to the tokens is learned slowly; the
    gate makes a large one harmless."""
    time_size: int = 64
    """Rows of the time table; longer clips interpolate it."""
    drop_path: float = 0.1
    """Stochastic depth of the last layer; it grows linearly from 0 at the first."""
    width: int | None = None
    """D, branch width. None is the width of the tower's last level; for a tower without blocks to copy (a ResNet, with
    2048 channels) it is at most the width of CLIP's embedding. Only a branch of a ViT's width can copy its blocks."""

    def __post_init__(self) -> None:
        check_mixer(self.mixer, self.mixer_options)
        checks.choices(self, _STAN_CHOICES)
        checks.least(self, most=LARGEST, depth=1, time_size=1)
        if self.width is not None:
            checks.least(self, most=LARGEST, width=1)
        checks.probability(self, "drop_path", certain=False)


_STAN_CHOICES = {
    "fusion": ("gated", "release", "balanced"),
    "order": ("cross_first", "intra_first"),
    "merge": ("add", "project", "balanced"),
    "position": ("clip", "learned"),
    "class_start": ("mean", "release", "own"),
    "time_init": ("sinusoid", "normal"),
}


@dataclass(frozen=True)
class IntermediateOptions(BranchOptions):
    """Options of an intermediate branch, saved with it."""

    branch = "clipvid.models.branches.intermediate:Intermediate"
    scheme: str = "divided"
    """space, joint, divided, local_global, axial (TimeSformer), factorised, dot_product (ViViT's models 3 and 4).
    Before training, space and factorised equal CLIP; in divided, local_global and axial only the attention of the
    copied block acts, with one class token per clip; joint and dot_product already mix frames."""
    depth: int | None = 4
    """K, the number of the tower's last blocks that are copied; the others stay frozen. None copies all; stems frame
    and tubelet always do."""
    mixer: str | None = None
    """Cross-frame module in place of divided's attention: attention, conv, conv_full or rsa."""
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the cross-frame module by name."""
    stem: Literal["tower", "frame", "tubelet"] = "tower"
    """tower: the frozen tower runs up to the copied blocks. frame, tubelet: the entire tower is copied, and a trained
    stem reads one frame or `tubelet` frames at a time (ViViT); no taps can be cached then."""
    tubelet: int = 2
    """Frames per tubelet."""
    inflation: Literal["central", "inflate", "random"] = "central"
    """Initialisation of the tubelet stem from CLIP's convolution (ViViT, section 3.4)."""
    position: Literal["time", "token"] = "time"
    """Position table, trained from zero: one vector per frame (TimeSformer), or one per token of each frame (ViViT)."""
    time_size: int = 64
    """Rows of the position table; it is interpolated for longer clips."""
    temporal_depth: int = 0
    """Number of blocks of a temporal transformer over the frame embeddings (ViViT's model 2); 0 for none."""
    drop_path: float = 0.1
    """Rate of stochastic depth in the last block; it grows linearly from 0 in the first."""
    drop: Literal["released", "clip"] = "released"
    """Stochastic depth. released: per sequence, with the remaining residuals rescaled (TimeSformer). clip: per clip,
    without rescaling (ViViT)."""

    def __post_init__(self) -> None:
        checks.choices(self, _INTERMEDIATE_CHOICES)
        if self.mixer is not None:
            check_mixer(self.mixer, self.mixer_options)
            if self.scheme != "divided":
                raise ValueError(
                    f"scheme must be 'divided' to take a mixer, got {self.scheme!r}; choose 'divided', or leave "
                    "mixer out"
                )
        elif self.mixer_options:
            raise ValueError(f"mixer_options {dict(self.mixer_options)} have no effect without a mixer; give mixer too")
        checks.least(self, most=LARGEST, time_size=1, tubelet=1, temporal_depth=0)
        if self.depth is not None:
            checks.least(self, most=LARGEST, depth=1)
        if self.stem != "tower" and self.depth not in (None, 4):
            raise ValueError(f"stem {self.stem!r} copies all blocks of the tower; leave depth {self.depth} out")
        if self.stem != "tubelet" and (self.tubelet, self.inflation) != (2, "central"):
            raise ValueError(
                f"tubelet {self.tubelet} and inflation {self.inflation!r} have no effect with stem "
                f"{self.stem!r}; leave them out, or choose stem 'tubelet'"
            )
        checks.probability(self, "drop_path", certain=False)


_INTERMEDIATE_CHOICES = {
    "scheme": tuple(SCHEMES),
    "stem": ("tower", "frame", "tubelet"),
    "inflation": ("central", "inflate", "random"),
    "position": ("time", "token"),
    "drop": ("released", "clip"),
}


@dataclass(frozen=True)
class StandaloneOptions(BranchOptions):
    """Options of a video transformer, saved with it. The defaults are TimeSformer's base variant."""

    branch = "clipvid.models.branches.standalone:Standalone"
    scheme: str = "divided"
    """space, joint, divided, local_global, axial (TimeSformer), factorised, dot_product (ViViT's models 3 and 4)."""
    frames: int = 8
    """Frames per clip for which the time tables have rows; they are resized for other clips."""
    image_size: int = 224
    """Side of the frames, in pixels."""
    patch: int = 16
    """Side of a patch, in pixels."""
    tubelet: int = 1
    """Frames per token."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    table: Literal["space", "space_time", "token"] = "space_time"
    """Position tables: one of patches, one each of patches and of frames (TimeSformer), or one of tokens (ViViT)."""
    class_token: bool = True
    """True for a class token; False to average all tokens, as ViViT's models 3 and 4 do."""
    temporal_depth: int = 0
    """Number of blocks of a second transformer over the frames' class tokens (ViViT's model 2); 0 for none."""
    keep: int | None = None
    """Number of frames of a clip that are used, evenly spread (ViViT's uniform frame sampling); None for all."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    """Activation of the MLPs: the exact gelu (TimeSformer), or its approximation gelu_tanh (ViViT)."""
    eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    drop_path: float = 0.1
    """Rate of stochastic depth in the last block; it grows linearly from 0 in the first."""
    drop: Literal["released", "clip"] = "released"
    """Stochastic depth. released: per sequence, with the remaining residuals rescaled (TimeSformer). clip: per clip,
    without rescaling (ViViT)."""

    def __post_init__(self) -> None:
        checks.choices(self, _STANDALONE_CHOICES)
        checks.least(
            self, most=LARGEST, frames=1, image_size=1, patch=1, tubelet=1, width=1, depth=1, heads=1, temporal_depth=0
        )
        checks.probability(self, "drop_path", certain=False)
        if not self.eps > 0:
            raise ValueError(f"eps must be above 0, got {self.eps}; the default is 1e-6")
        if self.keep is not None:
            checks.least(self, most=LARGEST, keep=1)
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got {self.width} and {self.heads}; change one of them"
            )
        if (self.keep or self.frames) % self.tubelet:
            raise ValueError(
                f"the frames that are used must be a multiple of tubelet, got {self.keep or self.frames} and "
                f"{self.tubelet}; change one of them"
            )
        if self.image_size % self.patch:
            raise ValueError(
                f"image_size must be a multiple of patch, got {self.image_size} and {self.patch}; change one of them"
            )
        if not self.class_token and SCHEMES[self.scheme].cls == "video" and SCHEMES[self.scheme].cls_key:
            raise ValueError(f"scheme {self.scheme!r} has the class token as a key; leave class_token on")
        if self.temporal_depth and (SCHEMES[self.scheme].cls != "frame" or not self.class_token):
            raise ValueError(
                f"temporal_depth needs a class token for each frame, which scheme {self.scheme!r} with class_token "
                f"{self.class_token} lacks; choose scheme 'space'"
            )


_STANDALONE_CHOICES = {
    "scheme": tuple(SCHEMES),
    "table": ("space", "space_time", "token"),
    "activation": ("gelu", "gelu_tanh"),
    "drop": ("released", "clip"),
}


register_branch("mean", MeanOptions(), summary="CLIP's frame embeddings, averaged; trains nothing (CLIP4Clip's meanP)")
register_branch("posterior", PosteriorOptions(), summary="temporal transformer over the frame embeddings, gated")
register_branch(
    "seqtransf",
    PosteriorOptions(init="text", fusion="release"),
    summary="temporal transformer that starts as CLIP's text blocks (CLIP4Clip's seqTransf)",
)
register_branch("stan", StanOptions(), summary="side branch on the taps, gated: equals CLIP at step 0 (the default)")
register_branch(
    "stan-release",
    StanOptions(fusion="release", position="clip", class_start="release", time_init="normal"),
    summary="STAN as in its first released code",
)
register_branch(
    "stan-paper",
    StanOptions(
        fusion="release", order="intra_first", merge="project", mixer="conv", time_init="normal", time_std=0.02
    ),
    summary="STAN as in the paper's text and equations",
)
register_branch(
    "bt-adapter",
    StanOptions(fusion="balanced", merge="balanced", position="clip", class_start="own", time_init="normal"),
    summary="BT-Adapter: STAN with trained balances of CLIP and branch",
)
for _name, _options, _summary in (
    ("space", IntermediateOptions("space"), "attention within frames alone (TimeSformer's space)"),
    ("joint", IntermediateOptions("joint"), "attention over all tokens of a clip (TimeSformer's joint space-time)"),
    ("divided", IntermediateOptions("divided"), "attention along time, then within frames (TimeSformer's divided)"),
    ("local_global", IntermediateOptions("local_global"), "local, then strided global attention (TimeSformer)"),
    ("axial", IntermediateOptions("axial"), "attention along time, width, height in turn (TimeSformer)"),
    (
        "vivit1",
        IntermediateOptions("joint", position="token", time_size=16, drop="clip"),
        "ViViT's model 1 on CLIP's blocks: joint space-time",
    ),
    (
        "vivit2",
        IntermediateOptions("space", temporal_depth=4, drop="clip"),
        "ViViT's model 2 on CLIP's blocks: a temporal transformer after the frames",
    ),
    (
        "vivit3",
        IntermediateOptions("factorised", position="token", time_size=16, drop="clip"),
        "ViViT's model 3 on CLIP's blocks: space, then time, in each block",
    ),
    (
        "vivit4",
        IntermediateOptions("dot_product", position="token", time_size=16, drop="clip"),
        "ViViT's model 4 on CLIP's blocks: half of the heads over space, half over time",
    ),
):
    register_branch(_name, _options, summary=_summary)

_VIVIT = StandaloneOptions(
    "joint", frames=32, tubelet=2, table="token", activation="gelu_tanh", drop="clip", drop_path=0.0
)
for _name, _options, _summary in (
    ("timesformer", StandaloneOptions(), "TimeSformer, base variant: 8 frames of 224 pixels"),
    ("timesformer-hr", StandaloneOptions(frames=16, image_size=448), "TimeSformer-HR: 16 frames of 448 pixels"),
    ("timesformer-l", StandaloneOptions(frames=96), "TimeSformer-L: 96 frames of 224 pixels"),
    ("vivit-b1", _VIVIT, "ViViT-B, model 1: joint space-time attention"),
    (
        "vivit-b2",
        replace(_VIVIT, scheme="space", table="space", temporal_depth=4),
        "ViViT-B, model 2: factorised encoder",
    ),
    (
        "vivit-b3",
        replace(_VIVIT, scheme="factorised", class_token=False),
        "ViViT-B, model 3: factorised self-attention",
    ),
    (
        "vivit-b4",
        replace(_VIVIT, scheme="dot_product", class_token=False),
        "ViViT-B, model 4: factorised dot-product attention",
    ),
):
    register_branch(_name, _options, summary=_summary)
