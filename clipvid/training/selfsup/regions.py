"""Regions: random boxes or boxes around an image's low-level segments, their pooled features, their context frames.

Contract: boxes are (B, R, 4) with R regions per image, (y1, x1, y2, x2) as fractions of its sides; features are a grid
(B, h, w, D), rows first. Knows nothing of CLIP, views or losses.
Paper: Yuan et al., Contextualized Spatio-Temporal Contrastive Learning with Self-Supervision (ConST-CL, CVPR 2022);
numbers from its released code. The segments are those of SLIC (Achanta et al., SLIC Superpixels, 2012).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

WIDTHS = (0.1, 0.5)
"""Smallest and largest width of a random box, as a fraction of the image's width."""
ASPECTS = (0.5, 2.0)
"""Smallest and largest height / width of a random box; a box with both maxima is as high as the image."""
LAST = 1 - 1e-3
"""Largest lower or right coordinate of a random box, as in the released code."""
SIDE = 64
"""Longest side, in pixels, of the images that are segmented; boxes around a few large segments need no more."""
COMPACTNESS = 10.0
"""Distance in Lab that weighs as much as the expected side of a segment; SLIC's default."""
_ITERATIONS = 10
"""Iterations of k-means, as in the SLIC paper."""


def random_regions(batch: int, regions: int = 8, *, generator: torch.Generator | None = None) -> Float[Tensor, "b r 4"]:
    """Return random boxes inside the image, on the generator's device.

    Width, aspect and position are drawn uniformly and independently. Unlike the released code, a box starts only where
    it fits: there it may start anywhere, so some boxes end before they start, and all four values share one seed.
    """
    if batch < 1 or regions < 1:
        raise ValueError(f"batch and regions must be integers >= 1, got {batch} and {regions}; raise the one below 1")
    device = "cpu" if generator is None else generator.device
    left, top, width, aspect = torch.rand(4, batch, regions, generator=generator, device=device)
    width = WIDTHS[0] + (WIDTHS[1] - WIDTHS[0]) * width
    height = width * (ASPECTS[0] + (ASPECTS[1] - ASPECTS[0]) * aspect)
    left, top = left * (1 - width), top * (1 - height)
    return torch.stack([top, left, (top + height).clamp(max=LAST), (left + width).clamp(max=LAST)], dim=-1)


@torch.no_grad()
def lowlevel_regions(
    frames: Float[Tensor, "b 3 height width"] | UInt8[Tensor, "b 3 height width"],
    regions: int = 8,
    *,
    compactness: float = COMPACTNESS,
) -> Float[Tensor, "b r 4"]:
    """Return boxes around segments of similar colour in RGB images, uint8 or float in [0, 1] (SLIC).

    k-means over Lab colour and position, from seeds on a grid; a segment takes only pixels within its expected side of
    its centre. SLIC's final merging of small fragments is left out. An empty segment gets the grid cell of its seed.
    """
    frames = _shrunk(frames)
    h, w = frames.shape[-2:]
    if not 1 <= regions <= h * w:
        raise ValueError(
            f"an image of {h}x{w} pixels can have 1 to {h * w} segments, got regions={regions}; choose fewer "
            "regions or larger images"
        )
    if compactness <= 0:
        raise ValueError(f"compactness must be > 0, got {compactness}; larger values make segments more square")
    cells = _cells(regions, h, w).to(frames)  # (R, 4)
    rows, columns = torch.arange(h).to(frames), torch.arange(w).to(frames)
    corners = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)  # (2, P), in pixels
    sides = corners.new_tensor([[h], [w]])
    scale = compactness / (h * w / regions) ** 0.5  # scales a segment's expected side to `compactness`
    colours = _lab(frames)
    seeds = (cells[:, :2] + cells[:, 2:]).mT / 2 * sides  # (2, R)
    row, column = seeds.long()
    points = _points(colours.flatten(2), corners * scale)
    centres = _points(colours[..., row, column], (seeds - 0.5) * scale)
    segments = _segments(points, centres, reach=compactness)
    inside = F.one_hot(segments, regions).mT.bool()[:, None]  # (B, 1, R, P)
    low = torch.where(inside, (corners / sides)[:, None], torch.inf).amin(dim=-1)
    high = torch.where(inside, ((corners + 1) / sides)[:, None], -torch.inf).amax(dim=-1)
    return torch.where(inside.any(dim=-1).mT, torch.cat([low, high], dim=1).mT, cells)


def pool_regions(
    features: Float[Tensor, "b h w d"], boxes: Float[Tensor, "b r 4"], *, crop: int = 4
) -> Float[Tensor, "b r d"]:
    """Return the mean of crop x crop bilinear samples of each box, one per bin centre (ROIAlign as released).

    Feature (0, 0) lies exactly at the image's corner, without the usual shift by half a cell; samples beyond the last
    row or column repeat its features. Bilinear weights, and their mean, are a product of a part along y and a part
    along x, so each box is one row of weights over the grid. torchvision's `roi_align` gives the same numbers, but has
    no bf16 on a CPU and took 6 to 25 times as long there (float32, forward and backward, grids of 14 and 7).
    """
    if crop < 1:
        raise ValueError(f"crop must be an integer >= 1 (samples along each side of a box), got {crop}; give 1 or more")
    low, high = boxes[..., :2], boxes[..., 2:]
    if not bool(((low >= 0) & (low <= high) & (high <= 1)).all()):
        raise ValueError(
            "boxes must be (y1, x1, y2, x2) with 0 <= y1 <= y2 <= 1 and 0 <= x1 <= x2 <= 1; divide pixels by the "
            "image's sides"
        )
    y1, x1, y2, x2 = boxes.to(torch.promote_types(boxes.dtype, torch.float32)).unbind(dim=-1)
    _, h, w, _ = features.shape
    rows, columns = _weights(y1, y2, size=h, crop=crop), _weights(x1, x2, size=w, crop=crop)
    weights = (rows[..., :, None] * columns[..., None, :]).flatten(-2)  # (B, R, h·w)
    return weights.to(features.dtype) @ features.flatten(1, 2)


