"""Stores of unit vectors with nearest-neighbour search, and their names; registering them imports no engine."""

from clipvid.registry import register_store

FAISS_KINDS = ("flat", "ivf", "hnsw")
"""Kinds of index of the store on faiss. flat compares every vector, so it misses none. ivf compares the vectors in the
lists with the nearest centres. hnsw compares the vectors on a walk along a graph of neighbours. ivf and hnsw are faster
on very many vectors and may miss some."""

register_store("faiss", f"{__name__}.faiss:FaissStore", summary="faiss in this process: exact, or approximate by kind")
