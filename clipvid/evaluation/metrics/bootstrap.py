"""How sure a figure is: bootstrap intervals, and whether two models differ on the same queries.

Contract: one number a query in, intervals and p-values out; random only by the seed. Knows nothing of ranks or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Shaped
from numpy import ndarray

Interval = tuple[float, float]

CONFIDENCE = 0.95
"""Share of draws that an interval covers."""

LEVEL = 1e-6
"""Mean differences that count as none: results keep six digits, and a third is none of them."""

QUERIES_A_KIND = 12
"""Drawing how often one kind comes costs about as much as drawing and counting this many queries."""


def bootstrap_interval(
    scores: Shaped[ndarray, " q"] | Shaped[ndarray, "q f"],
    *,
    statistic: Callable[[ndarray], float] = np.mean,
    n: int = 1000,
    seed: int = 0,
) -> Interval:
    """95 % percentile interval of `statistic` over `n` resamplings, with replacement, of the rows of `scores`."""
    if len(scores) == 0 or n < 1:
        raise ValueError(f"need scores and n >= 1, got {len(scores)} scores and n={n}")
    rng = np.random.default_rng(seed)
    drawn = [statistic(scores[rng.integers(len(scores), size=len(scores))]) for _ in range(n)]
    return _middle(drawn)


def share_interval(hits: Shaped[ndarray, " q"], *, n: int = 1000, seed: int = 0) -> Interval:
    """Interval of a share of `hits` within [0, 1].

    The bootstrap's; where all queries hit, or none does, or all tie alike, resampling cannot vary that, and three of
    three would look as sure as three thousand of three thousand: then it is the score interval (Wilson 1927).
    """
    if (sure := _of_equal(hits)) is not None:
        return sure
    return bootstrap_interval(hits, n=n, seed=seed)


def class_mean(rows: Shaped[ndarray, "q 2"]) -> float:
    """Mean over the classes present of their mean hit; rows are (hit, class)."""
    classes = rows[:, 1].astype(np.int64)
    counts = np.bincount(classes)
    return float((np.bincount(classes, weights=rows[:, 0])[counts > 0] / counts[counts > 0]).mean())


def class_mean_interval(
    hits: Shaped[ndarray, " q"], classes: Shaped[ndarray, " q"], *, n: int = 1000, seed: int = 0
) -> Interval:
    """Interval of the mean over classes of their share of `hits`.

    The bootstrap's. Where the hits of each class are equal, as one class all right and another all wrong, resampling
    varies the mean only by leaving classes out: then the widest of the bootstrap's, that of the classes' own score
    intervals put together (Zou and Donner 2008, section 2), and where all hits are equal that of all of them.
    """
    rows = np.stack([hits, classes], axis=1)
    drawn = bootstrap_interval(rows, statistic=class_mean, n=n, seed=seed)
    by_class = [hits[classes == label] for label in np.unique(classes)]
    own = [interval for some in by_class if (interval := _of_equal(some)) is not None]
    if len(own) < len(by_class):
        return drawn
    mean, shares = class_mean(rows), np.array([some[0] for some in by_class], dtype=np.float64)
    below, above = np.sqrt(((np.array(own).T - shares) ** 2).sum(axis=1)) / len(own)
    found = [drawn, (mean - float(below), mean + float(above)), _of_equal(hits) or drawn]
    return min(low for low, _ in found), max(high for _, high in found)


def ranking_intervals(
    shares: Mapping[str, Float64[ndarray, " q"]], ranks: Float64[ndarray, " q"], *, n: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """95 % intervals of the means of shares, as `share_interval` has them, and of the ranks' median MdR and mean MnR.

    All figures over the same draws. Queries that are alike in every figure are one kind, and a draw is how often each
    kind came: counted in the draws of `bootstrap_interval` with this seed, or, where queries are many and kinds few,
    drawn as such (multinomial), which is the same distribution.
    """
    if len(ranks) == 0 or n < 1:
        raise ValueError(f"need ranks and n >= 1, got {len(ranks)} ranks, n={n}")
    rng, total = np.random.default_rng(seed), len(ranks)
    values, kind = np.unique(np.stack([ranks, *shares.values()], axis=1), axis=0, return_inverse=True)  # by rank
    counts = np.bincount(kind, minlength=len(values))
    multinomial, middle = QUERIES_A_KIND * len(values) < total, ((total - 1) // 2, total // 2)
    means, medians = np.empty((n, values.shape[1])), np.empty(n)
    for draw in range(n):
        if multinomial:
            times = rng.multinomial(total, counts / total)
        else:
            times = np.bincount(kind[rng.integers(total, size=total)], minlength=len(values))
        means[draw] = times @ values / total
        medians[draw] = values[np.searchsorted(np.cumsum(times), middle, side="right"), 0].mean()
    drawn = dict(zip(["MnR", *shares], means.T, strict=True)) | {"MdR": medians}
    found = {name: _middle(some) for name, some in drawn.items()}
    sure = {name: _of_equal(hits) for name, hits in shares.items()}
    return found | {name: interval for name, interval in sure.items() if interval is not None}


def _of_equal(hits: Shaped[ndarray, " q"]) -> Interval | None:
    """Wilson's score interval where all are equal: hits, misses, or shares of ties.

    Between 0 and 1 it is that of as many hits and misses with this mean, which vary more than any other shares.
    """
    if not len(hits) or not np.all(hits == hits[0]):
        return None
    n, share, z2 = len(hits), float(hits[0]), NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    if share in (0, 1):
        return (n / (n + z2), 1.0) if share else (0.0, 1 - n / (n + z2))
    middle, half = share + z2 / (2 * n), math.sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2)
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


def _middle(drawn: Shaped[ndarray, " n"] | Sequence[float]) -> Interval:
    """What all but the lowest and the highest draws lie between."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


class Difference(NamedTuple):
    """Of b from a: the mean, its 95 % interval, and the two-sided p-value of no difference."""

    mean: float
    interval: Interval
    p: float


def paired_bootstrap(
    a: Shaped[ndarray, " _"], b: Shaped[ndarray, " _"], *, n: int = 10_000, seed: int = 0
) -> Difference:
    """Compare two models on the same queries, drawn again together; ValueError for other numbers of queries.

    p is twice the share of draws in which the mean difference lies on the other side of 0, ties (`LEVEL`) counted half,
    one added above and below (Davison and Hinkley 1997, section 4.2.3): it is never 0.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"a paired comparison needs the same queries twice, got {a.shape} and {b.shape}")
    if n < 1:
        raise ValueError(f"a bootstrap needs draws, got n={n}; take 1000 or more")
    differences = b.astype(np.float64) - a.astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.array([differences[rng.integers(len(a), size=len(a))].mean() for _ in range(n)])
    below, level = float((drawn < -LEVEL).sum()), float((np.abs(drawn) <= LEVEL).sum())
    tail = min(below + level / 2, n - below - level / 2)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(differences.mean()), (float(low), float(high)), min(1.0, 2 * (tail + 1) / (n + 1)))


def percent(interval: Interval) -> Interval:
    """An interval of shares as one of percents."""
    return 100 * interval[0], 100 * interval[1]


def cell(value: float, interval: Interval) -> str:
    """A figure and its interval, as tables show them."""
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
