"""Pictures: training curves, retrieval results as film strips, confusion matrices; the only owner of matplotlib.

Contract: plain data in (numbers, uint8 frames, sentences), one finished file out; the format follows from the suffix.
Drawn with matplotlib's objects, never pyplot, so no global state is read or changed and any thread may draw. A file
appears whole or not at all. Right and wrong differ in colour, shape and line style, for colour-blind readers.
Knows nothing of models, data sets or decoding.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor

from clipvid._labels import place_labels

DPI = 130
INK, GREY, LINE, FILM, HOLE = "#1f2933", "#66737f", "#d9dee3", "#20242a", "#f2f4f6"
RIGHT, WRONG = "#0a8a66", "#c8402a"  # bluish green and vermilion: apart for every common kind of colour blindness
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEADING = {"fontsize": 14, "fontweight": "bold", "color": INK, "parse_math": False}
HEAT = LinearSegmentedColormap.from_list("clipvid", ["#f6f9fb", "#b9d7e8", "#4b9ac4", "#0f5f94", "#0a2f55"])


@dataclass(frozen=True)
class Hit:
    """One retrieved video: a few of its frames, its score, and whether it is a right answer."""

    frames: UInt8[Tensor, "t 3 h w"]
    score: float
    right: bool
    caption: str = ""


@dataclass(frozen=True)
class Trade:
    """One thing's price and quality, with the quality's standard deviation; `group` gives its colour and marker."""

    name: str
    price: float
    quality: float
    spread: float
    group: str


@dataclass(frozen=True)
class RetrievalRow:
    """A query sentence and its hits, best first."""

    query: str
    hits: tuple[Hit, ...]


def training_curve(
    history: Sequence[Mapping[str, object]],
    path: str | Path,
    *,
    title: str = "Training",
    score_name: str = "validation score",
) -> Path:
    """Draw loss and validation score against epochs, one line for each run.

    Each entry has "epoch" and "loss", and may have "run" (the name of its line) and "score" (higher is better).
    """
    runs = _runs(history)
    scored = any(point is not None for run in runs.values() for point in run["score"])
    figure = _chart(width=10.0 if scored else 5.6, height=4.6)
    panels = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    for axes, key, name in zip(panels, ("loss", "score"), ("training loss", score_name), strict=False):
        _panel(axes, name)
        for order, run in enumerate(runs.values()):
            colour, marker = RUN_COLOURS[order % len(RUN_COLOURS)], RUN_MARKERS[order % len(RUN_MARKERS)]
            values = [math.nan if value is None else value for value in run[key]]
            axes.plot(run["epoch"], values, color=colour, marker=marker, markersize=4.5, linewidth=2, clip_on=False)
    labels = [_run_label(name, run, score_name=score_name) for name, run in runs.items()]
    if any(labels):
        legend = figure.legend(panels[0].lines, labels, loc="outside lower left", ncols=2, fontsize=9.5)
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set(color=INK, parse_math=False)
    heading = textwrap.fill(title, 80 if scored else 42)
    figure.suptitle(heading, x=0.012, ha="left", **HEADING)
    return _write(figure, path)


def trade_off(points: Sequence[Trade], path: str | Path, *, title: str, price: str, quality: str) -> Path:
    """Draw quality against price, price on a logarithmic axis, each point named and with its deviation."""
    if not points:
        raise ValueError("points are empty; give at least one Trade")
    figure = _chart(width=9.6, height=5.8)
    axes = figure.subplots()
    _panel(axes, quality)
    axes.set_xscale("log")
    axes.set_xlabel(price, color=INK, fontsize=11)
    groups = list(dict.fromkeys(point.group for point in points))
    for order, group in enumerate(groups):
        own = [point for point in points if point.group == group]
        axes.errorbar(
            [p.price for p in own],
            [p.quality for p in own],
            yerr=[p.spread for p in own],
            fmt=RUN_MARKERS[order],
            color=RUN_COLOURS[order],
            markersize=7,
            elinewidth=1.2,
            capsize=3,
            label=group,
        )
    axes.margins(x=0.14)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", frameon=False, fontsize=9.5)
    figure.suptitle(textwrap.fill(title, 80), x=0.012, ha="left", **HEADING)
    _name_points(axes, points)
    return _write(figure, path)


def _name_points(axes: Axes, points: Sequence[Trade]) -> None:
    """Write each point's name where it covers nothing, with a line to the point if it had to go far."""
    canvas = FigureCanvasAgg(axes.get_figure(root=True))
    canvas.draw()  # the layout is settled only now
    axes.set_autoscale_on(False)
    to_pixels, renderer = axes.transData.transform, canvas.get_renderer()
    pixels = [tuple(to_pixels((p.price, p.quality))) for p in points]
    bars = [(*to_pixels((p.price, p.quality - p.spread)), *to_pixels((p.price, p.quality + p.spread))) for p in points]
    obstacles = [(x - 7, min(low, y - 7), x + 7, max(high, y + 7)) for (x, y), (_, low, _, high) in zip(pixels, bars)]  # noqa: B905
    if legend := axes.get_legend():
        obstacles.append(legend.get_window_extent(renderer).extents)
    texts = [axes.text(p.price, p.quality, p.name, fontsize=8.5, color=INK, parse_math=False) for p in points]
    sizes = [(extent.width, extent.height) for extent in (text.get_window_extent(renderer) for text in texts)]
    boxes = place_labels(pixels, sizes, obstacles, axes.get_window_extent(renderer).extents)
    to_data = axes.transData.inverted().transform
    for text, (x, y), box in zip(texts, pixels, boxes, strict=True):
        left, middle = to_data((box[0], (box[1] + box[3]) / 2))
        text.set_position((left, middle))
        text.set_verticalalignment("center_baseline")
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.dist((x, y), near) > 14:
            line = np.array([to_data((x, y)), to_data(near)])
            axes.plot(line[:, 0], line[:, 1], color=LINE, linewidth=0.8, zorder=0)


