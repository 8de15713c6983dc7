"""Files of faiss: read within limits of memory, and checked before their lists and links are followed.

Contract: bytes and the module faiss in, an index or a verdict out. Does not import faiss itself.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np

_limiting = Lock()  # faiss has one limit for all threads


def deserialized(content: bytes, faiss: Any) -> Any:
    """Return the index in these bytes; faiss refuses, in versions that can, more lists or vectors than bytes."""
    data = np.frombuffer(content, dtype=np.uint8)
    names = [f"deserialization_{kind}_limit" for kind in ("vector_byte", "loop")]
    names = [name for name in names if hasattr(faiss, f"set_{name}")]
    with _limiting:
        before = {name: getattr(faiss, f"get_{name}")() for name in names}
        try:
            for name in names:
                getattr(faiss, f"set_{name}")(len(content))
            return faiss.deserialize_index(data)
        finally:
            for name, limit in before.items():
                getattr(faiss, f"set_{name}")(limit)


def is_consistent(index: Any, faiss: Any) -> bool:
    """Return True if the lists of an ivf index hold each row once, and the links of an hnsw graph lead to its rows.

    faiss follows them without a check, and a wrong one may end the process.
    """
    rows = index.ntotal
    if hasattr(index, "nlist"):
        lists, quantizer = index.invlists, faiss.downcast_index(index.quantizer)
        filled = [number for number in range(index.nlist) if lists.list_size(number)]
        numbers = [faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)) for number in filled]
        listed = np.sort(np.concatenate([*numbers, np.empty(0, dtype=np.int64)]))
        fits = (quantizer.ntotal, quantizer.d, lists.code_size) == (index.nlist, index.d, 4 * index.d)
        return fits and np.array_equal(listed, np.arange(rows))
    if not hasattr(index, "hnsw"):
        return True
    graph, storage = index.hnsw, faiss.downcast_index(index.storage)
    links, offsets = faiss.vector_to_array(graph.neighbors), faiss.vector_to_array(graph.offsets).astype(np.int64)
    levels, sizes = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.cum_nneighbor_per_level)
    if (storage.ntotal, storage.d, len(levels)) != (rows, index.d, rows) or not isinstance(storage, faiss.IndexFlat):
        return False
    if rows == 0:
        return True
    has_levels = bool(levels.min() > 0 and levels.max() < len(sizes))
    in_range = has_levels and links.min(initial=-1) >= -1 and links.max(initial=-1) < rows
    starts = 0 <= graph.entry_point < rows and 0 <= graph.max_level < levels[graph.entry_point]
    return bool(in_range and starts and np.array_equal(offsets, np.cumsum([0, *sizes[levels]])))
