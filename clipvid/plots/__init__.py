"""Plots: training curves, recall curves, retrieval results as film strips, confusion matrices, trade-offs.

Contract: plain data in (numbers, uint8 frames, sentences), a matplotlib Figure out, which notebooks show;
`save` writes it, and the suffix of the file decides its format. The only package that imports matplotlib. It uses
matplotlib's object interface, never pyplot, so that it reads and changes no global state, any thread may draw, and a
figure is freed with its last reference.
"""

from __future__ import annotations

from clipvid.errors import MissingExtraError

try:
    import matplotlib  # noqa: F401  # checked once for all files of this package
except ImportError as _error:
    raise MissingExtraError(
        f"plots need matplotlib, which cannot be imported ({_error}); pip install 'clipvid[plots]' ('.[plots]' in a "
        "checkout)"
    ) from _error

from clipvid.plots.charts import TradeOffPoint, confusion_matrix, recall_curve, trade_off, training_curve
from clipvid.plots.film_strips import RetrievalRow, RetrievedClip, film_strip, retrieval_grid
from clipvid.plots.style import Figure as Figure
from clipvid.plots.style import save

__all__ = [
    "RetrievalRow",
    "RetrievedClip",
    "TradeOffPoint",
    "confusion_matrix",
    "film_strip",
    "recall_curve",
    "retrieval_grid",
    "save",
    "trade_off",
    "training_curve",
]
