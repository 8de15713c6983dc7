"""Bootstrap confidence intervals of metrics, and the paired comparison of two models on the same queries.

Contract: one number per query in, intervals and p-values out; random only by the seed. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from numpy import ndarray

Interval = tuple[float, float]
"""Lower and upper limit."""

CONFIDENCE = 0.95
"""Share of bootstrap samples that an interval covers."""

TOLERANCE = 1e-6
"""Mean differences up to this size count as zero: saved results round to six digits, which a third does not have."""

QUERIES_PER_KIND = 12
"""Number of queries whose resampling costs about as much as one multinomial count of a kind."""

SCORES_AT_ONCE = 1 << 16
"""Number of scores drawn in one call of the random generator: enough to outweigh the call, and small for the cache."""


def bootstrap_interval(
    scores: Shaped[ndarray, " q"] | Shaped[ndarray, "q f"],
    *,
    statistic: Callable[[ndarray], float] = np.mean,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the 95 % percentile interval of `statistic` over `n_resamples` bootstrap samples of the rows of `scores`.

    Raises ValueError without scores or for n_resamples < 1.
    """
    _check_samples(len(scores), n_resamples)
    rng = np.random.default_rng(seed)
    if statistic is np.mean and scores.ndim == 1:
        return _central_interval(_means(scores, n_resamples, rng))
    samples = [statistic(scores[rng.integers(len(scores), size=len(scores))]) for _ in range(n_resamples)]
    return _central_interval(samples)


def _check_samples(total: int, n_resamples: int) -> None:
    """Raise ValueError without scores or for n_resamples < 1."""
    if total == 0 or n_resamples < 1:
        raise ValueError(
            f"a bootstrap needs scores and n_resamples >= 1, got {total} scores and n_resamples={n_resamples}; take "
            "1000 or more"
        )


def _means(scores: Shaped[ndarray, " q"], n: int, rng: np.random.Generator) -> Float64[ndarray, " n"]:
    """Return the means of `n` bootstrap samples, drawn many at a time: the same samples as one by one, and faster."""
    means = [scores[drawn].mean(axis=1) for drawn in _drawn(len(scores), n, rng)]
    return np.concatenate(means).astype(np.float64)


def _drawn(total: int, n: int, rng: np.random.Generator) -> Iterator[Int64[ndarray, "s q"]]:
    """Yield the indices of `n` bootstrap samples of `total` items, several samples at a time."""
    for size in _sizes(n, total):
        yield rng.integers(total, size=(size, total))


