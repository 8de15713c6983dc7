"""Plots: training curves, retrieval results as film strips, confusion matrices, trade-offs.

Contract: plain data in (numbers, uint8 frames, sentences), one finished file out; the suffix of the file decides its
format. The only package that imports matplotlib. It uses matplotlib's object interface, never pyplot, so that it reads
and changes no global state and any thread may draw.
"""

from __future__ import annotations

from clipvid.plots.charts import Trade, confusion_matrix, trade_off, training_curve
from clipvid.plots.film_strips import Hit, RetrievalRow, film_strip, retrieval_grid

__all__ = [
    "Hit",
    "RetrievalRow",
    "Trade",
    "confusion_matrix",
    "film_strip",
    "retrieval_grid",
    "trade_off",
    "training_curve",
]
