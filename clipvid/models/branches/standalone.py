"""TimeSformer and ViViT as published: a video transformer with its own stem, which replaces CLIP's visual tower.

Contract: Pixels in, one embedding per clip, repeated for all its frames, (B, T, E) out. CLIP's visual tower does not
run; embeddings are trained to match those of its text tower. For training from scratch or from released weights
(convert_hf.py), and for parity with the papers; to start from CLIP's weights use the intermediate structures with
stem='frame' or 'tubelet'. Knows nothing of files, text or losses.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Pixels
from clipvid.models.branches.base import Branch
from clipvid.models.branches.presets import StandaloneOptions
from clipvid.nn.schemes import SCHEMES
from clipvid.nn.spacetime import keys_per_patch, scheme_blocks
from clipvid.nn.stem import Stem
from clipvid.nn.temporal import TemporalTransformer, plain_blocks
from clipvid.nn.video_transformer import VideoTransformer


class Standalone(Branch):
    """A video transformer, and a linear into CLIP's joint embedding."""

    levels: tuple[int, ...] = ()
    reads_pixels: bool = True
    reads_frames: bool = False
    one_token: bool = True

    def __init__(self, backbone: Backbone, options: StandaloneOptions | None = None) -> None:
        super().__init__()
        o = options or StandaloneOptions()
        self.options: StandaloneOptions = o
        self.image_size: int | None = o.image_size
        self.video: VideoTransformer = video_transformer(o)
        self.project: nn.Linear = nn.Linear(o.width, backbone.embed_dim, bias=False)

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
