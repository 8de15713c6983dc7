"""Cost of a model, without running it: parameters, multiply-accumulates and bytes of taps per clip.

Contract: backbone and branch in, numbers out. Counting uses the meta device, so nothing is computed and no memory is
allocated. Knows nothing of training or data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clipvid.models.backbone import vit
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Geometry, Pixels, Taps
from clipvid.models.branches.base import Branch
from clipvid.runtime.operation_counts import count_macs
from clipvid.runtime.text import pluralize

LINEAR_OPS = ("mm", "addmm", "convolution", "_convolution")
"""Operations of linear layers and convolutions, which the STAN paper counts as FLOPs. Attention products are counted
separately."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates: `linear` in linear layers and convolutions, `attention` in attention products."""

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Sum of both."""
        return self.linear + self.attention


@dataclass(frozen=True)
class Summary:
    """Data that `clipvid info` prints; `str()` gives the table."""

    base: str
    tower: str
    branch: str
    frames: int
    geometry: Geometry
    levels: int
    trainable: int
    frozen: int
    tower_macs: Macs
    branch_macs: Macs
    taps_bytes: int
    trains: str
    """Description of the trained parts: branch, heads and parts of the base model."""
    uncached: str | None
    """Reason why nothing can be cached; None if taps can be."""
    reads: str | None = None
    """Input of the branch, if it is not levels of the tower."""
    keys_per_patch: tuple[int, ...] = ()
    """Number of keys per patch in each step of a layer; empty for a branch without a scheme."""

    def __str__(self) -> str:
        g = self.geometry
        linear = self.tower_macs.linear + self.branch_macs.linear
        rows = {
            "base model": self.base,
            "tower": f"{self.tower}, {self.levels} levels, {'class token' if g.class_token else 'no class token'}",
            "branch": self.branch,
            "reads": _reads(g) if self.reads is None else self.reads,
            "trains": f"{self.trainable:,} parameters: {self.trains}",
            "frozen": f"{self.frozen:,} parameters",
            **({"keys per patch": " + ".join(map(str, self.keys_per_patch))} if self.keys_per_patch else {}),
            f"MACs per clip, {pluralize(self.frames, 'frame')}": f"{_giga(linear)} linear "
            f"(tower {_giga(self.tower_macs.linear)}, branch {_giga(self.branch_macs.linear)}); "
            f"{_giga(self.tower_macs.total + self.branch_macs.total)} with attention products",
            "three views": f"{_giga(3 * linear)} linear, as papers count",
            "taps per clip": f"{self.taps_bytes / 2**20:.1f} MiB in bf16" if self.uncached is None else self.uncached,
        }
        return "\n".join(f"{name + ':':<{27}}{value}" for name, value in rows.items())


@torch.inference_mode(False)  # counting needs a graph, even within inference mode
def summarize(backbone: Backbone, branch: Branch, *, heads: Sequence[nn.Module], frames: int) -> Summary:
    """Return the summary of a model for clips of `frames` frames."""
    geometry = backbone.geometry(branch.levels)
    parts = [branch, *heads, backbone]
    trainable = sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)
    name = backbone.base.name or "an object given by the caller"
    return Summary(
        base=name + (f" ({backbone.base.pretrained})" if backbone.base.pretrained else ""),
        tower=type(getattr(backbone.visual, "trunk", backbone.visual)).__name__,
        branch=_describe(branch.options),
        frames=frames,
        geometry=geometry,
        levels=backbone.levels,
        trainable=trainable,
        frozen=sum(p.numel() for p in backbone.parameters() if not p.requires_grad),
        trains=_trains(backbone),
        tower_macs=_tower_macs(backbone, branch, frames),
        branch_macs=_branch_macs(branch, backbone, geometry, frames),
        taps_bytes=meta_taps(geometry, frames=frames, dtype=torch.bfloat16).nbytes,
        uncached=why_uncached(backbone, branch),
        reads=f"frames of {branch.image_size or backbone.image_size[0]} pixels" if branch.reads_pixels else None,
        keys_per_patch=tuple(branch.keys_per_patch(frames)),
    )


def _reads(geometry: Geometry) -> str:
    """Describe the levels, as in "levels 9 to 12, 14x14 patches, width 768"."""
    levels, widths = geometry.levels, sorted(set(geometry.widths))
    if not levels:
        return "the tower's frame embeddings"
    numbers = f"level {levels[0]}" if len(levels) == 1 else f"levels {levels[0]} to {levels[-1]}"
    width = f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else str(widths[0])
    return f"{numbers}, {geometry.grid[0]}x{geometry.grid[1]} patches, width {width}"


def why_uncached(backbone: Backbone, branch: Branch) -> str | None:
    """Return the reason why this branch's input cannot be cached; None if it can be."""
    if branch.reads_pixels:
        return "cannot be cached: the branch has a custom stem and reads pixels"
    if backbone.visual_trains:
        return "cannot be cached: the visual tower trains"
    return None


