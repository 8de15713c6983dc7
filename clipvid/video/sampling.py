"""Which frames of a video to look at: pure arithmetic on integers, no pixels and no files.

Contract: every function takes the number of frames a video has and returns indices in [0, total) in rising time
(dense sampling of a short video excepted, see there). Randomness comes from a `random.Random` that the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

STRIDE = 8
"""Frames from one of a dense clip to the next, unless said otherwise."""


def uniform(total: int, frames: int, *, rng: Random | None = None) -> list[int]:
    """One frame from each of `frames` equal segments: the middle one, or with `rng` a random one (the rule of STAN).

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
    """Evenly spread from the first frame to the last (the rule of CLIP4Clip); `rng` is not used, it is deterministic.

    A video with fewer frames gives all of them and no more: the caller pads and masks.
    >>> linspace(100, 4), linspace(3, 4)
    ([0, 33, 66, 99], [0, 1, 2])
    """
    _check(total, frames)
    if total <= frames:
        return list(range(total))
    if frames == 1:
        return [0]
    step = (total - 1) / (frames - 1)  # a float on purpose: numpy.linspace(...).astype(int) is the reference
    return [*(int(i * step) for i in range(frames - 1)), total - 1]


def dense(
    total: int, frames: int, *, stride: int = STRIDE, start: int | None = None, rng: Random | None = None
) -> list[int]:
    """Every `stride`-th frame from `start`; without a start the clip is centred, or with `rng` placed at random.

    A clip that runs past the end goes on from the first frame (indices modulo total), as Kinetics protocols do.
    >>> dense(100, 4, stride=8), dense(10, 4, stride=4)
    ([37, 45, 53, 61], [0, 4, 8, 2])
    """
    _check(total, frames)
    if stride < 1:
        raise ValueError(f"stride must be 1 or more, got {stride}")
    room = max(0, total - 1 - (frames - 1) * stride)
    if start is None:
        start = room // 2 if rng is None else rng.randint(0, room)
    if not 0 <= start < total:
        raise ValueError(f"start must be a frame of the video, 0 to {total - 1}, got {start}")
    return [(start + i * stride) % total for i in range(frames)]


def temporal_views(total: int, frames: int, *, views: int, stride: int | None = None) -> list[list[int]]:
    """`views` different samples of one video, spread evenly, whose predictions are averaged.

    Without `stride` each view takes another place in the segments of `uniform` (one view is `uniform` itself);
    with it each is a `dense` clip, the first at the video's start and the last at its end (one view is centred).
    >>> temporal_views(100, 2, views=2), temporal_views(100, 2, views=3, stride=10)
    ([[12, 62], [37, 87]], [[0, 10], [44, 54], [89, 99]])
    """
    _check(total, frames)
    if views < 1:
        raise ValueError(f"views must be 1 or more, got {views}")
    if stride is None:
        segment = (total - 1) / frames
        shifts = [int(segment * (2 * view + 1) / (2 * views)) for view in range(views)]
        return [[round(segment * i) + shift for i in range(frames)] for shift in shifts]
    if views == 1:
        return [dense(total, frames, stride=stride)]
    room = max(0, total - 1 - (frames - 1) * stride)
    return [dense(total, frames, stride=stride, start=room * view // (views - 1)) for view in range(views)]


def two_starts(places: int, *, rng: Random) -> tuple[int, int]:
    """Starts of two clips in [0, places): near ones more often than distant ones, the earlier or the later first.

    The density of their gap falls linearly to 0 at m = places (Qian et al. 2021, CVRL; ConST-CL takes it over):
    P(gap < k) = 2 k / m - k² / m². Given the gap, the earlier start is any that leaves room for it.
    """
    if places < 1:
        raise ValueError(f"places is the number of starts to choose from and must be 1 or more, got {places}")
    gap = int(places * (1 - math.sqrt(1 - rng.random())))  # the inverse of P
    first = rng.randrange(places - gap)
    return (first, first + gap) if rng.random() < 0.5 else (first + gap, first)


def two_clips(total: int, frames: int, *, stride: int = 2, rng: Random) -> tuple[list[int], list[int]]:
    """Two random `dense` clips of one video, their starts drawn by `two_starts`.

    In a video that is shorter than a clip every frame is a start, both are drawn alike, and clips go on from the first
    frame (as ConST-CL's release).
    """
    _check(total, frames)
    places = total - (frames - 1) * stride
    starts = two_starts(places, rng=rng) if places > 0 else (rng.randrange(total), rng.randrange(total))
    return dense(total, frames, stride=stride, start=starts[0]), dense(total, frames, stride=stride, start=starts[1])


SAMPLERS: dict[str, Callable[..., list[int]]] = {"uniform": uniform, "linspace": linspace, "dense": dense}


def sample(name: str, total: int, frames: int, *, rng: Random | None = None) -> list[int]:
    """Indices by the sampler of that name, with its defaults; `rng` makes uniform and dense random.

    >>> sample("uniform", 100, 4)
    [12, 37, 62, 86]
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name](total, frames, rng=rng)


def sample_views(name: str, total: int, frames: int, *, views: int) -> list[list[int]]:
    """`temporal_views` by the sampler of that name; one view is `sample` itself.

    >>> sample_views("uniform", 100, 2, views=2), sample_views("linspace", 100, 2, views=1)
    ([[12, 62], [37, 87]], [[0, 99]])
    """
    if views == 1:
        return [sample(name, total, frames)]
    if name == "linspace":
        raise ValueError(
            f"linspace goes from the first frame to the last, so a video has one view by it, got views={views}; take "
            "uniform or dense"
        )
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    return temporal_views(total, frames, views=views, stride=STRIDE if name == "dense" else None)


def _check(total: int, frames: int) -> None:
    if total < 1:
        raise ValueError(f"total is the number of frames of the video and must be 1 or more, got {total}")
    if frames < 1:
        raise ValueError(f"frames is the number of frames to take and must be 1 or more, got {frames}")
