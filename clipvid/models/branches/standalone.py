"""TimeSformer and ViViT as published: a video transformer with its own stem, which replaces CLIP's visual tower.

Contract: Pixels in, one embedding per clip, repeated for all its frames, (B, T, E) out. CLIP's visual tower does not
run; embeddings are trained to match those of its text tower. For training from scratch or from released weights
(convert_hf.py), and for parity with the papers; to start from CLIP's weights use the intermediate structures with
stem='frame' or 'tubelet'. Knows nothing of files, text or losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Pixels
from clipvid.models.branches.base import Branch, BranchOptions
from clipvid.nn.spacetime import SCHEMES, keys_per_patch, scheme_blocks
from clipvid.nn.stem import Stem
from clipvid.nn.temporal import TemporalTransformer, plain_blocks
from clipvid.nn.video_transformer import VideoTransformer


@dataclass(frozen=True)
class StandaloneOptions(BranchOptions):
    """Options of a video transformer, saved with it. The defaults are TimeSformer's base variant."""

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
        checks.choices(self, _CHOICES)
        checks.least(self, frames=1, image_size=1, patch=1, tubelet=1, width=1, depth=1, heads=1, temporal_depth=0)
        checks.probability(self, "drop_path", certain=False)
        if not self.eps > 0:
            raise ValueError(f"eps must be above 0, got {self.eps}")
        if self.keep is not None:
            checks.least(self, keep=1)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if (self.keep or self.frames) % self.tubelet:
            raise ValueError(
                f"the frames that are used must be a multiple of tubelet, got {self.keep or self.frames} and "
                f"{self.tubelet}"
            )
        if self.image_size % self.patch:
            raise ValueError(f"image_size must be a multiple of patch, got {self.image_size} and {self.patch}")
        if not self.class_token and SCHEMES[self.scheme].cls == "video" and SCHEMES[self.scheme].cls_key:
            raise ValueError(f"scheme {self.scheme!r} has the class token as a key; leave class_token on")
        if self.temporal_depth and (SCHEMES[self.scheme].cls != "frame" or not self.class_token):
            raise ValueError(
                f"temporal_depth needs a class token for each frame, which scheme {self.scheme!r} with class_token "
                f"{self.class_token} lacks; choose scheme 'space'"
            )


_CHOICES = {
    "scheme": tuple(SCHEMES),
    "table": ("space", "space_time", "token"),
    "activation": ("gelu", "gelu_tanh"),
    "drop": ("released", "clip"),
}
_VIVIT = StandaloneOptions(
    "joint", frames=32, tubelet=2, table="token", activation="gelu_tanh", drop="clip", drop_path=0.0
)

PRESETS: dict[str, StandaloneOptions] = {
    "timesformer": StandaloneOptions(),
    "timesformer-hr": StandaloneOptions(frames=16, image_size=448),
    "timesformer-l": StandaloneOptions(frames=96),
    "vivit-b1": _VIVIT,
    "vivit-b2": replace(_VIVIT, scheme="space", table="space", temporal_depth=4),
    "vivit-b3": replace(_VIVIT, scheme="factorised", class_token=False),
    "vivit-b4": replace(_VIVIT, scheme="dot_product", class_token=False),
}
StandaloneOptions.kind, StandaloneOptions.presets = "standalone", PRESETS


class Standalone(Branch):
    """A video transformer, and a linear into CLIP's joint embedding."""

    levels = ()
    reads_pixels = True
    reads_frames = False
    one_token = True

    def __init__(self, backbone: Backbone, options: StandaloneOptions | None = None) -> None:
        super().__init__()
        self.options = o = options or StandaloneOptions()
        self.image_size = o.image_size
        self.video = video_transformer(o)
        self.project = nn.Linear(o.width, backbone.embed_dim, bias=False)

    def forward(self, taps: Pixels) -> Float[Tensor, "b t e"]:
        embedding = self.project(self.video(taps.video, mask=taps.mask))
        return embedding[:, None].expand(-1, taps.video.shape[1], -1)

    def keys_per_patch(self, frames: int) -> list[int]:
        o, grid = self.options, self.video.stem.grid
        return keys_per_patch(o.scheme, frames=(o.keep or frames) // o.tubelet, grid=grid, cls=o.class_token)


def video_transformer(options: StandaloneOptions) -> VideoTransformer:
    """Build the untrained network of these options, without a head."""
    o, scheme = options, SCHEMES[options.scheme]
    side = o.image_size // o.patch
    stem = Stem(
        o.width,
        patch=(o.patch, o.patch),
        grid=(side, side),
        frames=o.frames if o.keep is None else o.keep,
        tubelet=o.tubelet,
        cls=o.class_token,
        table=o.table,
        keep=o.keep,
    )
    activation = nn.GELU if o.activation == "gelu" else partial(nn.GELU, approximate="tanh")
    temporal = None
    if o.temporal_depth:
        blocks = plain_blocks(o.width, o.temporal_depth, heads=o.heads, activation=activation, eps=o.eps)
        rows = (o.frames if o.keep is None else o.keep) // o.tubelet
        temporal = TemporalTransformer(o.width, blocks, rows=rows, cls=True, eps=o.eps, resize=True)
    blocks = scheme_blocks(
        scheme,
        o.width,
        o.depth,
        heads=o.heads,
        eps=o.eps,
        activation=activation,
        drop_path=o.drop_path,
        drop=o.drop,
    )
    return VideoTransformer(stem, blocks, cls=scheme.cls, width=o.width, eps=o.eps, temporal=temporal)
