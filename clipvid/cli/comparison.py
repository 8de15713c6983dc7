"""Tables of saved results for `clipvid compare`: as text, Markdown, LaTeX or CSV, and as data.

Contract: results by path in, text or plain data out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipvid.evaluation.compare import compare
from clipvid.evaluation.metrics import paired_bootstrap
from clipvid.evaluation.results import directions

Results = Mapping[str, Mapping[str, Any]]
"""Saved results by path."""


def comparison_text(results: Results, format: str, *, draws: int, seed: int) -> str:
    """Return the results side by side; two as text with the p-values of their differences."""
    if format == "text" and len(results) == 2:
        a, b = results.values()
        return compare(a, b, n=draws, seed=seed)
    first, *others = results.values()
    for other in others:
        compare(first, other, n=1, seed=seed)  # raises for results of other tasks or data
    names = list(dict.fromkeys(name for result in results.values() for name in _metrics(result)))
    cells = [["result", *names]]
    for path, result in results.items():
        metrics = _metrics(result)
        cells.append([path, *(f"{metrics[name]:.2f}" if name in metrics else "-" for name in names)])
    return _rendered(cells, format)


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a result by direction and name."""
    sides = directions(result)
    return {f"{side} {name}".strip(): value for side, metrics, _ in sides for name, value in metrics.items()}


def _rendered(cells: list[list[str]], format: str) -> str:
    """Return a table whose first row is its header."""
    if format == "csv":
        return "\n".join(",".join(f'"{cell}"' if "," in cell else cell for cell in row) for row in cells)
    if format == "markdown":
        rows = [f"| {' | '.join(row)} |" for row in cells]
        return "\n".join([rows[0], "|" + "---|" * len(cells[0]), *rows[1:]])
    if format == "latex":
        rows = [" & ".join(cell.replace("_", r"\_") for cell in row) + r" \\" for row in cells]
        alignment = "l" + "r" * (len(cells[0]) - 1)
        parts = [rf"\begin{{tabular}}{{{alignment}}}", rows[0], r"\hline", *rows[1:], r"\end{tabular}"]
        return "\n".join(parts)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    rows = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join("  ".join([f"{row[0].strip():<{widths[0]}}", *row[1:]]) for row in rows)


def comparison_data(results: Results, *, draws: int, seed: int) -> dict[str, Any]:
    """Return metrics of every result, and differences of each later one to the first, as plain data."""
    (first_path, first), *others = results.items()
    differences = []
    for path, other in others:
        compare(first, other, n=1, seed=seed)  # raises for results of other tasks or data
        for (side, metrics_a, each_a), (_, metrics_b, each_b) in zip(directions(first), directions(other), strict=True):
            for name in (name for name in metrics_a if name in metrics_b):
                row: dict[str, Any] = {"a": first_path, "b": path, "metric": f"{side} {name}".strip()}
                row["difference"] = metrics_b[name] - metrics_a[name]
                if name in each_a and name in each_b:
                    sampled = paired_bootstrap(np.asarray(each_a[name]), np.asarray(each_b[name]), n=draws, seed=seed)
                    scale = 1 if name == "MnR" else 100
                    row |= {"interval": [scale * limit for limit in sampled.interval], "p": sampled.p}
                differences.append(row)
    metrics = [{"path": path, "metrics": _metrics(result)} for path, result in results.items()]
    return {"results": metrics, "differences": differences}