def _sizes(n: int, total: int) -> list[int]:
    """Return the numbers of samples to draw at a time, for `n` samples of `total` numbers each."""
    step = max(1, SCORES_AT_ONCE // total)
    return [min(step, n - start) for start in range(0, n, step)]


def _counts(
    kinds: Int64[ndarray, "s q"], n_kinds: int, weights: Shaped[ndarray, "s q"] | None = None
) -> Shaped[ndarray, "s k"]:
    """Return how often each kind is in each row, or the sum of its weights there."""
    cells = kinds + n_kinds * np.arange(len(kinds))[:, None]
    flat = None if weights is None else weights.ravel()
    return np.bincount(cells.ravel(), flat, minlength=n_kinds * len(kinds)).reshape(-1, n_kinds)


def share_interval(hits: Shaped[ndarray, " q"], *, n_resamples: int = 1000, seed: int = 0) -> Interval:
    """Return the 95 % interval of the mean of `hits`, within [0, 1].

    It is the bootstrap interval, or the score interval (Wilson 1927) if all hits are equal: resampling does not vary
    equal values, so three hits of three would get the same interval as three thousand of three thousand.
    """
    if (wilson := _wilson_interval(hits)) is not None:
        return wilson
    return bootstrap_interval(hits, n_resamples=n_resamples, seed=seed)


def class_mean(rows: Shaped[ndarray, "q 2"]) -> float:
    """Return the mean over the classes present of their mean hit; rows are (hit, class)."""
    classes = rows[:, 1].astype(np.int64)
    counts = np.bincount(classes)
    return float((np.bincount(classes, weights=rows[:, 0])[counts > 0] / counts[counts > 0]).mean())


def class_mean_interval(
    hits: Shaped[ndarray, " q"], classes: Shaped[ndarray, " q"], *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the 95 % interval of the mean over classes of their mean hit.

    It is the bootstrap interval unless the hits within each class are equal, such as one class all right and another
    all wrong. Resampling then varies the mean only by leaving classes out, so the result is the widest of the bootstrap
    interval, the combined score intervals of the classes (Zou and Donner 2008, section 2) and, if all hits are equal,
    the score interval of all hits.
    """
    _check_samples(len(hits), n_resamples)
    resampled = _central_interval(_class_means(hits, classes, n_resamples, np.random.default_rng(seed)))
    by_class = [hits[classes == label] for label in np.unique(classes)]
    wilson = [interval for group in by_class if (interval := _wilson_interval(group)) is not None]
    if len(wilson) < len(by_class):
        return resampled
    mean = class_mean(np.stack([hits, classes], axis=1))
    shares = np.array([group[0] for group in by_class], dtype=np.float64)
    below, above = np.sqrt(((np.array(wilson).T - shares) ** 2).sum(axis=1)) / len(wilson)
    intervals = [resampled, (mean - float(below), mean + float(above)), _wilson_interval(hits) or resampled]
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def _class_means(
    hits: Shaped[ndarray, " q"], classes: Shaped[ndarray, " q"], n: int, rng: np.random.Generator
) -> Float64[ndarray, " n"]:
    """Return `class_mean` of `n` bootstrap samples, drawn many at a time."""
    labels, kinds = np.unique(classes, return_inverse=True)
    means: list[Float64[ndarray, " s"]] = []
    for drawn in _drawn(len(hits), n, rng):
        clips, right = _counts(kinds[drawn], len(labels)), _counts(kinds[drawn], len(labels), hits[drawn])
        means.append((right / np.maximum(clips, 1)).sum(axis=1) / (clips > 0).sum(axis=1))
    return np.concatenate(means)


def ranking_intervals(
    shares: Mapping[str, Float64[ndarray, " q"]],
    ranks: Float64[ndarray, " q"],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the 95 % intervals of the means of `shares` (see `share_interval`), and of the ranks' MdR and MnR.

    All metrics use the same bootstrap samples. Queries with equal values in every metric are of one kind, and a sample
    is the number of queries of each kind: counted in the samples of `bootstrap_interval` with this seed or, for many
    queries of few kinds, drawn from the multinomial distribution, which is the same distribution.
    """
    if len(ranks) == 0 or n_resamples < 1:
        raise ValueError(
            f"a bootstrap needs ranks and n_resamples >= 1, got {len(ranks)} ranks and n_resamples={n_resamples}; take "
            "1000 or more"
        )
    rng, total = np.random.default_rng(seed), len(ranks)
    values, kind = np.unique(np.stack([ranks, *shares.values()], axis=1), axis=0, return_inverse=True)  # sorted by rank
    counts = np.bincount(kind, minlength=len(values))
    if QUERIES_PER_KIND * len(values) < total:
        chunks = (rng.multinomial(total, counts / total, size=size) for size in _sizes(n_resamples, len(values)))
    else:
        chunks = (_counts(kind[drawn], len(values)) for drawn in _drawn(total, n_resamples, rng))
    sampled = [(times @ values / total, _medians(times, values[:, 0])) for times in chunks]
    means, medians = map(np.concatenate, zip(*sampled, strict=True))
    samples = dict(zip(["MnR", *shares], means.T, strict=True)) | {"MdR": medians}
    intervals = {name: _central_interval(sampled) for name, sampled in samples.items()}
    wilson = {name: _wilson_interval(hits) for name, hits in shares.items()}
    return intervals | {name: interval for name, interval in wilson.items() if interval is not None}


def _medians(times: Int64[ndarray, "s k"], ranks: Float64[ndarray, " k"]) -> Float64[ndarray, " s"]:
    """Return the median rank of each sample, given as the number of queries with each of the ascending `ranks`."""
    (n, kinds), total = times.shape, int(times[0].sum())
    up_to = times.ravel().cumsum()  # every sample adds `total`, so that one search serves them all
    samples: Int64[ndarray, "s 1"] = np.arange(n)[:, None]
    positions = total * samples + np.array([(total - 1) // 2, total // 2])
    middle = np.searchsorted(up_to, positions, side="right") - kinds * samples
    return ranks[middle].mean(axis=1)


def _wilson_interval(hits: Shaped[ndarray, " q"]) -> Interval | None:
    """Return Wilson's score interval if all `hits` are equal, else None.

    A share between 0 and 1 (of a tie) gets the interval of that many hits and misses with this mean, whose variance is
    the largest possible.
    """
    if not len(hits) or not np.all(hits == hits[0]):
        return None
    n, share, z2 = len(hits), float(hits[0]), NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    if share in (0, 1):
        return (n / (n + z2), 1.0) if share else (0.0, 1 - n / (n + z2))
    middle, half = share + z2 / (2 * n), math.sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2)
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


def _central_interval(samples: Shaped[ndarray, " n"] | Sequence[float]) -> Interval:
    """Return the percentile interval of bootstrap samples, at the level of `CONFIDENCE`."""
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


class Difference(NamedTuple):
    """Mean difference b - a over queries, its 95 % interval, and the two-sided p-value of no difference."""

    mean: float
    interval: Interval
    p: float


def paired_bootstrap(
    a: Shaped[ndarray, " _"], b: Shaped[ndarray, " _"], *, n_resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Compare two models on the same queries by `n_resamples` bootstrap samples of the pairs of scores.

    p is twice the share of samples whose mean difference lies on the other side of 0, with ties (`TOLERANCE`) counted
    half and one added to numerator and denominator (Davison and Hinkley 1997, section 4.2.3), so it is never 0. Raises
    ValueError if the numbers of queries differ, or for n_resamples < 1.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(
            f"a and b must be scores of the same queries, got {a.shape} and {b.shape}; evaluate both on the same data"
        )
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be an integer >= 1, got {n_resamples}; take 1000 or more")
    differences = b.astype(np.float64) - a.astype(np.float64)
    rng = np.random.default_rng(seed)
    means = _means(differences, n_resamples, rng)
    below, ties = float((means < -TOLERANCE).sum()), float((np.abs(means) <= TOLERANCE).sum())
    tail = min(below + ties / 2, n_resamples - below - ties / 2)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(
        float(differences.mean()), (float(low), float(high)), min(1.0, 2 * (tail + 1) / (n_resamples + 1))
    )


def percent(interval: Interval) -> Interval:
    """Return an interval of shares in percent."""
    return 100 * interval[0], 100 * interval[1]


def cell(value: float, interval: Interval) -> str:
    """Return a metric and its interval as a table cell."""
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