def _trains(backbone: Backbone) -> str:
    """Describe the trained parts."""
    parts = ["branch and heads"]
    parameters = backbone.clip.named_parameters()
    named = [(name.startswith("visual."), p) for name, p in parameters if not name.startswith("logit_")]
    visual, text = ([p.requires_grad for is_visual, p in named if is_visual is side] for side in (True, False))
    if backbone.visual_trains:
        parts.append(f"visual tower{'' if all(visual) else _extent(vit.vit_blocks(backbone.visual))}")
    if backbone.lora_rank and backbone.text_trains:
        parts.append(f"LoRA of rank {backbone.lora_rank} on the text tower")
    elif backbone.text_trains:
        parts.append(f"text tower{'' if all(text) else _extent(vit.text_tower_and_blocks(backbone.clip)[1])}")
    return ", ".join(parts)


def _extent(blocks: Sequence[nn.Module]) -> str:
    """Describe the trained blocks of a tower that trains in part."""
    trains = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    numbers = [number for number, trained in enumerate(trains, start=1) if trained]
    if not numbers:
        return " (in part)"
    described = f"blocks {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"block {numbers[0]}"
    return f" ({described} of {len(trains)})"


def meta_taps(geometry: Geometry, *, frames: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> Taps:
    """Return taps of the right shapes on the meta device."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(batch, frames, *shape, device="meta", dtype=dtype)

    patches = tuple(empty(geometry.patches, width) for width in geometry.widths)
    cls = tuple(empty(width) for width in geometry.widths) if geometry.class_token else ()
    return Taps(geometry.levels, patches, cls, empty(geometry.embed_dim))


def _tower_macs(backbone: Backbone, branch: Branch, frames: int) -> Macs:
    """Count the part of the tower that the branch needs: all of it, its lower blocks, or nothing."""
    if branch.reads_pixels:
        return Macs(0, 0)
    visual = _countable(backbone.visual)
    image = torch.empty(1, 3, *backbone.image_size, device="meta", dtype=backbone.dtype)
    one = _count(lambda: backbone.run(visual, image, levels=branch.levels, embed=branch.reads_frames))
    head = vit.head(backbone.visual) if branch.reads_frames else None
    projection = head[1].numel() if head else 0  # papers do not count the projection D to E
    return Macs((one.linear - projection) * frames, one.attention * frames)


def _branch_macs(branch: Branch, backbone: Backbone, geometry: Geometry, frames: int) -> Macs:
    """Count the branch for one clip, without CLIP's projection if the branch's fusion repeats it."""
    # Both are copied together because the branch may use weights of the tower.
    copy = _countable(nn.ModuleList([backbone.visual, branch]))[1]
    dtype = next((p.dtype for p in copy.parameters()), torch.float32)
    source = meta_taps(geometry, frames=frames, dtype=dtype)
    if branch.reads_pixels:
        size = (branch.image_size,) * 2 if branch.image_size else backbone.image_size
        source = Pixels(torch.empty(1, frames, 3, *size, device="meta", dtype=dtype))
    macs = _count(lambda: copy(source))
    if getattr(branch.options, "fusion", None) not in ("release", "balanced") or not branch.levels:
        return macs
    # The published fusion repeats CLIP's projection, which papers do not count.
    head = vit.head(backbone.visual)
    return Macs(macs.linear - (head[1].numel() * frames if head else 0), macs.attention)


def _countable(module: nn.Module) -> Any:
    """Return a meta copy with all weights trainable; torch counts products with frozen weights as attention."""
    return vit.meta_copy(module).requires_grad_(True)


def _count(run: Callable[[], Any]) -> Macs:
    """Count the multiply-accumulates of a function call."""
    counts = count_macs(run)
    linear = sum(macs for op, macs in counts.items() if op in LINEAR_OPS)
    return Macs(linear, sum(counts.values()) - linear)


def _describe(options: Any) -> str:
    """Describe the main options of a branch in one line."""
    names = (
        "scheme",
        "stem",
        "depth",
        "mixer",
        "fusion",
        "order",
        "merge",
        "init",
        "hidden",
        "temporal_depth",
        "frames",
    )
    shown = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if shown.get("stem", "tower") != "tower":
        shown.pop("depth", None)  # all blocks are copied
    return f"{options.preset()}, " + ", ".join(f"{k} {v}" for k, v in shown.items())


def _giga(macs: int) -> str:
    """Format a count in units of 10^9."""
    return f"{macs / 1e9:.1f} G"
