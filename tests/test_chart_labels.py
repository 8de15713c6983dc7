"""Chart labels: while there is room, none covers a point, an error bar, another label or the edge."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from clipvid.plots.labels import _overlap, place_labels

WITHIN = (0.0, 0.0, 1000.0, 600.0)


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_crowded_points_cover_nothing(seed):
    rng = Random(seed)
    points = [(rng.uniform(350, 650), rng.uniform(150, 450)) for _ in range(14)]
    points += [(2.0, 2.0), (998.0, 598.0)]
    bars = [(x - 6, y - rng.uniform(6, 40), x + 6, y + rng.uniform(6, 40)) for x, y in points]
    boxes = place_labels(points, [(rng.uniform(40, 90), 12.0) for _ in points], bars, WITHIN)
    assert all(_overlap(box, bar) == 0 for box in boxes for bar in bars)
    assert all(_overlap(a, b) == 0 for a, b in combinations(boxes, 2))
    assert all(box[0] >= 0 and box[2] <= 1000 and box[1] >= 0 and box[3] <= 600 for box in boxes)


def test_the_label_of_a_lone_point_is_at_its_right_unless_that_leaves_the_chart():
    (box,) = place_labels([(100.0, 100.0)], [(50.0, 10.0)], [(94.0, 94.0, 106.0, 106.0)], WITHIN)
    assert box == (110.0, 95.0, 160.0, 105.0)
    (box,) = place_labels([(970.0, 100.0)], [(50.0, 10.0)], [], WITHIN)
    assert box == (910.0, 95.0, 960.0, 105.0)
