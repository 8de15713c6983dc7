"""Stores of unit vectors with nearest-neighbour search, and their names; registering them imports no engine."""

from clipvid.registry import register_store

register_store("faiss", f"{__name__}.faiss:FaissStore", summary="faiss in this process: exact, or approximate by kind")
