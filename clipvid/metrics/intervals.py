"""How sure a figure is: bootstrap intervals, and whether two models differ on the same queries.

Contract: one number a query in, intervals and p-values out; random only by the seed. Knows nothing of ranks or models.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

Interval = tuple[float, float]


def bootstrap_interval(
    scores: Shaped[ndarray, " q"] | Shaped[ndarray, "q f"],
    *,
    statistic: Callable[[ndarray], float] = np.mean,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic` over `n` resamplings, with replacement, of the rows of `scores`."""
    if len(scores) == 0 or n < 1 or not 0 < level < 1:
        raise ValueError(f"need scores, n >= 1 and 0 < level < 1, got {len(scores)} scores, n={n}, level={level}")
    rng = np.random.default_rng(seed)
    drawn = [statistic(scores[rng.integers(len(scores), size=len(scores))]) for _ in range(n)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_interval(
    hits: Shaped[ndarray, " q"],
    *,
    rows: Shaped[ndarray, "q f"] | None = None,
    statistic: Callable[[ndarray], float] = np.mean,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of a share of `hits` within [0, 1], or of a `statistic` of `rows`, a row a hit, that is a share.

    The bootstrap's; where all queries hit, or none does, resampling cannot vary that, and three of three would look as
    sure as three thousand of three thousand: then it is the score interval (Wilson 1927).
    """
    if len(hits) and (np.all(hits == 1) or np.all(hits == 0)):
        z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
        edge = float(len(hits) / (len(hits) + z2))
        return (edge, 1.0) if hits[0] == 1 else (0.0, 1 - edge)
    return bootstrap_interval(hits if rows is None else rows, statistic=statistic, n=n, seed=seed, level=level)


class Difference(NamedTuple):
    """Of b from a: the mean, its 95 % interval, and the two-sided p-value of no difference."""

    mean: float
    interval: Interval
    p: float


def paired_bootstrap(
    a: Shaped[ndarray, " _"], b: Shaped[ndarray, " _"], *, n: int = 10_000, seed: int = 0
) -> Difference:
    """Compare two models on the same queries, drawn again together; ValueError for other numbers of queries.

    p is twice the share of draws in which the mean difference lies on the other side of 0, ties counted half, with one
    added above and below (Davison and Hinkley 1997, section 4.2.3): it is never 0.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"a paired comparison needs the same queries twice, got {a.shape} and {b.shape}")
    if n < 1:
        raise ValueError(f"a bootstrap needs draws, got n={n}; take 1000 or more")
    differences = b.astype(np.float64) - a.astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.array([differences[rng.integers(len(a), size=len(a))].mean() for _ in range(n)])
    below, level = float((drawn < 0).sum()), float((drawn == 0).sum())
    tail = min(below + level / 2, n - below - level / 2)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(differences.mean()), (float(low), float(high)), min(1.0, 2 * (tail + 1) / (n + 1)))


def percent(interval: Interval) -> Interval:
    """An interval of shares as one of percents."""
    return 100 * interval[0], 100 * interval[1]


def cell(value: float, interval: Interval) -> str:
    """A figure and its interval, as tables show them."""
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
