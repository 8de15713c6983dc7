"""Frame sampling: pure arithmetic on frame indices, without pixels or files.

Contract: every function takes the number of frames of a video and returns indices in [0, total) in ascending order,
except `dense` for short videos. Randomness comes from a `random.Random` that the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from random import Random

STRIDE = 8
"""Default step, in video frames, between the frames of a dense clip."""


def uniform(total: int, frames: int, *, rng: Random | None = None) -> list[int]:
    """Return one frame of each of `frames` equal segments: the middle one, or a random one with `rng` (as STAN).

    Short videos repeat frames, so the result always has `frames` entries.
    >>> uniform(100, 4)
    [12, 37, 62, 86]
    """
    _check(total, frames)
    segment = (total - 1) / frames
    if rng is None:
        return [round(segment * i) + int(segment / 2) for i in range(frames)]
    return [rng.randint(round(segment * i), round(segment * (i + 1))) for i in range(frames)]


def linspace(total: int, frames: int, *, rng: Random | None = None) -> list[int]:
    """Return frames evenly spaced from the first to the last (as CLIP4Clip); deterministic, `rng` is ignored.

    A video with fewer frames returns all of them once; padding and masking are left to the caller.
    >>> linspace(100, 4), linspace(3, 4)
    ([0, 33, 66, 99], [0, 1, 2])
    """
    _check(total, frames)
    if total <= frames:
        return list(range(total))
    if frames == 1:
        return [0]
    step = (total - 1) / (frames - 1)  # float, to match the reference numpy.linspace(...).astype(int)
    return [*(int(i * step) for i in range(frames - 1)), total - 1]


def dense(
    total: int, frames: int, *, stride: int = STRIDE, start: int | None = None, rng: Random | None = None
) -> list[int]:
    """Return every `stride`-th frame from `start`; without `start` the clip is centred, or with `rng` starts at random.

    A clip that runs past the end continues at the first frame (indices modulo total), as in Kinetics protocols.
    >>> dense(100, 4, stride=8), dense(10, 4, stride=4)
    ([37, 45, 53, 61], [0, 4, 8, 2])
    """
    _check(total, frames)
    if stride < 1:
        raise ValueError(f"stride must be an integer >= 1, got {stride}; 1 takes consecutive frames")
    last_start = max(0, total - 1 - (frames - 1) * stride)
    if start is None:
        start = last_start // 2 if rng is None else rng.randint(0, last_start)
    if not 0 <= start < total:
        raise ValueError(
            f"start must be an integer from 0 to {total - 1}, the frames of the video, got {start}; "
            "choose a frame of the video"
        )
    return [(start + i * stride) % total for i in range(frames)]


def temporal_views(total: int, frames: int, *, views: int, stride: int | None = None) -> list[list[int]]:
    """Return `views` evenly spaced samples of one video, whose predictions are to be averaged.

    Without `stride`, each view takes a different offset in the segments of `uniform`, and a single view is `uniform`.
    With `stride`, each is a `dense` clip, the first at the video's start and the last at its end; a single view is
    centred.
    >>> temporal_views(100, 2, views=2), temporal_views(100, 2, views=3, stride=10)
    ([[12, 62], [37, 87]], [[0, 10], [44, 54], [89, 99]])
    """
    _check(total, frames)
    if views < 1:
        raise ValueError(f"views must be an integer >= 1, got {views}; 1 takes one clip per video")
    if stride is None:
        segment = (total - 1) / frames
        shifts = [int(segment * (2 * view + 1) / (2 * views)) for view in range(views)]
        return [[round(segment * i) + shift for i in range(frames)] for shift in shifts]
    if views == 1:
        return [dense(total, frames, stride=stride)]
    last_start = max(0, total - 1 - (frames - 1) * stride)
    return [dense(total, frames, stride=stride, start=last_start * view // (views - 1)) for view in range(views)]


def two_starts(n_starts: int, *, rng: Random) -> tuple[int, int]:
    """Return two clip starts in [0, n_starts), in random order; small gaps between them are more likely.

    The density of the gap falls linearly to 0 at m = n_starts (Qian et al. 2021, CVRL; also used by ConST-CL):
    P(gap < k) = 2 k / m - k² / m². Given the gap, the earlier start is uniform over all that fit.
    """
    if n_starts < 1:
        raise ValueError(f"n_starts must be an integer >= 1, got {n_starts}; use a longer video or shorter clips")
    gap = int(n_starts * (1 - math.sqrt(1 - rng.random())))  # the inverse of P
    first = rng.randrange(n_starts - gap)
    return (first, first + gap) if rng.random() < 0.5 else (first + gap, first)


def two_clips(total: int, frames: int, *, stride: int = 2, rng: Random) -> tuple[list[int], list[int]]:
    """Return two random `dense` clips of one video, with starts drawn by `two_starts`.

    If the video is shorter than a clip, both starts are drawn uniformly from all frames, and clips continue at the
    first frame (as in ConST-CL's release).
    """
    _check(total, frames)
    n_starts = total - (frames - 1) * stride
    starts = two_starts(n_starts, rng=rng) if n_starts > 0 else (rng.randrange(total), rng.randrange(total))
    return dense(total, frames, stride=stride, start=starts[0]), dense(total, frames, stride=stride, start=starts[1])


SAMPLERS: dict[str, Callable[..., list[int]]] = {"uniform": uniform, "linspace": linspace, "dense": dense}


def sample(name: str, total: int, frames: int, *, rng: Random | None = None) -> list[int]:
    """Return the indices of a named sampler with its defaults; `rng` makes uniform and dense random.

    >>> sample("uniform", 100, 4)
    [12, 37, 62, 86]
    """
    if name not in tuple(SAMPLERS):
        raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name](total, frames, rng=rng)


def sample_views(name: str, total: int, frames: int, *, views: int) -> list[list[int]]:
    """Return the `temporal_views` of a named sampler; a single view is that of `sample`.

    >>> sample_views("uniform", 100, 2, views=2), sample_views("linspace", 100, 2, views=1)
    ([[12, 62], [37, 87]], [[0, 99]])
    """
    if views == 1:
        return [sample(name, total, frames)]
    if name == "linspace":
        raise ValueError(
            f"views must be 1 with sampler 'linspace', which always spans the video, got {views}; choose uniform or "
            "dense for more"
        )
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    return temporal_views(total, frames, views=views, stride=STRIDE if name == "dense" else None)


def _check(total: int, frames: int) -> None:
    if total < 1:
        raise ValueError(f"total must be an integer >= 1, got {total}; a video needs at least one frame")
    if not isinstance(frames, Integral) or frames < 1:
        raise ValueError(f"frames must be an integer >= 1, got {frames!r}; it is the number of frames per clip")
