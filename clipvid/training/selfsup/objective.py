"""ConST-CL: a self-supervised objective that trains a branch on two clips of each video.

Contract: a model and pairs of augmented clips in, a scalar loss out. The global loss contrasts the two clips of a video
with all other clips of the batch. The local loss predicts each region of a clip from context tokens of the other clip
and contrasts the prediction with the regions of all videos. Projection head, region decoder and the layer copies of the
Y split are used only in training; only the model's branch is saved. Knows nothing of optimisers, data or files.
Paper: Yuan et al., Contextualized Spatio-Temporal Contrastive Learning with Self-Supervision (ConST-CL, CVPR 2022);
numbers from its released code. Ours: a branch on a frozen tower in place of the paper's 3D ResNet.
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

    def __init__(self, model: VideoCLIP, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.options = model, config.selfsup
        branch, split = self.branch, config.selfsup.split
        self.first = len(branch.layers) - split
        self.local = copy.deepcopy(branch.layers[self.first :]).train()  # a loaded model's layers are in eval mode
        self.project = ProjectionHead(
            model.embed_dim, hidden=config.selfsup.hidden, out=config.selfsup.out, norm=config.selfsup.norm
        )
        self.decoder = RegionDecoder(branch.width)

    @property
    def branch(self) -> LayeredBranch:
        """The model's branch; raises ValueError if this objective cannot train it."""
        return _check_branch(self.model.branch, self.options.split)

    def forward(self, batch: TrainBatch) -> Float[Tensor, ""]:
        assert isinstance(batch.video, Tensor)  # pairs of clips, never taps
        o = self.options
        global_loss, local_loss = self.parts(batch.video, mask=batch.mask)
        return o.global_weight * global_loss + o.local_weight * local_loss

    def parts(
        self,
        video: UInt8[Tensor, "b 2 t 3 s s"],
        *,
        mask: Bool[Tensor, "b 2 t"] | None = None,
        boxes: Float[Tensor, "b 2 r 4"] | None = None,
        valid: Bool[Tensor, "b 2 r"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the global and the local loss of pairs of clips, unweighted.

        `boxes`, (y1, x1, y2, x2) as fractions of the sides, replace the generated ones, for example with a detector's;
        `valid` is False for padding boxes. They refer to the middle frame (T // 2) of the clip as given, after cropping
        and mirroring. `train` accepts no boxes because its crops are random.

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
        predicted, target = self._predictions(tokens, boxes.to(tokens.device))
        with torch.autocast(tokens.device.type, enabled=False):  # a temperature of 0.1 magnifies bf16's rounding errors
            global_loss = two_view_contrastive(a.float(), b.float(), temperature=self.options.temperature_global)
            return global_loss, self._local_loss(predicted.float(), target.float(), valid.to(tokens.device))

    def _encode(self, source: Taps | Pixels) -> tuple[Float[Tensor, "v e"], Float[Tensor, "v t n d"]]:
        """Return each clip's embedding, by the branch's layers, and its dense tokens, by their copies."""
        branch = self.branch
        layers = list(branch.layers)
        shared = branch.run(branch.start(source), 0, layers[: self.first])
        frames = branch.finish(branch.run(shared, self.first, layers[self.first :]))
        tokens = branch.dense(branch.run(shared, self.first, list(self.local)))
        return mean_over_frames(frames, source.mask), F.normalize(tokens, dim=-1)

    def _predictions(
        self, tokens: Float[Tensor, "v t n d"], boxes: Float[Tensor, "b 2 r 4"]
    ) -> tuple[Float[Tensor, "b 2 r d"], Float[Tensor, "b 2 r d"]]:
        """Return each clip's regions as predicted from the other clip's context, and as pooled from its own tokens."""
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
        """Return the mean loss of both directions: first clip to second, and second to first."""
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
    """Return boxes in the middle one of `frames` dense frames, for each clip: random, or from its pixels."""
    if options.generator == "random":
        return random_regions(len(clips), options.regions)
    middle = frames // 2 * (clips.shape[1] // frames)  # with tubelets a dense frame covers several frames
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
            f"selfsup.split must be an integer from 0 to {len(branch.layers)}, the layers of this branch, got {split}"
        )
    return branch
