"""Film strips of a single clip, or of retrieval queries with their hits.

Contract: uint8 frames and sentences in, one figure out. Knows nothing of models, data sets or decoding.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch
from torch import Tensor

from clipvid.plots.style import DPI, FILM, GREY, HOLE, INK, RIGHT, WRONG, Picture


@dataclass(frozen=True)
class RetrievedClip:
    """One retrieved clip: some of its frames, its score, and if it is a correct answer."""

    frames: UInt8[Tensor, "t 3 h w"]
    score: float
    right: bool
    caption: str = ""


@dataclass(frozen=True)
class RetrievalRow:
    """A query sentence and its hits, best first."""

    query: str
    hits: tuple[RetrievedClip, ...]


def retrieval_grid(rows: Sequence[RetrievalRow], *, title: str = "") -> Figure:
    """Draw each query above film strips of its hits: correct ones framed green with a tick, wrong ones with a cross."""
    if not any(row.hits for row in rows):
        raise ValueError(
            f"rows must have hits, got {len(rows)} rows without any; give a RetrievalRow with a RetrievedClip"
        )
    columns = max(len(row.hits) for row in rows)
    n_frames = max(len(hit.frames) for row in rows for hit in row.hits)
    aspect = float(np.median([_aspect(hit.frames) for row in rows for hit in row.hits]))
    side, gap = 0.3, 0.32
    room = max(5.0, min(14.0, columns * n_frames * 0.95 * aspect)) - 2 * side - (columns - 1) * gap
    strip = _Strip(n_frames, width=room / columns, aspect=aspect)
    page = _Page(width=room + 2 * side + (columns - 1) * gap, side=side)
    if title:
        page.paragraph(title, size=15, weight="bold", after=0.2)
    for row in rows:
        page.paragraph(f"“{row.query}”", size=12.5, after=0.13)
        top, bottom = page.y, page.y
        for column, hit in enumerate(row.hits):
            x = side + column * (strip.width + gap)
            bottom = max(bottom, _draw_hit(page, hit, x=x, y=top, strip=strip, rank=column + 1))
        page.y = bottom + 0.3
    page.y -= 0.15
    return page.finished()


def film_strip(frames: UInt8[Tensor, "t 3 h w"], *, title: str = "", per_row: int = 8) -> Figure:
    """Draw the frames in order as a film strip, `per_row` per line, each with its number (from 0)."""
    if not len(frames):
        raise ValueError(f"frames must have at least one frame, got shape {tuple(frames.shape)}; give (T, 3, H, W)")
    if per_row < 1:
        raise ValueError(f"per_row must be an integer >= 1, got {per_row}; give the number of frames per line")
    columns = min(per_row, len(frames))
    aspect = _aspect(frames)
    width = max(3.0, min(13.0, columns * 1.3 * aspect))
    strip = _Strip(columns, width=width, aspect=aspect)
    page = _Page(width=width + 0.5, side=0.25)
    if title:
        page.paragraph(title, size=13, weight="bold", after=0.14)
    for first in range(0, len(frames), columns):
        strip.draw(page, frames[first : first + columns], x=0.25, y=page.y, numbered_from=first)
        page.y += strip.height + 0.12
    page.y += 0.02
    return page.finished()


class _Page:
    """A page that grows downwards with its contents, so that nothing is clipped; in inches from the top left corner."""

    def __init__(self, *, width: float, side: float) -> None:
        self.width, self.side, self.y = width, side, side * 0.8
        self.figure = Picture(figsize=(width, 1), dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self._ruler = FigureCanvasAgg(self.figure).get_renderer()

    def measure(self, text: str, font: FontProperties) -> float:
        """Return the width of a line of text in inches."""
        return self._ruler.get_text_width_height_descent(text, font, ismath=False)[0] / DPI

    def wrap(self, text: str, *, width: float, font: FontProperties) -> list[str]:
        """Split text into lines of at most `width` inches, breaking words that are longer than a line."""
        lines = [""]
        for word in text.split():
            if self.measure(f"{lines[-1]} {word}", font) <= width or not lines[-1]:
                lines[-1] = f"{lines[-1]} {word}".strip()
            else:
                lines.append(word)
            while self.measure(lines[-1], font) > width and len(lines[-1]) > 1:
                last = lines[-1]
                cut = 1 + bisect_right(range(2, len(last)), width, key=lambda n: self.measure(last[:n], font))
                lines[-1:] = [last[:cut], last[cut:]]
        return lines

    def text(self, text: str, *, x: float, y: float, font: FontProperties, colour: str = INK) -> None:
        """Write one line, with its capitals centred on `y`."""
        self.axes.text(x, y, text, font=font, color=colour, va="center_baseline", ha="left", parse_math=False)

    def paragraph(self, text: str, *, size: float, after: float, weight: str = "normal") -> None:
        """Write wrapped text at the bottom of the page, with `after` inches of space below it."""
        font = FontProperties(size=size, weight=weight)
        for line in self.wrap(text, width=self.width - 2 * self.side, font=font):
            self.y += size * 1.4 / 72
            self.text(line, x=self.side, y=self.y - size * 0.7 / 72, font=font)
        self.y += after

    def finished(self) -> Figure:
        """Set the final height and return the figure."""
        height = self.y + self.side * 0.2
        self.figure.set_size_inches(self.width, height)
        self.axes.set(xlim=(0, self.width), ylim=(height, 0))
        return self.figure


class _Strip:
    """Dimensions in inches of a film strip of `n_frames` cells, shared by all strips on a page."""

    def __init__(self, n_frames: int, *, width: float, aspect: float) -> None:
        self.width, self.edge, self.gap = width, 0.13, 0.045
        self.cell = (width - self.gap * (n_frames + 1)) / n_frames
        self.cell_height = self.cell / aspect
        self.height = self.cell_height + 2 * self.edge

    def film_width(self, n_frames: int) -> float:
        """Return the width in inches of a film of `n_frames` frames."""
        return self.gap + n_frames * (self.cell + self.gap)

    def draw(
        self, page: _Page, frames: UInt8[Tensor, "t 3 h w"], *, x: float, y: float, numbered_from: int | None = None
    ) -> None:
        """Draw perforated film with a frame in each cell; fewer frames give a shorter film."""
        width = self.film_width(len(frames))
        page.axes.add_patch(_rounded(x, y, width, self.height, radius=0.05, facecolor=FILM, edgecolor="none"))
        n_holes = max(2, round(width / 0.17))
        for hole in range(n_holes):
            left = x + (hole + 0.5) * width / n_holes - 0.035
            for top in (y + 0.04, y + self.height - 0.09):
                page.axes.add_patch(_rounded(left, top, 0.07, 0.05, radius=0.015, facecolor=HOLE, edgecolor="none"))
        for number, frame in enumerate(frames):
            left = x + self.gap + number * (self.cell + self.gap)
            _picture(page.axes, frame, x=left, y=y + self.edge, width=self.cell, height=self.cell_height)
            if numbered_from is not None:
                box = {"boxstyle": "round,pad=0.25", "facecolor": FILM, "edgecolor": "none", "alpha": 0.75}
                corner = (left + 0.05, y + self.edge + 0.05)
                page.axes.text(*corner, f"{numbered_from + number}", fontsize=7, color="white", va="top", bbox=box)


def _draw_hit(page: _Page, hit: RetrievedClip, *, x: float, y: float, strip: _Strip, rank: int) -> float:
    """Draw a framed strip with mark, score, rank and caption below it; return the y of the lower end."""
    colour, pad = (RIGHT if hit.right else WRONG), 0.05
    strip.draw(page, hit.frames, x=x, y=y)
    width, height = strip.film_width(len(hit.frames)) + 2 * pad, strip.height + 2 * pad
    style = {"facecolor": "none", "edgecolor": colour, "linewidth": 2.2}
    style["linestyle"] = "-" if hit.right else (0, (4, 1.6))
    page.axes.add_patch(_rounded(x - pad, y - pad, width, height, radius=0.09, **style))
    y += strip.height + pad + 0.17
    _mark(page.axes, x + 0.06, y, right=hit.right)
    bold, small = FontProperties(size=9.5, weight="bold"), FontProperties(size=9.5)
    score = f"{hit.score:.2f}"
    page.text(score, x=x + 0.23, y=y, font=bold, colour=colour)
    left = x + 0.23 + page.measure(score, bold)
    page.text(f"  rank {rank}", x=left, y=y, font=small, colour=GREY)
    y += 0.1
    if hit.caption:
        for line in page.wrap(hit.caption, width=strip.width, font=small):
            page.text(line, x=x - 0.03, y=y + 0.09, font=small, colour=GREY)
            y += 0.175
    return y


def _mark(axes: Axes, x: float, y: float, *, right: bool) -> None:
    """Draw a disc with a tick or a cross; as lines, because a font may lack these characters."""
    axes.add_patch(Circle((x, y), 0.085, facecolor=RIGHT if right else WRONG, edgecolor="none"))
    tick = [((-0.042, -0.012, 0.042), (0.003, 0.035, -0.032))]
    cross = [((-0.03, 0.03), (-0.03, 0.03)), ((-0.03, 0.03), (0.03, -0.03))]
    for dx, dy in tick if right else cross:
        axes.plot(np.add(x, dx), np.add(y, dy), color="white", linewidth=1.6, solid_capstyle="round")


def _picture(axes: Axes, frame: UInt8[Tensor, "3 h w"], *, x: float, y: float, width: float, height: float) -> None:
    """Draw the uncropped frame centred in its cell; film stays visible beside a frame of another aspect ratio."""
    scale = min(width / frame.shape[2], height / frame.shape[1])
    w, h = frame.shape[2] * scale, frame.shape[1] * scale
    left, top = x + (width - w) / 2, y + (height - h) / 2
    pixels = frame.permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
    axes.imshow(pixels, extent=(left, left + w, top + h, top), aspect="auto", zorder=2)


def _rounded(x: float, y: float, width: float, height: float, *, radius: float, **style: object) -> FancyBboxPatch:
    shape = f"round,pad=0,rounding_size={radius}"
    return FancyBboxPatch((x, y), width, height, boxstyle=shape, **style)  # pyright: ignore[reportArgumentType]


def _aspect(frames: Tensor) -> float:
    """Return width / height, limited to [9/16, 16/9] so that one unusual clip does not deform the page."""
    return min(16 / 9, max(9 / 16, frames.shape[3] / frames.shape[2]))