def retrieval_grid(rows: Sequence[RetrievalRow], path: str | Path, *, title: str = "") -> Path:
    """Draw each query with film strips of its hits below it: right ones framed green and ticked, wrong ones crossed."""
    if not any(row.hits for row in rows):
        raise ValueError("rows hold no hits; give at least one RetrievalRow with one Hit")
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
    return page.write(path)


def confusion_matrix(
    matrix: Sequence[Sequence[float]] | np.ndarray | Tensor,
    classes: Sequence[str],
    path: str | Path,
    *,
    title: str = "Confusion matrix",
) -> Path:
    """Draw counts (C, C), true classes down and predicted ones across, coloured by the share of each true class."""
    counts = np.asarray(matrix, dtype=float)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"matrix must be (C, C) for {len(classes)} classes, got {counts.shape}; rows are true classes")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    names = [name if len(name) <= 36 else name[:35] + "…" for name in classes]
    side, label = min(9.0, max(2.4, 0.48 * len(names))), 0.075 * max(map(len, names), default=0)  # inches
    heading = textwrap.fill(title, int((side + label + 1.5) * 7))
    height = side + 0.65 * label + 1.6 + 0.25 * heading.count("\n")
    figure = _chart(width=side + label + 1.9, height=height)
    axes = figure.subplots()
    image = axes.imshow(share, cmap=HEAT, vmin=0, vmax=1, interpolation="nearest")
    _class_ticks(axes, names)
    if len(names) <= 24:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[i, j] > 0.5 else INK
                axes.text(j, i, f"{count:g}", ha="center", va="center", fontsize=8.5, color=colour)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, aspect=40, pad=0.02, format=PercentFormatter(1.0))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]  # typed as a Spines, is one spine
    bar.ax.tick_params(labelsize=8.5, colors=GREY, length=0)
    bar.set_label("share of the true class", fontsize=9.5, color=GREY)
    right = np.trace(counts) / max(counts.sum(), 1e-12)
    figure.suptitle(heading, x=0.02, ha="left", **HEADING)
    axes.set_title(f"{right:.1%} right of {counts.sum():g}", loc="left", fontsize=10, color=GREY)
    return _write(figure, path)


