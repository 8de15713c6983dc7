"""Charts: training curves, recall curves, confusion matrices, quality against cost.

Contract: plain numbers and names in, one figure out. Knows nothing of models or data sets.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import BboxBase
from torch import Tensor

from clipvid.plots.labels import Box, place_labels
from clipvid.plots.style import DPI, GREY, HEADING, HEAT, INK, LINE, RUN_COLOURS, RUN_MARKERS, Picture


@dataclass(frozen=True)
class TradeOffPoint:
    """A named point: cost, quality, and the standard deviation of the quality; `group` gives its colour and marker."""

    name: str
    cost: float
    quality: float
    std: float
    group: str


def training_curve(
    history: Sequence[Mapping[str, object]],
    *,
    title: str = "Training",
    score_name: str = "validation score",
) -> Figure:
    """Draw loss and validation score against epochs, one line per run.

    Each entry of `history` has "epoch" and "loss", and may have "run" (the name of its line) and "score" (higher is
    better). Raise ValueError for an empty history and for an entry without "epoch" or "loss".
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
    return figure


def recall_curve(
    ranks: Mapping[str, np.ndarray], n_gallery: int | Mapping[str, int], *, title: str = "Retrieval"
) -> Figure:
    """Draw the share of queries whose relevant item has a rank of at most K, against K, one line per name.

    `ranks` are ranks from 1 of the relevant item of each query; the rank of a tie may lie between two integers.
    `n_gallery` is the number of items that are ranked, or a mapping from each name to its number. A dashed line is
    chance for one relevant item per query: one line if all galleries have the same size, else one for each name, in
    its colour. Raise ValueError for no ranks, and for a name without a gallery size.
    """
    if not ranks or not all(len(values) for values in ranks.values()):
        raise ValueError("ranks must not be empty; give at least one array, with one rank per query")
    sizes = _gallery_sizes(tuple(ranks), n_gallery)
    figure = _chart(width=6.4, height=4.6)
    axes = figure.subplots()
    _panel(axes, "queries whose item is among the first K (%)")
    axes.set_xscale("log")
    axes.set_xlabel("K", color=GREY, fontsize=9.5)
    colours = {name: RUN_COLOURS[order % len(RUN_COLOURS)] for order, name in enumerate(ranks)}
    for name, values in ranks.items():
        k = _ks(sizes[name])
        share = 100 * np.searchsorted(np.sort(values), k, side="right") / len(values)
        axes.plot(k, share, color=colours[name], linewidth=2, label=name)
    chance = [(f"chance, {name}", size, colours[name]) for name, size in sizes.items()]
    if len(set(sizes.values())) == 1:
        chance = [("chance", next(iter(sizes.values())), GREY)]
    for label, size, colour in chance:
        k = _ks(size)
        axes.plot(k, 100 * k / size, color=colour, linewidth=1.2, linestyle=(0, (5, 3)), label=label, zorder=0.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(sizes.values()) <= 3000 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_ylim(0, 102)
    legend = figure.legend(loc="outside lower left", ncols=2, fontsize=9.5, frameon=False)
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False)
    figure.suptitle(textwrap.fill(title, 52), x=0.012, ha="left", **HEADING)
    return figure


def _gallery_sizes(names: Sequence[str], n_gallery: int | Mapping[str, int]) -> dict[str, int]:
    """Return the gallery size of each name; raise ValueError for a missing name and for sizes below 1."""
    if isinstance(n_gallery, Mapping):
        if missing := [name for name in names if name not in n_gallery]:
            raise ValueError(
                f"n_gallery must have the size of every gallery in ranks, got none for {', '.join(missing)}; add it"
            )
        sizes = {name: n_gallery[name] for name in names}
    else:
        sizes = dict.fromkeys(names, n_gallery)
    if min(sizes.values()) < 1:
        raise ValueError(f"n_gallery must be integers >= 1, got {n_gallery}; give the number of items that are ranked")
    return sizes


def _ks(n_gallery: int) -> np.ndarray:
    """Return the integers K at which a curve is drawn, evenly spaced on a logarithmic axis."""
    return np.unique(np.geomspace(1, n_gallery, 400).round().astype(int))


def trade_off(
    points: Sequence[TradeOffPoint],
    *,
    title: str,
    cost: str,
    quality: str,
    mark: tuple[float, str] | None = None,
) -> Figure:
    """Draw quality against cost (logarithmic axis), each point with its name and an error bar.

    `cost` and `quality` are the names of the axes.

    `mark` is a reference quality, such as chance level, and its label; it is drawn as a dashed line.
    """
    if not points:
        raise ValueError("points must not be empty; give at least one TradeOffPoint")
    figure = _chart(width=9.6, height=5.8)
    axes = figure.subplots()
    _panel(axes, quality)
    axes.set_xscale("log")
    axes.set_xlabel(cost, color=INK, fontsize=11)
    groups = list(dict.fromkeys(point.group for point in points))
    for order, group in enumerate(groups):
        members = [point for point in points if point.group == group]
        axes.errorbar(
            [p.cost for p in members],
            [p.quality for p in members],
            yerr=[p.std for p in members],
            fmt=RUN_MARKERS[order],
            color=RUN_COLOURS[order],
            markersize=7,
            elinewidth=1.2,
            capsize=3,
            label=group,
        )
    if mark is not None:
        height, name = mark
        axes.axhline(height, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=0.5)
        inside = axes.get_yaxis_transform()  # x as a fraction of the axis, y in data coordinates
        style = {"fontsize": 9, "color": GREY, "style": "italic", "parse_math": False}
        axes.text(0.005, height, name, transform=inside, ha="left", va="bottom", **style)
    axes.margins(x=0.14)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", frameon=False, fontsize=9.5)
    figure.suptitle(textwrap.fill(title, 80), x=0.012, ha="left", **HEADING)
    _name_points(axes, points)
    return figure


