"""Drawing of MotionShapes: anti-aliased figures and textures in numpy.

Contract: figures are signed distance functions blended into uint8 RGB frames in place, all frames of a clip at once.
A changed pixel changes the data set and the training data of clipvid-mini: increment `LOOK` in motion_shapes.py with
it. Knows nothing of scenes, motions and captions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

DOT = (22, 22, 26)


@dataclass(frozen=True)
class Figure:
    """One shape over time, in pixels and radians; x, y, radius, angle and alpha are (T,), colour is RGB (3,)."""

    shape: str
    colour: ndarray
    x: ndarray
    y: ndarray
    radius: ndarray
    angle: ndarray
    alpha: ndarray
    dot: bool

    def at(self, frames: ndarray) -> Figure:
        """Return the figure at the given frame indices only."""
        return replace(self, **{name: getattr(self, name)[frames] for name in ("x", "y", "radius", "angle", "alpha")})


def texture(name: str, height: int, width: int, rng: np.random.Generator) -> UInt8[ndarray, "h w 3"]:
    """Return a texture of two muted tones at a random angle, RGB (H, W, 3) uint8."""
    tone = rng.uniform(100, 190) + rng.uniform(-12, 12, (2, 3))
    tone += np.array([[1], [-1]]) * rng.uniform(22, 34) * rng.choice([-1, 1])
    side, turn = (height * width) ** 0.5, rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    if name == "plain":
        weight = 0.35 + 0.3 * (along - along.min()) / (along.max() - along.min())
    else:
        period = rng.uniform(0.17, 0.26) * side * (1 if name == "striped" else 1.2)
        a, b = (np.sin(2 * np.pi * (axis / period + rng.random())) for axis in (along, across))
        wave = {"striped": 2 * a, "checkered": 3 * a * b, "dotted": 2 * (a + b) - 1.6}[name]
        weight = np.clip(0.5 + wave * period / 12, 0, 1)
    weight = weight[..., None].astype(np.float32)
    return (tone[0] * weight + tone[1] * (1 - weight) + 0.5).clip(0, 255).astype(np.uint8)


def paint(frames: UInt8[ndarray, "t h w 3"], figure: Figure) -> None:
    """Blend a figure into the frames, in place, touching only the square around it."""
    reach = int(np.ceil(figure.radius.max() * 1.02)) + 2
    left, top = (np.floor(axis).astype(int) - reach for axis in (figure.x, figure.y))
    steps = np.arange(2 * reach + 1, dtype=np.float32)
    radius = figure.radius.astype(np.float32)[:, None, None]
    x = (steps[None, None, :] - (figure.x - left).astype(np.float32)[:, None, None]) / radius  # (T, 1, P)
    y = (steps[None, :, None] - (figure.y - top).astype(np.float32)[:, None, None]) / radius  # (T, P, 1)
    cos, sin = (function(figure.angle).astype(np.float32)[:, None, None] for function in (np.cos, np.sin))
    along, across = cos * x + sin * y, cos * y - sin * x  # (T, P, P) in the figure's own axes, radius 1
    cover = np.clip(0.5 - _distance(figure.shape, along, across) * radius, 0, 1)
    dot = np.clip(0.5 - (np.hypot(along - 0.7, across) - 0.28) * radius, 0, 1) if figure.dot else np.zeros_like(cover)
    alpha = np.maximum(cover, dot) * figure.alpha.astype(np.float32)[:, None, None]
    ink = figure.colour + dot[..., None] * (np.array(DOT, np.float32) - figure.colour)
    height, width = frames.shape[1:3]
    for t, (x0, y0) in enumerate(zip(left.tolist(), top.tolist(), strict=True)):
        rows, columns = slice(max(y0, 0), min(y0 + len(steps), height)), slice(max(x0, 0), min(x0 + len(steps), width))
        inside = (t, slice(rows.start - y0, rows.stop - y0), slice(columns.start - x0, columns.stop - x0))
        under = frames[t, rows, columns].astype(np.float32)
        under += alpha[inside][..., None] * (ink[inside] - under)
        frames[t, rows, columns] = under + 0.5


def _distance(shape: str, x: ndarray, y: ndarray) -> ndarray:
    """Return the signed distance to a shape of radius 1 (negative inside; exact near edges, for anti-aliasing)."""
    if shape == "circle":
        return np.hypot(x, y) - 0.88
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.74
    if shape == "triangle":
        return np.maximum(-x, 0.5 * x + 0.8660254 * abs(y)) - 0.5
    if shape == "star":
        return _star(x, y)
    if shape == "cross":
        x, y = abs(x), abs(y)
        return np.minimum(np.maximum(x - 0.9, y - 0.27), np.maximum(x - 0.27, y - 0.9))
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.74) - 0.19
    if shape == "bar":
        return np.maximum(abs(x) - 0.98, abs(y) - 0.3)
    return np.maximum(np.hypot(x, y) - 0.92, 0.8 - np.hypot(x + 0.5, y))  # moon


def _star(x: ndarray, y: ndarray) -> ndarray:
    """Return the signed distance to a pentagram, the second largest distance to its five lines.

    A point is inside if it lies on the inner side of at least four of them.
    """
    largest, second = np.full_like(x, -np.inf), np.full_like(x, -np.inf)
    for turn in np.radians(36 + 72 * np.arange(5)):
        d = np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y - np.float32(0.309)
        second = np.maximum(second, np.minimum(largest, d))
        largest = np.maximum(largest, d)
    return second
