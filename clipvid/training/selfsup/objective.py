"""ConST-CL: a self-supervised objective that trains a branch on two clips of each video.

Contract: a model and pairs of augmented clips in, a scalar loss out. The global loss contrasts the two clips of a video
with all other clips of the batch. The local loss predicts each region of a clip from context tokens of the other clip
and contrasts the prediction with the regions of all videos. Projection head, region decoder and copied layers (the Y
split, see `SelfSupervised`) are used only in training; only the model's branch is saved. Knows nothing of optimisers,
data or files.
Paper: Yuan et al., Contextualized Spatio-Temporal Contrastive Learning with Self-Supervision (ConST-CL, CVPR 2022);
numbers as in its released code. Difference: a branch on a frozen tower in place of the paper's 3D ResNet.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from clipvid.config.selfsup import SelfSupervision
from clipvid.config.settings import TrainConfig
from clipvid.errors import DataError
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.models.branches.base import Branch, LayeredBranch
from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.pooling import mean_over_frames
from clipvid.training.losses import region_contrastive, two_view_contrastive
from clipvid.training.selfsup.region_decoder import ProjectionHead, RegionDecoder
from clipvid.training.selfsup.regions import context_frames, lowlevel_regions, pool_regions, random_regions
from clipvid.training.train_batch import TrainBatch


class SelfSupervised(nn.Module):
    """Sum of ConST-CL's global and local loss, weighted by `config.selfsup`.

    The Y split: the branch's last `split` layers exist twice, with the same initial weights. The original layers train
    with the global loss, the copies with the local one, so the video embedding and the dense tokens can specialise.
    """

    needs = "pairs"

    def __init__(self, model: VideoCLIP, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.options: SelfSupervision = config.selfsup
        branch, split = self.branch, config.selfsup.split
        self.split_start: int = len(branch.layers) - split
        # The layers of a loaded model are in eval mode.
        self.local: nn.ModuleList = copy.deepcopy(branch.layers[self.split_start :]).train()
        self.project: ProjectionHead = ProjectionHead(
            model.embed_dim, hidden=config.selfsup.hidden, out=config.selfsup.out, norm=config.selfsup.norm
        )
        self.decoder: RegionDecoder = RegionDecoder(branch.width)

    @property
    def branch(self) -> LayeredBranch:
        """The model's branch; raises ValueError if this objective cannot train it."""
        return _check_branch(self.model.branch, self.options.split)

    def forward(self, batch: TrainBatch) -> Float[Tensor, ""]:
        assert isinstance(batch.video, Tensor)  # pairs of clips, never taps
        options = self.options
        global_loss, local_loss = self.parts(batch.video, mask=batch.mask)
        return options.global_weight * global_loss + options.local_weight * local_loss

    def parts(
        self,
        video: UInt8[Tensor, "b 2 t 3 s s"],
        *,
        mask: Bool[Tensor, "b 2 t"] | None = None,
        boxes: Float[Tensor, "b 2 r 4"] | None = None,
        valid: Bool[Tensor, "b 2 r"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the global and the local loss of pairs of clips, unweighted.

        `boxes`, for example a detector's, replace the generated ones: (y1, x1, y2, x2) as fractions of the sides, in
        the middle frame (T // 2) of the clip as passed, after cropping and mirroring. `valid` is False for padding
        boxes. `train` accepts no boxes because its crops are random.

        Raises DataError for fewer than two videos: the negatives are other videos, and without any the loss is zero.
        """
        if len(video) < 2:
            raise DataError(
                f"a batch must have at least 2 videos, got {len(video)}; ConST-CL takes its negatives from the other "
                "videos of the batch"
            )
        clips = video.flatten(0, 1)  # (B·2, T, 3, S, S), both clips of a video in succession
        source = self.model.reads(clips, mask=None if mask is None else mask.flatten(0, 1))
        embeddings, tokens = self._encode(source)
        if boxes is None:
            with torch.no_grad():
                boxes = _boxes(clips, tokens.shape[1], options=self.options).unflatten(0, (-1, 2))
        if valid is None:
            valid = torch.ones(boxes.shape[:3], dtype=torch.bool)
        a, b = self.project(embeddings).unflatten(0, (-1, 2)).unbind(1)
        predicted, pooled = self._predictions(tokens, boxes.to(tokens.device))
        with torch.autocast(tokens.device.type, enabled=False):  # a temperature of 0.1 magnifies bf16's rounding errors
            global_loss = two_view_contrastive(a.float(), b.float(), temperature=self.options.temperature_global)
            return global_loss, self._local_loss(predicted.float(), pooled.float(), valid.to(tokens.device))

    def _encode(self, source: Taps | Pixels) -> tuple[Float[Tensor, "v e"], Float[Tensor, "v t n d"]]:
        """Return each clip's embedding, from the branch's layers, and its dense tokens, from the copied layers."""
        branch = self.branch
        layers = list(branch.layers)
        shared = branch.run(branch.start(source), 0, layers[: self.split_start])
        frames = branch.finish(branch.run(shared, self.split_start, layers[self.split_start :]))
        tokens = branch.dense(branch.run(shared, self.split_start, list(self.local)))
        return mean_over_frames(frames, source.mask), F.normalize(tokens, dim=-1)

    def _predictions(
        self, tokens: Float[Tensor, "v t n d"], boxes: Float[Tensor, "b 2 r 4"]
    ) -> tuple[Float[Tensor, "b 2 r d"], Float[Tensor, "b 2 r d"]]:
        """Return each region's features, predicted from the other clip, and pooled from its own clip's tokens."""
        grid = self.branch.geometry.grid
        middle = tokens[:, tokens.shape[1] // 2].unflatten(1, grid)
        pooled = pool_regions(middle, boxes.flatten(0, 1))
        context = tokens[:, context_frames(tokens.shape[1], self.options.context)]
        other_context = context.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        predicted = self.decoder(pooled, other_context, grid=grid)
        return predicted.unflatten(0, (-1, 2)), pooled.unflatten(0, (-1, 2))

    def _local_loss(
        self, predicted: Float[Tensor, "b 2 r d"], pooled: Float[Tensor, "b 2 r d"], valid: Bool[Tensor, "b 2 r"]
    ) -> Float[Tensor, ""]:
        """Return the mean of two losses: the first clip's predictions against the second's regions, and the reverse."""
        target = pooled.detach() if self.options.target == "stopgrad" else pooled
        losses = [
            region_contrastive(
                predicted[:, view],
                target[:, 1 - view],
                valid[:, view],
                valid[:, 1 - view],
                source=pooled[:, view],
                temperature=self.options.temperature_local,
            )
            for view in (0, 1)
        ]
        return (losses[0] + losses[1]) / 2


def _boxes(clips: UInt8[Tensor, "v t 3 s s"], frames: int, *, options: SelfSupervision) -> Float[Tensor, "v r 4"]:
    """Return boxes for the middle frame of each clip, random or from its pixels; tokens exist for `frames` frames."""
    if options.generator == "random":
        return random_regions(len(clips), options.regions)
    middle = frames // 2 * (clips.shape[1] // frames)  # with tubelets, the tokens of a frame cover several video frames
    return lowlevel_regions(clips[:, middle], options.regions)


def _check_branch(branch: Branch, split: int) -> LayeredBranch:
    """Return the branch; raise ValueError if it has no dense tokens to pool regions from or too few layers to split."""
    if not isinstance(branch, LayeredBranch):
        raise ValueError(
            f"ConST-CL pools regions from the dense tokens between a branch's layers, and {branch.options.preset()} "
            "has no layers on the tower's tokens; choose a side branch (stan) or an intermediate one (divided, vivit1)"
        )
    if split > len(branch.layers):
        raise ValueError(
            f"selfsup.split must be an integer from 0 to {len(branch.layers)}, the layers of this branch, got {split}; "
            "change it, or give the branch more layers"
        )
    return branch
