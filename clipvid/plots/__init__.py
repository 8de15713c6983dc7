"""Pictures: training curves, retrieval results as film strips, confusion matrices; the only owner of matplotlib.

Contract: plain data in (numbers, uint8 frames, sentences), one finished file out; the format follows from the suffix.
Drawn with matplotlib's objects, never pyplot, so no global state is read or changed and any thread may draw.
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