def _name_points(axes: Axes, points: Sequence[TradeOffPoint]) -> None:
    """Write each point's name at a position that is free, with a line to the point if the two are far apart."""
    canvas = FigureCanvasAgg(axes.get_figure(root=True))
    canvas.draw()  # computes the layout, and with it the positions in pixels
    axes.set_autoscale_on(False)
    to_pixels, renderer = axes.transData.transform, canvas.get_renderer()
    pixels = [tuple(to_pixels((p.cost, p.quality))) for p in points]
    bars = [(*to_pixels((p.cost, p.quality - p.std)), *to_pixels((p.cost, p.quality + p.std))) for p in points]
    obstacles = [
        (x - 7, min(low, y - 7), x + 7, max(high, y + 7))
        for (x, y), (_, low, _, high) in zip(pixels, bars, strict=True)
    ]
    artists = [*axes.texts, *([axes.get_legend()] if axes.get_legend() else [])]
    obstacles += [_corners(artist.get_window_extent(renderer)) for artist in artists]
    texts = [axes.text(p.cost, p.quality, p.name, fontsize=8.5, color=INK, parse_math=False) for p in points]
    sizes = [(extent.width, extent.height) for extent in (text.get_window_extent(renderer) for text in texts)]
    boxes = place_labels(pixels, sizes, obstacles, _corners(axes.get_window_extent(renderer)))
    to_data = axes.transData.inverted().transform
    for text, (x, y), box in zip(texts, pixels, boxes, strict=True):
        left, middle = to_data((box[0], (box[1] + box[3]) / 2))
        text.set_position((left, middle))
        text.set_verticalalignment("center_baseline")
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        if math.dist((x, y), near) > 14:
            line = np.array([to_data((x, y)), to_data(near)])
            axes.plot(line[:, 0], line[:, 1], color=LINE, linewidth=0.8, zorder=0)


def _corners(box: BboxBase) -> Box:
    return float(box.x0), float(box.y0), float(box.x1), float(box.y1)


def confusion_matrix(
    matrix: Sequence[Sequence[float]] | np.ndarray | Tensor,
    classes: Sequence[str],
    *,
    title: str = "Confusion matrix",
) -> Figure:
    """Draw counts (C, C) with true classes as rows, each cell coloured by its share of the true class.

    Raise ValueError for a matrix of another shape than (C, C), C being the number of `classes`.
    """
    counts = np.asarray(matrix, dtype=float)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(
            f"matrix must be (C, C) for {len(classes)} classes, got {counts.shape}; give a row for each true class and "
            "a column for each predicted one"
        )
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
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]  # typed as Spines, but is a single Spine
    bar.ax.tick_params(labelsize=8.5, colors=GREY, length=0)
    bar.set_label("share of the true class", fontsize=9.5, color=GREY)
    accuracy = np.trace(counts) / max(counts.sum(), 1e-12)
    figure.suptitle(heading, x=0.02, ha="left", **HEADING)
    axes.set_title(f"{accuracy:.1%} right of {counts.sum():g}", loc="left", fontsize=10, color=GREY)
    return figure


def _runs(history: Sequence[Mapping[str, object]]) -> dict[str, dict[str, list[Any]]]:
    """Return the history by run: {name: {"epoch": [...], "loss": [...], "score": [... or None]}}."""
    if not history:
        raise ValueError("history is empty; give one mapping per epoch with 'epoch' and 'loss'")
    runs: dict[str, dict[str, list[Any]]] = {}
    for entry in history:
        missing = {"epoch", "loss"} - set(entry)
        if missing:
            raise ValueError(f"history entry {dict(entry)} lacks {', '.join(sorted(missing))}; add it")
        run = runs.setdefault(str(entry.get("run", "")), {"epoch": [], "loss": [], "score": []})
        for key, values in run.items():
            values.append(entry.get(key))
    return runs


def _run_label(name: str, run: Mapping[str, list[Any]], *, score_name: str) -> str:
    """Return the legend text of a run: its name and best score."""
    scores = [pair for pair in zip(run["score"], run["epoch"], strict=True) if pair[0] is not None]
    if not scores:
        return name
    score, epoch = max(scores, key=lambda pair: pair[0])
    best = f"{score:.1f}" if abs(score) >= 10 else f"{score:.3g}"
    return f"{name}   best {best} at epoch {epoch}" if name else f"best {score_name} {best} at epoch {epoch}"


def _chart(*, width: float, height: float) -> Picture:
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.1)
    return Picture(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def _panel(axes: Axes, name: str) -> None:
    """Style axes: title, grid and colours; the x axis counts epochs."""
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
    """Label both axes with class names; above 60 classes only every n-th, so that the names stay readable."""
    step = math.ceil(len(classes) / 60)
    positions, names = range(0, len(classes), step), classes[::step]
    slanted = max(map(len, names), default=0) > 4
    axes.set_xticks(
        positions, names, rotation=40 if slanted else 0, ha="right" if slanted else "center", rotation_mode="anchor"
    )
    axes.set_yticks(positions, names)
    axes.tick_params(colors=INK, labelsize=9 if len(classes) <= 30 else 7, length=0)
    axes.set_xlabel("predicted", fontsize=10, color=GREY)
    axes.set_ylabel("true", fontsize=10, color=GREY)
    axes.spines[:].set_visible(False)
    edges = np.arange(1, len(classes)) - 0.5
    if len(classes) <= 60:
        axes.hlines(edges, -0.5, len(classes) - 0.5, color="white", linewidth=1)
        axes.vlines(edges, -0.5, len(classes) - 0.5, color="white", linewidth=1)
