"""Retrieval figures as CLIP4Clip and the code that follows it count them, written anew: the peer of retrieval_eval.py.

Contract: the whole matrix of scores (N, N), query i and item i belonging together, in; figures of one direction out.
Every row is sorted whole, and the place where a row equals its right score is the rank: where scores tie a query has
several places, and all of them are counted. No intervals, nothing in blocks.
Algorithm: Luo et al., CLIP4Clip (2021), the authors' `metrics.py`.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray


def plain_metrics(scores: ndarray) -> dict[str, float]:
    """R@1, R@5 and R@10 in percent, MdR and MnR as ranks from 1."""
    worst_last = np.sort(-scores, axis=1)
    right = -np.diag(scores)
    places = np.where(worst_last - right[:, None] == 0)[1]
    shares = {f"R@{k}": 100 * float(np.mean(places < k)) for k in (1, 5, 10)}
    return {**shares, "MdR": float(np.median(places)) + 1, "MnR": float(np.mean(places)) + 1}


def plain_retrieval(text: ndarray, video: ndarray) -> dict[str, dict[str, float]]:
    """Both directions, from embeddings (N, E)."""
    scores = text @ video.T
    return {"t2v": plain_metrics(scores), "v2t": plain_metrics(scores.T)}
