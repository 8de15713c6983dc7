"""Taps of data sets: streamed from videos, kept in memory, or kept on disk."""

from __future__ import annotations

from clipvid.features.augmented_views import Draws, augmented
from clipvid.features.encode import clip_dataset, stream_taps, trained_reading
from clipvid.features.source import TapStore, records_of
from clipvid.features.tap_cache import TapCache
from clipvid.features.text_cache import TextCache

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
