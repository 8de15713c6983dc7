"""Placement of labels beside the points of a chart: geometry of boxes (left, bottom, right, top), in any unit.

Contract: a label covers no point, error bar or other label if one of the tried positions is free. Knows nothing of
drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
DISTANCES = (10.0, 18.0, 30.0, 44.0, 60.0, 80.0, 104.0)
"""Tried distances from a point to the near edge of its label, in increasing order."""
DIRECTIONS = tuple((math.cos(a), math.sin(a)) for a in (math.radians(d) for d in (0, 180, 35, 325, 145, 215, 90, 270)))
"""Tried directions as unit vectors: right, left, diagonal, above, below."""


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    within: Box,
) -> list[Box]:
    """Return one box per point for its label of the given size (width, height); crowded points are placed first."""
    order = sorted(range(len(points)), key=lambda i: -sum(math.dist(points[i], other) < 90 for other in points))
    boxes: dict[int, Box] = {}
    for i in order:
        taken = [*obstacles, *boxes.values()]
        candidates = [
            _label_box(points[i], sizes[i], direction, distance) for distance in DISTANCES for direction in DIRECTIONS
        ]
        boxes[i] = min(candidates, key=lambda box: sum(_overlap(box, other) for other in taken) + _outside(box, within))
    return [boxes[i] for i in range(len(points))]


def _label_box(
    point: tuple[float, float], size: tuple[float, float], direction: tuple[float, float], distance: float
) -> Box:
    """Return the box of a label at this distance and direction from a point."""
    (x, y), (width, height) = point, size
    x, y = x + distance * direction[0], y + distance * direction[1]
    left = x if direction[0] > 0.1 else x - width if direction[0] < -0.1 else x - width / 2
    bottom = y if direction[1] > 0.1 else y - height if direction[1] < -0.1 else y - height / 2
    return left, bottom, left + width, bottom + height


def _overlap(a: Box, b: Box) -> float:
    """Return the area of the intersection of two boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, within: Box) -> float:
    """Return ten times the area of a box outside `within`: a label that is cut off is worse than an overlap."""
    return 10 * ((box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, within))
