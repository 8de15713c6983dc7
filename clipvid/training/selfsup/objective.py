"""ConST-CL: what a branch can learn from video alone, out of two clips of each video.

Contract: a model and pairs of augmented clips in, a scalar loss out. Each clip is to find the other one of its video
among those of the batch; each region of a clip, shown what surrounds its like in the other clip, is to find it there.
Projection head, region decoder and the copies of the Y split live here and end with training: what stays is the
model's branch. Knows nothing of optimisers, data or files.
Paper: Yuan et al., Contextualized Spatio-Temporal Contrastive Learning with Self-Supervision (ConST-CL, CVPR 2022);
numbers from its released code. Ours: a branch on a frozen tower stands where the paper trains a 3D ResNet.
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
    """The sum of ConST-CL's global and local loss, weighted as `config.selfsup` says.

    The Y split: the branch's last `split` layers exist twice, alike at first. The branch's own lead to the global loss,
    the copies to the local one, so that tokens which keep places apart need not be those that the video is judged by.
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
        """The model's own; ValueError where it is of no use to this objective."""
        return _layered(self.model.branch, self.options.split)

    def forward(self, batch: TrainBatch) -> Float[Tensor, ""]:
        assert isinstance(batch.video, Tensor)  # pairs of clips, never taps
        o = self.options
        whole, regions = self.parts(batch.video, mask=batch.mask)
        return o.global_weight * whole + o.local_weight * regions

    def parts(
        self,
        video: UInt8[Tensor, "b 2 t 3 s s"],
        *,
        mask: Bool[Tensor, "b 2 t"] | None = None,
        boxes: Float[Tensor, "b 2 r 4"] | None = None,
        valid: Bool[Tensor, "b 2 r"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Global and local loss of pairs of clips, each by itself.

        `boxes`, (y1, x1, y2, x2) as fractions of the sides, take the place of the generated ones: a detector's, say,
        with `valid` False where a clip has fewer. They belong to the clip's middle frame (T // 2) as it is given here,
        after cropping and mirroring, which is why `train` cannot take any: its crops are random.

        Raises DataError for one video: the negatives are other videos, and without any the loss is zero.
        """
        if len(video) < 2:
            raise DataError(
                f"ConST-CL takes its negatives from the other videos of a batch, and this one has {len(video)}; give "
                "two or more"
            )
        clips = video.flatten(0, 1)  # (B·2, T, 3, S, S), the two of a video one behind the other
        source = self.model.reads(clips, mask=None if mask is None else mask.flatten(0, 1))
        embeddings, tokens = self._arms(source)
        if boxes is None:
            with torch.no_grad():
                boxes = _regions(clips, tokens.shape[1], options=self.options).unflatten(0, (-1, 2))
        if valid is None:
            valid = torch.ones(boxes.shape[:3], dtype=torch.bool)
        a, b = self.project(embeddings).unflatten(0, (-1, 2)).unbind(1)
        predicted, target = self._predictions(tokens, boxes.to(tokens.device))
        with torch.autocast(tokens.device.type, enabled=False):  # a temperature of 0.1 makes much of bf16's rounding
            whole = two_view_contrastive(a.float(), b.float(), temperature=self.options.temperature_global)
            return whole, self._local(predicted.float(), target.float(), valid.to(tokens.device))

    def _arms(self, source: Taps | Pixels) -> tuple[Float[Tensor, "v e"], Float[Tensor, "v t n d"]]:
        """Of every clip its embedding, by the branch's own layers, and its dense tokens, by the copies."""
        branch = self.branch
        own = list(branch.layers)
        trunk = branch.run(branch.start(source), 0, own[: self.first])
        frames = branch.finish(branch.run(trunk, self.first, own[self.first :]))
        tokens = branch.dense(branch.run(trunk, self.first, list(self.local)))
        return mean_over_frames(frames, source.mask), F.normalize(tokens, dim=-1)

    def _predictions(
        self, tokens: Float[Tensor, "v t n d"], boxes: Float[Tensor, "b 2 r 4"]
    ) -> tuple[Float[Tensor, "b 2 r d"], Float[Tensor, "b 2 r d"]]:
        """Each clip's regions as the other clip's context predicts them, and as they are."""
        grid = self.branch.geometry.grid
        middle = tokens[:, tokens.shape[1] // 2].unflatten(1, grid)
        pooled = pool_regions(middle, boxes.flatten(0, 1))
        context = tokens[:, context_frames(tokens.shape[1], self.options.context)]
        others = context.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        predicted = self.decoder(pooled, others, grid=grid)
        return predicted.unflatten(0, (-1, 2)), pooled.unflatten(0, (-1, 2))

    def _local(
        self, predicted: Float[Tensor, "b 2 r d"], pooled: Float[Tensor, "b 2 r d"], valid: Bool[Tensor, "b 2 r"]
    ) -> Float[Tensor, ""]:
        """Mean of the two directions: from the first clip to the second, and back."""
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


def _regions(clips: UInt8[Tensor, "v t 3 s s"], frames: int, *, options: SelfSupervision) -> Float[Tensor, "v r 4"]:
    """Boxes in the middle of `frames` dense frames, each clip's on their own: from chance, or from its pixels."""
    if options.generator == "random":
        return random_regions(len(clips), options.regions)
    middle = frames // 2 * (clips.shape[1] // frames)  # a dense frame may stand for several (tubelets)
    return lowlevel_regions(clips[:, middle], options.regions)


def _layered(branch: Branch, split: int) -> LayeredBranch:
    """The branch; ValueError where it has no tokens to pool regions from, or fewer layers than are to be split."""
    if not isinstance(branch, LayeredBranch):
        raise ValueError(
            f"ConST-CL pools regions from the dense tokens between a branch's layers, and {branch.options.preset()} "
            "has no layers on the tower's tokens; choose a side branch (stan) or an intermediate one (divided, vivit1)"
        )
    if split > len(branch.layers):
        raise ValueError(f"selfsup.split is 0 to {len(branch.layers)}, the layers of this branch, got {split}")
    return branch
