"""A store that keeps its vectors in a dictionary and compares all of them with numpy."""

import numpy as np

from clipvid.registry import register_store
from clipvid.search.stores.base import Match, Store


@register_store("mine")
class PlainStore(Store):
    """A dictionary, compared with numpy; the base class saves it and reads it again."""

    def __init__(self, width, *, kind="flat"):
        super().__init__(width, kind=kind)
        self.rows = {}  # id -> (vector, metadata)

    def add(self, ids, vectors, metadata=None):
        self.refuse_repeated(ids, self.rows)
        self.rows |= {n: (v, dict(m)) for n, v, m in zip(ids, vectors, metadata or [{}] * len(ids), strict=True)}

    def remove(self, ids):
        return sum(self.rows.pop(name, None) is not None for name in ids)

    def search(self, vectors, k, where=None):
        names = self.ids(where)
        scores = vectors @ self.get(names)[0].T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [[Match(names[i], float(scores[q, i])) for i in row] for q, row in enumerate(best)]

    def get(self, ids):
        rows = [self.rows[name] for name in ids]
        return np.array([v for v, _ in rows], np.float32).reshape(-1, self.width), [m for _, m in rows]

    def ids(self, where=None):
        return [name for name, (_, columns) in self.rows.items() if where is None or where.matches(columns)]
