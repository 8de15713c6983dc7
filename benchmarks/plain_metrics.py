"""Retrieval metrics as in CLIP4Clip and the code that follows it, reimplemented; retrieval_eval.py compares with them.

Contract: the full matrix of scores (N, N) in, where query i belongs to item i; metrics of one direction out. Every row
is sorted, and the rank is the position at which a row equals the score of its correct item. If scores tie, a query has
several such positions, and all of them are counted. No intervals, no blocks.
Algorithm: Luo et al., CLIP4Clip (2021), the authors' `metrics.py`.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray


def plain_metrics(scores: ndarray) -> dict[str, float]:
    """Return R@1, R@5 and R@10 in percent, and MdR and MnR as ranks from 1."""
    worst_last = np.sort(-scores, axis=1)
    correct = -np.diag(scores)
    positions = np.where(worst_last - correct[:, None] == 0)[1]
    shares = {f"R@{k}": 100 * float(np.mean(positions < k)) for k in (1, 5, 10)}
    return {**shares, "MdR": float(np.median(positions)) + 1, "MnR": float(np.mean(positions)) + 1}


def plain_retrieval(text: ndarray, video: ndarray) -> dict[str, dict[str, float]]:
    """Return the metrics of both directions from embeddings (N, E)."""
    scores = text @ video.T
    return {"t2v": plain_metrics(scores), "v2t": plain_metrics(scores.T)}