def context_frames(frames: int, level: int = 5) -> list[int]:
    """Return the indices of the `level` (odd) frames that give a region its context, evenly spaced around the middle.

    A clip of fewer than `level` frames gives all of them; the released code repeats one instead.
    >>> context_frames(12)
    [2, 4, 6, 8, 10]
    """
    if level < 1 or level % 2 == 0:
        raise ValueError(
            f"level must be an odd integer >= 1, got {level}; it counts the middle frame and as many on either side"
        )
    if frames < 1:
        raise ValueError(f"frames must be an integer >= 1, got {frames}; pass the length of the clip")
    if frames < level:
        return list(range(frames))
    return [frames // 2 + i * (frames // level) for i in range(-(level // 2), level // 2 + 1)]


def _weights(low: Float[Tensor, "b r"], high: Float[Tensor, "b r"], *, size: int, crop: int) -> Float[Tensor, "b r n"]:
    """Return bilinear weights for the `size` cells along one side, averaged over the samples: max(0, 1 - distance)."""
    bins = (torch.arange(crop, device=low.device, dtype=low.dtype) + 0.5) / crop
    samples = ((low[..., None] + (high - low)[..., None] * bins) * size).clamp(max=size - 1)
    cells = torch.arange(size, device=low.device, dtype=low.dtype)
    return (1 - (samples[..., None] - cells).abs()).clamp(min=0).mean(dim=-2)


def _shrunk(frames: Tensor) -> Float[Tensor, "b 3 height width"]:
    """Return float RGB in [0, 1], shrunk so that no side is longer than SIDE."""
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    low, high = frames.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"float frames must be RGB in [0, 1], got {low:.3g} to {high:.3g}; segment before normalising")
    frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
    height, width = frames.shape[-2:]
    shrink = min(1.0, SIDE / max(height, width))
    return F.adaptive_avg_pool2d(frames, (max(1, round(height * shrink)), max(1, round(width * shrink))))


def _cells(regions: int, h: int, w: int) -> Float[Tensor, "r 4"]:
    """Return `regions` nearly square cells of the image: rows of equal height, the first ones with one cell more."""
    rows = min(regions, max(1, round((regions * h / w) ** 0.5)))
    counts = [regions // rows + (row < regions % rows) for row in range(rows)]
    return torch.tensor(
        [[row / rows, i / n, (row + 1) / rows, (i + 1) / n] for row, n in enumerate(counts) for i in range(n)]
    )


def _points(colours: Float[Tensor, "b 3 p"], positions: Float[Tensor, "2 p"]) -> Float[Tensor, "b 5 p"]:
    """Join colours and positions, which are shared by the batch."""
    return torch.cat([colours, positions.expand(len(colours), -1, -1)], dim=1)


def _segments(points: Float[Tensor, "b 5 p"], centres: Float[Tensor, "b 5 r"], *, reach: float) -> Int[Tensor, "b p"]:
    """Return the segment of each point after k-means from these centres."""
    for _ in range(_ITERATIONS):
        ones = F.one_hot(_nearest_centres(points, centres, reach=reach), centres.shape[-1]).to(points)  # (B, P, R)
        pixels = ones.sum(dim=1, keepdim=True)
        # A matrix product is deterministic; the order of a scattered sum changes from run to run on a GPU.
        centres = torch.where(pixels > 0, points @ ones / pixels.clamp(min=1), centres)
    return _nearest_centres(points, centres, reach=reach)


def _nearest_centres(
    points: Float[Tensor, "b 5 p"], centres: Float[Tensor, "b 5 r"], *, reach: float
) -> Int[Tensor, "b p"]:
    """Return the nearest centre within reach of each point along both axes; the nearest of all if none is."""
    offsets = (points[:, :, None] - centres[..., None]).abs()  # (B, 5, R, P)
    beyond = (offsets[:, 3:] > reach).any(dim=1)
    return (offsets.square().sum(dim=1) + 1e6 * beyond).argmin(dim=1)  # 1e6 exceeds any squared distance


def _lab(frames: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 3 height width"]:
    """Convert sRGB in [0, 1] to CIE L*a*b* (white point D65)."""
    linear = torch.where(frames <= 0.04045, frames / 12.92, ((frames + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("xc,bchw->bxhw", frames.new_tensor(_XYZ), linear)
    xyz = torch.where(xyz > (6 / 29) ** 3, xyz ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = xyz.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


_XYZ: Sequence[Sequence[float]] = (  # linear sRGB to XYZ, each row divided by its sum: white becomes (1, 1, 1)
    (0.43394994, 0.37620977, 0.18984029),
    (0.21267288, 0.71515213, 0.07217499),
    (0.01775658, 0.10946796, 0.87277546),
)
