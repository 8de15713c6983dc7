"""Where names go beside the points of a chart: pure geometry on rectangles (left, bottom, right, top), in any unit.

Contract: a name never covers a point, an error bar or another name while there is a place that does not. Knows nothing
of drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
DISTANCES = (10.0, 18.0, 30.0, 44.0, 60.0, 80.0, 104.0)
"""From a point to the near edge of its name, nearest first."""
DIRECTIONS = tuple((math.cos(a), math.sin(a)) for a in (math.radians(d) for d in (0, 180, 35, 325, 145, 215, 90, 270)))
"""Right, left, then aslant, then above and below."""


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    within: Box,
) -> list[Box]:
    """A box for the name of every point, `sizes` being (width, height); crowded points choose first."""
    order = sorted(range(len(points)), key=lambda i: -sum(math.dist(points[i], other) < 90 for other in points))
    found: dict[int, Box] = {}
    for i in order:
        taken = [*obstacles, *found.values()]
        candidates = [_beside(points[i], sizes[i], way, far) for far in DISTANCES for way in DIRECTIONS]
        found[i] = min(candidates, key=lambda box: sum(_overlap(box, other) for other in taken) + _outside(box, within))
    return [found[i] for i in range(len(points))]


def _beside(point: tuple[float, float], size: tuple[float, float], way: tuple[float, float], far: float) -> Box:
    (x, y), (width, height) = point, size
    x, y = x + far * way[0], y + far * way[1]
    left = x if way[0] > 0.1 else x - width if way[0] < -0.1 else x - width / 2
    bottom = y if way[1] > 0.1 else y - height if way[1] < -0.1 else y - height / 2
    return left, bottom, left + width, bottom + height


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, within: Box) -> float:
    """The area of a box that lies outside, counted tenfold: a name that is cut off cannot be read."""
    return 10 * ((box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, within))
