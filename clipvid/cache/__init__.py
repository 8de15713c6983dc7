"""Taps of data sets: streamed from videos, kept in memory, or kept on disk."""

from __future__ import annotations

from clipvid.cache.disk import TapCache
from clipvid.cache.draws import Draws, augmented
from clipvid.cache.store import TapStore, records_of
from clipvid.cache.stream import clip_dataset, stream_taps, trained_reading
from clipvid.cache.texts import TextCache

__all__ = [
    "Draws",
    "TapCache",
    "TapStore",
    "TextCache",
    "augmented",
    "clip_dataset",
    "records_of",
    "stream_taps",
    "trained_reading",
]