def film_strip(frames: UInt8[Tensor, "t 3 h w"], path: str | Path, *, title: str = "", per_row: int = 8) -> Path:
    """Draw the frames in order as a film strip, `per_row` to a line, each with its number from 0."""
    if not len(frames):
        raise ValueError("frames holds no frame; got shape (0, ...)")
    across = min(per_row, len(frames))
    aspect = _aspect(frames)
    width = max(3.0, min(13.0, across * 1.3 * aspect))
    strip = _Strip(across, width=width, aspect=aspect)
    page = _Page(width=width + 0.5, side=0.25)
    if title:
        page.paragraph(title, size=13, weight="bold", after=0.14)
    for first in range(0, len(frames), across):
        strip.draw(page, frames[first : first + across], x=0.25, y=page.y, numbered_from=first)
        page.y += strip.height + 0.12
    page.y += 0.02
    return page.write(path)


class _Page:
    """A sheet measured in inches from its top left corner that grows downwards; nothing on it can be clipped."""

    def __init__(self, *, width: float, side: float) -> None:
        self.width, self.side, self.y = width, side, side * 0.8
        self.figure = Figure(figsize=(width, 1), dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self._ruler = FigureCanvasAgg(self.figure).get_renderer()

    def measure(self, text: str, font: FontProperties) -> float:
        """Width of a line of text in inches."""
        return self._ruler.get_text_width_height_descent(text, font, ismath=False)[0] / DPI

    def wrap(self, text: str, *, width: float, font: FontProperties) -> list[str]:
        """Lines of at most `width` inches; a word that is longer than a line is broken."""
        lines = [""]
        for word in text.split():
            if self.measure(f"{lines[-1]} {word}", font) <= width or not lines[-1]:
                lines[-1] = f"{lines[-1]} {word}".strip()
            else:
                lines.append(word)
            while self.measure(lines[-1], font) > width and len(lines[-1]) > 1:
                last = lines[-1]
                cut = next((n for n in range(len(last) - 1, 1, -1) if self.measure(last[:n], font) <= width), 1)
                lines[-1:] = [last[:cut], last[cut:]]
        return lines

    def text(self, text: str, *, x: float, y: float, font: FontProperties, colour: str = INK) -> None:
        """One line whose capitals are centred on `y`."""
        self.axes.text(x, y, text, font=font, color=colour, va="center_baseline", ha="left", parse_math=False)

    def paragraph(self, text: str, *, size: float, after: float, weight: str = "normal") -> None:
        font = FontProperties(size=size, weight=weight)
        for line in self.wrap(text, width=self.width - 2 * self.side, font=font):
            self.y += size * 1.4 / 72
            self.text(line, x=self.side, y=self.y - size * 0.7 / 72, font=font)
        self.y += after

    def write(self, path: str | Path) -> Path:
        height = self.y + self.side * 0.2
        self.figure.set_size_inches(self.width, height)
        self.axes.set(xlim=(0, self.width), ylim=(height, 0))
        return _write(self.figure, path)


class _Strip:
    """The measures of a film strip of `n_frames` cells, in inches; every strip on a page has the same."""

    def __init__(self, n_frames: int, *, width: float, aspect: float) -> None:
        self.width, self.edge, self.gap = width, 0.13, 0.045
        self.cell = (width - self.gap * (n_frames + 1)) / n_frames
        self.cell_height = self.cell / aspect
        self.height = self.cell_height + 2 * self.edge

    def film_width(self, n_frames: int) -> float:
        return self.gap + n_frames * (self.cell + self.gap)

    def draw(
        self, page: _Page, frames: UInt8[Tensor, "t 3 h w"], *, x: float, y: float, numbered_from: int | None = None
    ) -> None:
        """Film with its perforation, and the frames fitted into its cells; a shorter clip is a shorter film."""
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
                at = (left + 0.05, y + self.edge + 0.05)
                page.axes.text(*at, f"{numbered_from + number}", fontsize=7, color="white", va="top", bbox=box)


def _draw_hit(page: _Page, hit: Hit, *, x: float, y: float, strip: _Strip, rank: int) -> float:
    """A strip in its frame, and below it rank, mark, score and caption; returns the y where it all ends."""
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
    """A disc with a tick or a cross, drawn as lines so that no font decides whether it shows."""
    axes.add_patch(Circle((x, y), 0.085, facecolor=RIGHT if right else WRONG, edgecolor="none"))
    tick = [((-0.042, -0.012, 0.042), (0.003, 0.035, -0.032))]
    cross = [((-0.03, 0.03), (-0.03, 0.03)), ((-0.03, 0.03), (0.03, -0.03))]
    for dx, dy in tick if right else cross:
        axes.plot(np.add(x, dx), np.add(y, dy), color="white", linewidth=1.6, solid_capstyle="round")


def _picture(axes: Axes, frame: UInt8[Tensor, "3 h w"], *, x: float, y: float, width: float, height: float) -> None:
    """The frame, whole and centred in the cell: another aspect leaves film visible beside it."""
    scale = min(width / frame.shape[2], height / frame.shape[1])
    w, h = frame.shape[2] * scale, frame.shape[1] * scale
    left, top = x + (width - w) / 2, y + (height - h) / 2
    pixels = frame.permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
    axes.imshow(pixels, extent=(left, left + w, top + h, top), aspect="auto", zorder=2)


def _rounded(x: float, y: float, width: float, height: float, *, radius: float, **style: object) -> FancyBboxPatch:
    shape = f"round,pad=0,rounding_size={radius}"
    return FancyBboxPatch((x, y), width, height, boxstyle=shape, **style)  # pyright: ignore[reportArgumentType]


def _aspect(frames: Tensor) -> float:
    """Width over height, kept between upright and wide screen so that one odd clip does not deform the page."""
    return min(16 / 9, max(9 / 16, frames.shape[3] / frames.shape[2]))


def _runs(history: Sequence[Mapping[str, object]]) -> dict[str, dict[str, list]]:
    """The history by run: {name: {"epoch": [...], "loss": [...], "score": [... or None]}}."""
    if not history:
        raise ValueError("history is empty; give one mapping for each epoch with 'epoch' and 'loss'")
    runs: dict[str, dict[str, list]] = {}
    for entry in history:
        missing = {"epoch", "loss"} - set(entry)
        if missing:
            raise ValueError(f"history entry {dict(entry)} lacks {', '.join(sorted(missing))}")
        run = runs.setdefault(str(entry.get("run", "")), {"epoch": [], "loss": [], "score": []})
        for key, values in run.items():
            values.append(entry.get(key))
    return runs


def _run_label(name: str, run: Mapping[str, list], *, score_name: str) -> str:
    scores = [pair for pair in zip(run["score"], run["epoch"], strict=True) if pair[0] is not None]
    if not scores:
        return name
    score, epoch = max(scores, key=lambda pair: pair[0])
    best = f"{score:.1f}" if abs(score) >= 10 else f"{score:.3g}"
    return f"{name}   best {best} at epoch {epoch}" if name else f"best {score_name} {best} at epoch {epoch}"


def _chart(*, width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.1)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def _panel(axes: Axes, name: str) -> None:
    axes.set_title(name, loc="left", fontsize=11, color=INK, parse_math=False)
    axes.set_xlabel("epoch", fontsize=9.5, color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.tick_params(colors=GREY, labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.set_axisbelow(True)
    axes.margins(x=0.03)


def _class_ticks(axes: Axes, classes: list[str]) -> None:
    """Class names on both sides; of very many only every n-th, so that they stay readable."""
    step = math.ceil(len(classes) / 60)
    places, names = range(0, len(classes), step), classes[::step]
    turn = max(map(len, names), default=0) > 4
    axes.set_xticks(places, names, rotation=40 if turn else 0, ha="right" if turn else "center", rotation_mode="anchor")
    axes.set_yticks(places, names)
    axes.tick_params(colors=INK, labelsize=9 if len(classes) <= 30 else 7, length=0)
    axes.set_xlabel("predicted", fontsize=10, color=GREY)
    axes.set_ylabel("true", fontsize=10, color=GREY)
    axes.spines[:].set_visible(False)
    edges = np.arange(1, len(classes)) - 0.5
    if len(classes) <= 60:
        axes.hlines(edges, -0.5, len(classes) - 0.5, color="white", linewidth=1)
        axes.vlines(edges, -0.5, len(classes) - 0.5, color="white", linewidth=1)


def _write(figure: Figure, path: str | Path) -> Path:
    """Write beside the target, then rename: a reader never meets half a picture."""
    path = Path(path)
    suffix, known = path.suffix.lower().lstrip("."), figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise ValueError(f"cannot draw {path.name!r}; the name must end with one of {', '.join(sorted(known))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(draft, format=suffix, dpi=DPI)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
